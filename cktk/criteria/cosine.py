"""Hidden states of equal width matched by their angle."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from cktk.criteria.base import HiddenLoss, working_dtype
from cktk.criteria.sides import side_terms
from cktk.errors import ConfigError
from cktk.protocols import LayerPair, ModelOutput, Side, Term


class CosineMatch(HiddenLoss):
    """1 - cos(s, t) per row. A row of zeros has cosine 0. Raises `ConfigError` where the widths differ."""

    def __init__(self, pairs: tuple[LayerPair, ...], widths: Mapping[Side, tuple[int, int]]) -> None:
        super().__init__(pairs)
        for side in dict.fromkeys(pair.side for pair in pairs):
            student, teacher = widths[side]
            if student != teacher:
                raise ConfigError(
                    f"--criterion cosine_kd needs equal widths, but the {side} states are {student} wide in the "
                    f"student and {teacher} in the teacher; use --criterion cka_kd or linear_kd, or --width {teacher}"
                )

    def terms(self, student: ModelOutput, teacher: ModelOutput) -> list[Term]:
        """One term a side: the sum over pairs and rows of 1 - cos, per token."""
        return side_terms("cosine", self.pairs, lambda pair: _distance(pair, student, teacher))


def _distance(pair: LayerPair, student: ModelOutput, teacher: ModelOutput) -> Tensor:
    return cosine_distance(student.hidden[pair.side, pair.student], teacher.hidden[pair.side, pair.teacher])


def cosine_distance(own: Tensor, target: Tensor) -> Tensor:
    """Sum over rows of 1 - cos of the rows of ``own`` and ``target`` (N, d); a row of zeros has cosine 0."""
    dtype = working_dtype(own, target)
    with torch.autocast(own.device.type, enabled=False):
        return (1 - (_unit(own.to(dtype)) * _unit(target.to(dtype))).sum(-1)).sum()


def _unit(rows: Tensor) -> Tensor:
    length = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    return rows / torch.where(length > 0, length, 1.0)
