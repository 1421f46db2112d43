"""Second moments of the matched layers of one side, about common means, over any number of micro-batches and ranks.

Matrices centred on their own means cannot be summed. They are joined as Chan, Golub and LeVeque do it: to the moments
of n_1 rows and of n_2 rows comes the outer product of the difference of the two means times n_1 n_2 / (n_1 + n_2).
Here that is one more row under the n_2 rows, so that one product of matrices, in place, does it all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from cktk.criteria.base import AllReduce
from cktk.criteria.cka import symmetric
from cktk.criteria.cka.fourth_moments import FourthMoments, ProductSums, Shift, ShiftedRows
from cktk.criteria.layout import SideLayout

#: What is summed beside T'S: the squares of all features, S'S and T'T, or these and the fourth moments.
Order = Literal["squares", "second", "fourth"]


@dataclass
class Centred:
    """Layers (L, N, w) less their means (L, w), stacked above one spare row of zeros: (L, N + 1, w).

    Means are float64: rounded as the rows are, a mean of a thousand deviations would cost the gradient four digits.
    """

    stack: Tensor
    mean: Tensor

    @classmethod
    def of(cls, states: Sequence[Tensor], dtype: torch.dtype, mean: Tensor | None = None) -> Centred:
        """``states`` (N, w) in ``dtype``, about ``mean`` (L, w) or else about their own means."""
        rows, width = states[0].shape
        if mean is None:
            rough = torch.stack([state.sum(0, dtype=dtype) for state in states]) / max(rows, 1)
        else:
            rough = mean.to(dtype)
        stack = torch.empty(len(states), rows + 1, width, dtype=dtype, device=states[0].device)
        stack[:, rows] = 0
        for out, state, middle in zip(stack, states, rough, strict=True):
            torch.sub(state, middle, out=out[:rows])
        if dtype == torch.float64:
            return cls(stack, rough)
        rest = stack.sum(1) / max(rows, 1) if mean is None else (mean - rough.double()).to(dtype)
        stack[:, :rows] -= rest[:, None]
        return cls(stack, rough.double() + rest.double())

    @property
    def rows(self) -> Tensor:
        return self.stack[:, :-1]

    def __len__(self) -> int:
        return self.stack.shape[1] - 1

    def level(self) -> Tensor:
        """N |mean|^2 (L,) in float64."""
        return len(self) * self.mean.square().sum(-1)


@dataclass
class SideRows:
    """The centred rows of a micro-batch on one side."""

    student: Centred
    teacher: Centred

    def __len__(self) -> int:
        return len(self.student)


@dataclass
class ModelMoments:
    """Of the L layers of one model: means, moments about the means, and how far from zero the rows were."""

    mean: Tensor  # (L, w), float64
    second: Tensor  # X'X (L, w, w), see `symmetric`; or |X|^2 (L,) in float64
    level: Tensor  # sum of n |mean|^2 over micro-batches (L,), float64

    @classmethod
    def zeros(cls, rows: Centred, order: Order) -> ModelMoments:
        layers, width = rows.mean.shape
        level = torch.zeros(layers, dtype=torch.float64, device=rows.mean.device)
        second = torch.zeros_like(level) if order == "squares" else rows.stack.new_zeros(layers, width, width)
        return cls(torch.zeros_like(rows.mean), second, level)

    def add_products(self, rows: Tensor) -> None:
        """Add to the second moments those of ``rows`` (L, R, w)."""
        if self.second.dim() == 1:
            self.second += torch.linalg.vector_norm(rows, dim=2).double().square().sum(-1)
        else:
            symmetric.add_squares(self.second, rows)


@dataclass
class SideMoments:
    """Row count, means, moments about those means and cross moments of the layers and P pairs of one side."""

    rows: Tensor  # (), float64
    student: ModelMoments
    teacher: ModelMoments
    cross: Tensor  # A = T'S (P, p, d)
    fourth: FourthMoments | None = None

    @classmethod
    def zeros(cls, layout: SideLayout, rows: SideRows, order: Order) -> SideMoments:
        """No rows yet; ``rows`` give widths, dtype and device."""
        (student_layers, d), (teacher_layers, p) = rows.student.mean.shape, rows.teacher.mean.shape
        like, pairs, fourth = rows.student.stack, len(layout.pairs), None
        if order == "fourth":
            sizes = ((pairs, d, p), (student_layers, d, d), (teacher_layers, p, p))
            fourth = FourthMoments(*(ProductSums.zeros(*size, like.device) for size in sizes))
        student, teacher = ModelMoments.zeros(rows.student, order), ModelMoments.zeros(rows.teacher, order)
        count = torch.zeros((), dtype=torch.float64, device=like.device)
        return cls(count, student, teacher, like.new_zeros(pairs, p, d), fourth)

    def join(self, layout: SideLayout, rows: SideRows) -> None:
        """Make these the moments of their rows and ``rows`` together, about their common means."""
        total = self.rows + len(rows)
        share = len(rows) / total.clamp(min=1)
        weight = (self.rows * share).sqrt()
        shifts = []
        for model, more in ((self.student, rows.student), (self.teacher, rows.teacher)):
            difference = more.mean - model.mean
            more.stack[:, -1] = weight * difference
            shifts.append(share * difference)
            model.mean += shifts[-1]
            model.level += more.level()
        if self.fourth is not None:
            self._move_fourth(layout, *(-shift for shift in shifts))
            student = ShiftedRows.about(rows.student.rows, rows.student.mean - self.student.mean)
            teacher = ShiftedRows.about(rows.teacher.rows, rows.teacher.mean - self.teacher.mean)
            self.fourth.pairs.add(student.of(layout.student_of_pairs), teacher.of(layout.teacher_of_pairs))
            self.fourth.student.add(student, student)
            self.fourth.teacher.add(teacher, teacher)
        self._add_products(layout, rows.student.stack, rows.teacher.stack)
        self.rows = total

    def add_covariance(self, layout: SideLayout, rows: SideRows) -> None:
        """Add the covariances of ``rows`` (used up) about their own means; fewer than two rows have none.

        Means are not kept, and ``rows`` then counts micro-batches.
        """
        if len(rows) < 2:
            return
        for model, more in ((self.student, rows.student), (self.teacher, rows.teacher)):
            model.level += more.level() / (len(rows) - 1)
            more.stack /= math.sqrt(len(rows) - 1)
        self._add_products(layout, rows.student.stack, rows.teacher.stack)
        self.rows = self.rows + 1

    def pool(self, layout: SideLayout, all_reduce: AllReduce) -> None:
        """Make these the moments of all ranks' rows: the means first, then the moments about the common means."""
        student, teacher = self.student, self.teacher
        own = [self.rows[None], *(self.rows * m.mean.flatten() for m in (student, teacher))]
        rows, *means = _split(all_reduce(torch.cat(own)), own)
        shifts = []
        for model, mean in zip((student, teacher), means, strict=True):
            common = (mean / rows.clamp(min=1)).view_as(model.mean)
            shifts.append(model.mean - common)
            model.mean = common
        if self.fourth is not None:
            self._move_fourth(layout, *shifts)
        extra = [(self.rows.sqrt() * shift).to(self.cross).unsqueeze(1) for shift in shifts]
        self._add_products(layout, extra[0], extra[1])
        self.add_up(all_reduce)

    def add_up(self, all_reduce: AllReduce) -> None:
        """Sum everything but the means over ranks."""
        small = [self.rows[None], self.student.level, self.teacher.level]
        if self.fourth is not None:
            small += self.fourth.tensors()
        summed = _split(all_reduce(torch.cat([t.flatten() for t in small])), small)
        for tensor, total in zip(small[1:], summed[1:], strict=True):
            tensor.copy_(total.view_as(tensor))
        self.rows = summed[0][0]
        self.cross = all_reduce(self.cross)
        self.student.second, self.teacher.second = all_reduce(self.student.second), all_reduce(self.teacher.second)

    def _add_products(self, layout: SideLayout, student: Tensor, teacher: Tensor) -> None:
        self.cross.baddbmm_(layout.teacher_of_pairs(teacher).mT, layout.student_of_pairs(student))
        self.student.add_products(student)
        self.teacher.add_products(teacher)

    def _move_fourth(self, layout: SideLayout, student: Tensor, teacher: Tensor) -> None:
        """Rows x become x + shift, for the shifts (L_s, d) and (L_t, p) of both models."""
        assert self.fourth is not None
        s = Shift(student, symmetric.traces(self.student.second))
        t = Shift(teacher, symmetric.traces(self.teacher.second))
        pairs = s.of(layout.student_of_pairs), t.of(layout.teacher_of_pairs)
        self.fourth.pairs.move(self.rows, *pairs, self.cross.mT)
        self.fourth.student.move(self.rows, s, s, symmetric.mirror(self.student.second))
        self.fourth.teacher.move(self.rows, t, t, symmetric.mirror(self.teacher.second))


def _split(flat: Tensor, like: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return torch.split(flat, [tensor.numel() for tensor in like])
