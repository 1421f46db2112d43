"""Centred kernel alignment (CKA) of hidden states, exact over any number of micro-batches and ranks.

For centred student rows S (N, d) and teacher rows T (N, p): A = T'S, M = S'S, Q = T'T and k = |A| / sqrt(|M| |Q|) in
Frobenius norms; the loss is 1 - k, where k is the square root of linear CKA ("Improving Language Model Distillation
through Hidden State Matching", eq. 3). Its gradient in a row is closed: k (s M / |M|^2 - t A / |A|^2). So a first pass
that only sums A, M and Q is enough for a second one to give each micro-batch its exact share of the pooled gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from cktk.criteria.base import AllReduce, StatisticsLoss, working_dtype
from cktk.protocols import LayerPair, ModelOutput, Side, Term

#: Variance below this many roundings of the mean is rounding itself: the features are constant.
_CONSTANT_ROUNDINGS = 16


@dataclass(frozen=True)
class SideLayout:
    """The layers of one side that occur in pairs, each once, and where each pair finds its two."""

    side: Side
    pairs: tuple[LayerPair, ...]
    student_layers: tuple[int, ...]
    teacher_layers: tuple[int, ...]

    @classmethod
    def of(cls, side: Side, pairs: Sequence[LayerPair]) -> SideLayout:
        own = tuple(pair for pair in pairs if pair.side == side)
        student, teacher = ({getattr(pair, who) for pair in own} for who in ("student", "teacher"))
        return cls(side, own, tuple(sorted(student)), tuple(sorted(teacher)))

    def places(self) -> list[tuple[int, int]]:
        """Index into ``student_layers`` and into ``teacher_layers``, for each pair."""
        return [(self.student_layers.index(p.student), self.teacher_layers.index(p.teacher)) for p in self.pairs]


@dataclass
class SideMoments:
    """Row count, means and second moments about those means, for the L_s and L_t layers and P pairs of one side."""

    rows: Tensor  # (), float64
    student_mean: Tensor  # (L_s, d)
    teacher_mean: Tensor  # (L_t, p)
    cross: Tensor  # A (P, p, d)
    student: Tensor  # M (L_s, d, d)
    teacher: Tensor  # Q (L_t, p, p)


@dataclass
class SideCoefficients:
    """What a side's rows need for their gradient: g = (s - mean_s) student_matrix - (t - mean_t) teacher_matrix."""

    student_mean: Tensor  # (L_s, d)
    teacher_mean: Tensor  # (L_t, p)
    student_matrix: Tensor  # k M / |M|^2 (P, d, d)
    teacher_matrix: Tensor  # k A / |A|^2 (P, p, d)
    similarity: Tensor  # k (P,), float64


CkaStatistics = dict[Side, SideMoments]
CkaCoefficients = dict[Side, SideCoefficients]


class Cka(StatisticsLoss):
    """1 - k, summed over layer pairs.

    ``scope`` "update": k of all rows of the update on all ranks; `terms` then needs `coefficients` of the merged
    statistics. "micro": k of each micro-batch by itself; one without any rows gives 0. Where a pair has no variance in
    either model (or one row, or none) its loss is 1 and its gradient 0. NaN and infinity pass through to the result.

    Moments are float32 (float64 for float64 states) under autocast too, norms and k float64.
    """

    def __init__(self, pairs: tuple[LayerPair, ...], scope: Literal["update", "micro"]) -> None:
        super().__init__(pairs)
        self.two_passes = scope == "update"
        sides: tuple[Side, ...] = ("encoder", "decoder")
        self.layouts = [SideLayout.of(side, pairs) for side in sides if any(pair.side == side for pair in pairs)]

    @torch.no_grad()
    def statistics(self, student: ModelOutput, teacher: ModelOutput) -> CkaStatistics:
        """Moments of one micro-batch about its own means."""
        return {layout.side: _moments(layout, student, teacher) for layout in self.layouts}

    @torch.no_grad()
    def merge(self, first: CkaStatistics, second: CkaStatistics) -> CkaStatistics:
        """Moments of the rows of both about their common means (Chan, Golub and LeVeque's pairwise update)."""
        return {side: _merged(self._places(side), first[side], second[side]) for side in first}

    @torch.no_grad()
    def coefficients(self, statistics: CkaStatistics, all_reduce: AllReduce) -> CkaCoefficients:
        """Pools ``statistics`` over ranks (the means first, then the moments about the common means) and solves."""
        pooled = {}
        for side, moments in statistics.items():
            pooled[side] = _solved(self._places(side), _pooled(self._places(side), moments, all_reduce))
        return pooled

    def terms(
        self, student: ModelOutput, teacher: ModelOutput, coefficients: CkaCoefficients | None = None
    ) -> list[Term]:
        """One term. In scope "update" its total has the gradient only, and sums to 0 over the update."""
        if not self.two_passes:
            return [self._own_term(student, teacher)]
        if coefficients is None:
            if torch.is_grad_enabled():
                raise ValueError("CKA of scope update needs the coefficients of the update's statistics")
            return []  # in evaluation the value comes from `pooled_term`
        return [replace(self.pooled_term(coefficients), total=self._surrogate(student, teacher, coefficients))]

    def pooled_term(self, coefficients: CkaCoefficients) -> Term:
        """The loss of all pooled rows: its value without a gradient."""
        values = self._values(coefficients)
        value = values["cka"] * len(self.pairs)
        return Term("cka", value, "update", parts=values, value=value)

    def _own_term(self, student: ModelOutput, teacher: ModelOutput) -> Term:
        coefficients = self.coefficients(self.statistics(student, teacher), lambda tensor: tensor)
        values = self._values(coefficients)
        if not any(len(state) for state in student.hidden.values()):  # a dummy, which counts for nothing
            values = {name: torch.zeros_like(value) for name, value in values.items()}
        surrogate = self._surrogate(student, teacher, coefficients)
        total = values["cka"].to(surrogate) * len(self.pairs) + (surrogate - surrogate.detach())
        return Term("cka", total, "microbatch", parts=values)

    def _places(self, side: Side) -> list[tuple[int, int]]:
        return next(layout.places() for layout in self.layouts if layout.side == side)

    def _values(self, coefficients: CkaCoefficients) -> dict[str, Tensor]:
        losses = torch.cat([1 - coefficients[layout.side].similarity for layout in self.layouts])
        names = [f"cka/{pair}" for layout in self.layouts for pair in layout.pairs]
        return {"cka": losses.mean(), **dict(zip(names, losses.unbind(), strict=True))}

    def _surrogate(self, student: ModelOutput, teacher: ModelOutput, coefficients: CkaCoefficients) -> Tensor:
        """sum(s * g) with g held fixed: its gradient in s is g."""
        sums = []
        for layout in self.layouts:
            states = [student.hidden[layout.side, layer] for layer in layout.student_layers]
            gradients = _row_gradients(layout, states, teacher, coefficients[layout.side])
            sums += [(state.to(g.dtype) * g).sum() for state, g in zip(states, gradients, strict=True)]
        return torch.stack(sums).sum()


def _moments(layout: SideLayout, student: ModelOutput, teacher: ModelOutput) -> SideMoments:
    students = [student.hidden[layout.side, layer] for layer in layout.student_layers]
    teachers = [teacher.hidden[layout.side, layer] for layer in layout.teacher_layers]
    dtype, device = working_dtype(*students, *teachers), students[0].device
    with torch.autocast(device.type, enabled=False):
        s, s_means = _centred(students, dtype)
        t, t_means = _centred(teachers, dtype)
        return SideMoments(
            rows=torch.tensor(float(len(s[0])), dtype=torch.float64, device=device),
            student_mean=s_means,
            teacher_mean=t_means,
            cross=torch.stack([t[j].T @ s[i] for i, j in layout.places()]),
            student=torch.stack([x.T @ x for x in s]),
            teacher=torch.stack([x.T @ x for x in t]),
        )


def _centred(states: Sequence[Tensor], dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
    wide = [state.to(dtype) for state in states]
    means = [x.sum(0) / max(len(x), 1) for x in wide]
    return [x - mean for x, mean in zip(wide, means, strict=True)], torch.stack(means)


def _merged(places: list[tuple[int, int]], first: SideMoments, second: SideMoments) -> SideMoments:
    rows = first.rows + second.rows
    share = second.rows / rows.clamp(min=1)
    to_student = second.student_mean - first.student_mean
    to_teacher = second.teacher_mean - first.teacher_mean
    summed = SideMoments(
        rows=rows,
        student_mean=first.student_mean + share.to(to_student) * to_student,
        teacher_mean=first.teacher_mean + share.to(to_teacher) * to_teacher,
        cross=first.cross + second.cross,
        student=first.student + second.student,
        teacher=first.teacher + second.teacher,
    )
    return _add_outer(places, summed, first.rows * share, to_student, to_teacher)


def _pooled(places: list[tuple[int, int]], moments: SideMoments, all_reduce: AllReduce) -> SideMoments:
    flat = torch.cat([moments.student_mean.flatten(), moments.teacher_mean.flatten()]).double()
    summed = all_reduce(torch.cat([moments.rows[None], moments.rows * flat]))
    rows, means = summed[0], (summed[1:] / summed[0].clamp(min=1)).to(moments.student_mean)
    student_mean = means[: moments.student_mean.numel()].view_as(moments.student_mean)
    teacher_mean = means[moments.student_mean.numel() :].view_as(moments.teacher_mean)
    own = _add_outer(
        places,
        SideMoments(
            rows, student_mean, teacher_mean, moments.cross.clone(), moments.student.clone(), moments.teacher.clone()
        ),
        moments.rows,
        moments.student_mean - student_mean,
        moments.teacher_mean - teacher_mean,
    )
    for matrices in (own.cross, own.student, own.teacher):
        all_reduce(matrices)
    return own


def _add_outer(
    places: list[tuple[int, int]], moments: SideMoments, weight: Tensor, student: Tensor, teacher: Tensor
) -> SideMoments:
    """Adds ``weight`` times the outer products of the mean differences ``student`` (L_s, d), ``teacher`` (L_t, p)."""
    scale = weight.to(student)
    for pair, (i, j) in enumerate(places):
        moments.cross[pair].addr_(teacher[j] * scale, student[i])
    for matrices, means in ((moments.student, student), (moments.teacher, teacher)):
        for layer, mean in enumerate(means):
            matrices[layer].addr_(mean * scale, mean)
    return moments


def _solved(places: list[tuple[int, int]], moments: SideMoments) -> SideCoefficients:
    c = _norms(moments.student, moments.student_mean, moments.rows)
    b = _norms(moments.teacher, moments.teacher_mean, moments.rows)
    a = torch.linalg.vector_norm(moments.cross.double(), dim=(1, 2))
    c, b = c[[i for i, _ in places]], b[[j for _, j in places]]
    # NaN compares false, so it is not taken for "no variance" and shows in the loss.
    void = (a == 0) | (b == 0) | (c == 0)
    a, b, c = (torch.where(void, 1.0, norm) for norm in (a, b, c))
    k = torch.where(void, 0.0, a / (b * c).sqrt())
    dtype = moments.cross.dtype
    return SideCoefficients(
        student_mean=moments.student_mean,
        teacher_mean=moments.teacher_mean,
        student_matrix=_scaled([moments.student[i] for i, _ in places], k / c**2, dtype),
        teacher_matrix=_scaled(list(moments.cross), k / a**2, dtype),
        similarity=k,
    )


def _norms(matrices: Tensor, means: Tensor, rows: Tensor) -> Tensor:
    """Frobenius norms (L,) in float64, 0 where the rows differ by no more than the rounding of their mean."""
    norms = torch.linalg.vector_norm(matrices.double(), dim=(1, 2))
    rounding = _CONSTANT_ROUNDINGS * torch.finfo(matrices.dtype).eps
    floor = rows * (rounding * torch.linalg.vector_norm(means.double(), dim=1)) ** 2
    return torch.where(norms <= floor, 0.0, norms)


def _scaled(matrices: list[Tensor], factors: Tensor, dtype: torch.dtype) -> Tensor:
    # In float64: 1 / |A|^2 of small states is beyond float32, A / |A|^2 is not.
    return torch.stack([(m.double() * f).to(dtype) for m, f in zip(matrices, factors, strict=True)])


@torch.no_grad()
def _row_gradients(
    layout: SideLayout, states: list[Tensor], teacher: ModelOutput, coefficients: SideCoefficients
) -> list[Tensor]:
    """g (N, d) of each student layer, summed over its pairs."""
    dtype = coefficients.student_matrix.dtype
    with torch.autocast(states[0].device.type, enabled=False):
        s = [x.to(dtype) - mean for x, mean in zip(states, coefficients.student_mean, strict=True)]
        t = [
            teacher.hidden[layout.side, layer].to(dtype) - mean
            for layer, mean in zip(layout.teacher_layers, coefficients.teacher_mean, strict=True)
        ]
        gradients = [torch.zeros_like(x) for x in s]
        for pair, (i, j) in enumerate(layout.places()):
            gradients[i].addmm_(s[i], coefficients.student_matrix[pair])
            gradients[i].addmm_(t[j], coefficients.teacher_matrix[pair], alpha=-1)
    return gradients
