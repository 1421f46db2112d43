"""Hidden states matched by a trained linear map per layer pair."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cktk.criteria.base import HiddenLoss, working_dtype
from cktk.criteria.sides import side_terms
from cktk.protocols import LayerPair, ModelOutput, Side, Term


class LinearMatch(HiddenLoss):
    """Squared error between the projected student rows and the teacher's, divided by the teacher's width.

    Each pair has its own biased projector (d, p); they are trained, and no part of the saved student.
    """

    def __init__(self, pairs: tuple[LayerPair, ...], widths: Mapping[Side, tuple[int, int]]) -> None:
        super().__init__(pairs)
        self.projectors = nn.ModuleDict({_key(pair): nn.Linear(*widths[pair.side]) for pair in pairs})

    def terms(self, student: ModelOutput, teacher: ModelOutput) -> list[Term]:
        """One term a side: the sum over pairs and rows of |P s - t|^2 / p, per token."""
        return side_terms("linear", self.pairs, lambda pair: self._distance(pair, student, teacher))

    def _distance(self, pair: LayerPair, student: ModelOutput, teacher: ModelOutput) -> Tensor:
        target = teacher.hidden[pair.side, pair.teacher]
        projected = self.projectors[_key(pair)](student.hidden[pair.side, pair.student])
        dtype = working_dtype(projected, target)
        with torch.autocast(target.device.type, enabled=False):
            return F.mse_loss(projected.to(dtype), target.to(dtype), reduction="sum") / target.shape[-1]


def _key(pair: LayerPair) -> str:
    return f"{pair.side}_{pair.student}_{pair.teacher}"
