"""Hidden states matched by a trained linear map."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cktk.criteria.base import HiddenLoss, working_dtype
from cktk.criteria.sides import side_terms
from cktk.errors import ConfigError
from cktk.protocols import LayerPair, ModelOutput, Side, Term

_SHARED = "shared"


class LinearMatch(HiddenLoss):
    """Squared error between the projected student rows and the teacher's, divided by the teacher's width.

    Each pair has its own biased projector (d, p); with ``shared`` there is one for all layers of both sides, as in
    TinyBERT. They are trained, and no part of the saved student. Raises `ConfigError` where one projector has to fit
    sides of different widths.
    """

    def __init__(
        self, pairs: tuple[LayerPair, ...], widths: Mapping[Side, tuple[int, int]], shared: bool = False
    ) -> None:
        super().__init__(pairs)
        self._names = {pair: _SHARED if shared else f"{pair.side}_{pair.student}_{pair.teacher}" for pair in pairs}
        if shared:
            _check_one_size(pairs, widths)
        sizes = {self._names[pair]: widths[pair.side] for pair in pairs}
        self.projectors = nn.ModuleDict({name: nn.Linear(*size) for name, size in sizes.items()})

    def terms(self, student: ModelOutput, teacher: ModelOutput) -> list[Term]:
        """One term a side: the sum over pairs and rows of |P s - t|^2 / p, per token."""
        return side_terms("linear", self.pairs, lambda pair: self._distance(pair, student, teacher))

    def _distance(self, pair: LayerPair, student: ModelOutput, teacher: ModelOutput) -> Tensor:
        target = teacher.hidden[pair.side, pair.teacher]
        projected = self.projectors[self._names[pair]](student.hidden[pair.side, pair.student])
        dtype = working_dtype(projected, target)
        with torch.autocast(target.device.type, enabled=False):
            return F.mse_loss(projected.to(dtype), target.to(dtype), reduction="sum") / target.shape[-1]


def _check_one_size(pairs: tuple[LayerPair, ...], widths: Mapping[Side, tuple[int, int]]) -> None:
    sizes = {side: widths[side] for side in dict.fromkeys(pair.side for pair in pairs)}
    if len({*sizes.values()}) > 1:
        found = ", ".join(f"{side} {student} to {teacher}" for side, (student, teacher) in sizes.items())
        raise ConfigError(
            f"--projector shared needs sides of equal widths, but they are {found}; use --projector per_layer"
        )
