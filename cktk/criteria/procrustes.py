"""Orthogonal Procrustes similarity of hidden states, exact over any number of micro-batches and ranks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from cktk.criteria.cka.moments import SideMoments
from cktk.criteria.layout import SideLayout
from cktk.criteria.pooled import PooledLoss, RowGradients, Solution, scaled, varied
from cktk.protocols import LayerPair


@dataclass
class ProcrustesGradients(RowGradients):
    """s own - t cross."""

    own: Tensor  # (P,)
    cross: Tensor  # (P, p, d)

    def __call__(self, student: Tensor, teacher: Tensor) -> Tensor:
        return (student * self.own[:, None, None]).baddbmm_(teacher, self.cross, alpha=-1)


class Procrustes(PooledLoss):
    """1 - k with k = |T'S|_* / (|S| |T|), nuclear over Frobenius norms of centred rows.

    1 - k is half the squared distance of S / |S| and T / |T| after the best rotation of one onto the other (in the
    wider of the two spaces), as Williams et al. (2021) and Ding et al. (2021) compare representations. With
    T'S = U D V' its gradient in a row is k s / |S|^2 - t U V' / (|S| |T|), where directions without a singular value
    have no part. Without variance in either model, or in one row, the loss is 1 and its gradient 0.
    """

    name = "procrustes"
    order = "squares"

    def __init__(self, pairs: tuple[LayerPair, ...], scope: Literal["update", "micro"] = "update") -> None:
        super().__init__(pairs, scope)

    def solve(self, layout: SideLayout, moments: SideMoments) -> Solution:
        dtype = moments.cross.dtype
        student, teacher = (
            varied(model.second, model.level, dtype).sqrt() for model in (moments.student, moments.teacher)
        )
        s, t = layout.student_of_pairs(student), layout.teacher_of_pairs(teacher)
        nuclear, rotation = _polar(moments.cross)
        finite = torch.isfinite(nuclear + s + t)
        void = (nuclear == 0) | (s == 0) | (t == 0)
        s, t = (torch.where(void, 1.0, norm) for norm in (s, t))
        k = torch.where(finite, torch.where(void, 0.0, nuclear / (s * t)), torch.nan)
        cross = scaled(rotation, torch.where(void, 0.0, 1 / (s * t))).to(dtype)
        return Solution(1 - k, ProcrustesGradients((k / s**2).to(dtype), cross))


def _polar(cross: Tensor) -> tuple[Tensor, Tensor]:
    """Nuclear norms (P,) of ``cross`` (P, p, d), NaN where it is not finite, and U V' (P, p, d), both in float64."""
    finite = cross.isfinite().all(-1).all(-1)
    wide = torch.where(finite[:, None, None], cross, 0.0).double()
    u, singular, v = torch.linalg.svd(wide, full_matrices=False)
    least = singular[:, :1] * max(cross.shape[1:]) * torch.finfo(cross.dtype).eps
    u = torch.where(singular[:, None] > least[:, None], u, 0.0)
    return torch.where(finite, singular.sum(-1), torch.nan), u @ v
