"""The forms of CKA: from pooled moments, or from the rows themselves, to the losses and their closed gradients.

With A = T'S, M = S'S, Q = T'T of centred rows and a, c, b their Frobenius norms, k = a / sqrt((b + eps)(c + eps)):
"sqrt" is 1 - k, whose gradient in a row is k (s M / (c (c + eps)) - t A / a^2); "squared" is 1 - k^2, 2k times that.
"debiased" is 1 - H(S, T) / ((sqrt H(T, T) + eps) (sqrt H(S, S) + eps)) with the unbiased HSIC of Song et al. (2012)
for linear kernels, H = (|A|^2 + tr M tr Q / ((n - 1)(n - 2)) - n / (n - 2) sum |s|^2 |t|^2) / (n (n - 3)), n >= 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from cktk.criteria.cka import symmetric
from cktk.criteria.cka.moments import SideMoments, SideRows
from cktk.criteria.layout import SideLayout
from cktk.criteria.pooled import RowGradients, Solution, scaled, varied

Form = Literal["sqrt", "squared", "debiased"]

#: What going through an N x N matrix a few times costs, in multiplications for each of its elements (measured).
_GRAM_PASSES = 256

#: A debiased HSIC below this many roundings of its addends is zero.
_HSIC_ROUNDINGS = 64


@dataclass
class FeatureGradients(RowGradients):
    """s own - t cross."""

    own: Tensor  # (P, d, d)
    cross: Tensor  # (P, p, d)

    def __call__(self, student: Tensor, teacher: Tensor) -> Tensor:
        return torch.bmm(student, self.own).baddbmm_(teacher, self.cross, alpha=-1)


@dataclass
class GramGradients(RowGradients):
    """factor kernel S, for the very rows that the kernel (P, N, N) was made of."""

    kernel: Tensor
    factor: Tensor  # (P,)

    def __call__(self, student: Tensor, teacher: Tensor) -> Tensor:
        del teacher
        return scaled(torch.bmm(self.kernel, student), self.factor)


@dataclass
class DebiasedGradients(FeatureGradients):
    """s own - t cross + s (constant + by_student |s|^2 + by_teacher |t|^2) + offset."""

    constant: Tensor  # (P,), as the next two
    by_student: Tensor
    by_teacher: Tensor
    offset: Tensor  # (P, d)

    def __call__(self, student: Tensor, teacher: Tensor) -> Tensor:
        factor = self.constant[:, None] + sum(
            weight[:, None] * torch.linalg.vector_norm(rows, dim=2).square()
            for weight, rows in ((self.by_student, student), (self.by_teacher, teacher))
        )
        return super().__call__(student, teacher).addcmul_(student, factor[..., None]).add_(self.offset[:, None])


def from_moments(layout: SideLayout, moments: SideMoments, form: Form, eps: float) -> Solution:
    """The loss in feature form: its gradients serve any part of the rows."""
    a, b, c = symmetric.dense_norms(moments.cross), *_norms(layout, moments)
    if form == "debiased":
        return _debiased(layout, moments, (a, b, c), eps)
    loss, own, cross = _biased(a, b, c, form, eps)
    matrices = layout.student_of_pairs(symmetric.mirror(moments.student.second))
    return Solution(loss, FeatureGradients(scaled(matrices, own), scaled(moments.cross, cross)))


def gram_is_cheaper(layout: SideLayout, rows: SideRows) -> bool:
    """Whether N x N matrices take less time than T'S, S'S and T'T, by multiplications; not of form "debiased"."""
    n, d, p = len(rows), rows.student.mean.shape[1], rows.teacher.mean.shape[1]
    pairs, students, teachers = len(layout.pairs), len(layout.student_layers), len(layout.teacher_layers)
    gram = n * (students * d / 2 + teachers * p / 2 + pairs * (d + _GRAM_PASSES))
    feature = pairs * (2 * p * d + d * d) + students * d * d / 2 + teachers * p * p / 2
    return gram < feature


def from_rows(layout: SideLayout, rows: SideRows, form: Form, eps: float) -> Solution:
    """The loss of ``rows`` alone in Gram form: a^2 = <SS', TT'>, b = |TT'|, c = |SS'|."""
    kernels, norms = [], []
    for model in (rows.student, rows.teacher):
        kernels.append(model.stack.new_zeros(len(model.mean), len(model), len(model)))
        symmetric.add_squares(kernels[-1], model.rows.mT)
        norms.append(varied(symmetric.norms(kernels[-1]), model.level(), kernels[-1].dtype))
    student, teacher = layout.student_of_pairs(kernels[0]), layout.teacher_of_pairs(kernels[1])
    c, b = layout.student_of_pairs(norms[0]), layout.teacher_of_pairs(norms[1])
    a = symmetric.dots(student, teacher).clamp(min=0).sqrt()
    loss, own, cross = _biased(a, b, c, form, eps)
    ratio = torch.where(own == 0, 0.0, cross / own).to(student)
    student.addcmul_(teacher, ratio[:, None, None], value=-1)
    return Solution(loss, GramGradients(symmetric.mirror(student), own))


def _norms(layout: SideLayout, moments: SideMoments) -> tuple[Tensor, Tensor]:
    """b and c of the pairs."""
    student, teacher = (
        varied(symmetric.norms(model.second), model.level, model.second.dtype)
        for model in (moments.student, moments.teacher)
    )
    return layout.teacher_of_pairs(teacher), layout.student_of_pairs(student)


def _biased(a: Tensor, b: Tensor, c: Tensor, form: Form, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """The loss (P,), and the factors of M and A in its gradient; 1 and zeros where a, b or c is 0."""
    finite = torch.isfinite(a + b + c)  # an overflow of c alone would make k a harmless 0
    void = (a == 0) | (b == 0) | (c == 0)
    a, b, c = (torch.where(void, 1.0, norm) for norm in (a, b, c))
    k = torch.where(void, 0.0, a / ((b + eps) * (c + eps)).sqrt())
    k = torch.where(finite, k, torch.nan)
    if form == "squared":
        return 1 - k**2, 2 * k**2 / (c * (c + eps)), 2 * k**2 / a**2
    return 1 - k, k / (c * (c + eps)), k / a**2


def _debiased(layout: SideLayout, moments: SideMoments, norms: tuple[Tensor, Tensor, Tensor], eps: float) -> Solution:
    assert moments.fourth is not None
    a, b, c = norms
    fourth, n = moments.fourth, moments.rows.clamp(min=4)
    trace_s = layout.student_of_pairs(symmetric.traces(moments.student.second))
    trace_t = layout.teacher_of_pairs(symmetric.traces(moments.teacher.second))
    h_st, _ = _hsic(n, a, trace_s * trace_t, fourth.pairs.both)
    h_ss, void_s = _hsic(n, c, trace_s**2, layout.student_of_pairs(fourth.student.both), moments.cross.dtype)
    h_tt, void_t = _hsic(n, b, trace_t**2, layout.teacher_of_pairs(fourth.teacher.both), moments.cross.dtype)
    finite, void = torch.isfinite(h_st + h_ss + h_tt), (moments.rows < 4) | (b == 0) | (c == 0) | void_s | void_t
    root_s, root_t = (torch.where(void, 1.0, h).sqrt() for h in (h_ss, h_tt))
    product = (root_s + eps) * (root_t + eps)
    k = torch.where(finite, torch.where(void, 0.0, h_st / product), torch.nan)
    # The gradients of H(S, T) and H(S, S) have one shape; these are their weights in that of 1 - k.
    cross = torch.where(void, 0.0, 2 / product) / (n * (n - 3))
    own = 2 * k / (root_s * (root_s + eps)) / (n * (n - 3))
    quartic = n / (n - 2)
    means = layout.student_of_pairs(fourth.student.first) / n, fourth.pairs.first / n
    small = (
        (own * trace_s - cross * trace_t) / ((n - 1) * (n - 2)),
        -quartic * own,
        quartic * cross,
        quartic * (own[:, None] * means[0] - cross[:, None] * means[1]),
    )
    matrices = layout.student_of_pairs(symmetric.mirror(moments.student.second))
    gradients = scaled(matrices, own), scaled(moments.cross, cross), *(one.to(matrices) for one in small)
    return Solution(1 - k, DebiasedGradients(*gradients))


def _hsic(
    n: Tensor, norm: Tensor, traces: Tensor, quartic: Tensor, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    """H (P,), and whether it is no more than the rounding of sums in ``dtype``."""
    traced, mixed = traces / ((n - 1) * (n - 2)), n / (n - 2) * quartic
    value = norm**2 + traced - mixed
    rounding = _HSIC_ROUNDINGS * torch.finfo(dtype).eps * (norm**2 + traced + mixed)
    return value / (n * (n - 3)), value <= rounding
