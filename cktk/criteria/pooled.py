"""Losses of layer pairs with a closed gradient in each row, given sums over many rows: what they have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cktk.criteria.base import AllReduce, StatisticsLoss, working_dtype
from cktk.criteria.cka.moments import Centred, Order, SideMoments, SideRows
from cktk.criteria.layout import SideLayout
from cktk.protocols import LayerPair, ModelOutput, Side, Term

#: Variance below this many roundings of the mean is rounding itself: the features are constant.
_CONSTANT_ROUNDINGS = 16


class RowGradients(ABC):
    """The gradient of the loss in the student's rows, once all sums are known."""

    @abstractmethod
    def __call__(self, student: Tensor, teacher: Tensor) -> Tensor:
        """(P, N, d) from the centred rows of the pairs, (P, N, d) and (P, N, p)."""


@dataclass
class Solution:
    """The loss of each pair of a side, and what its gradient needs."""

    loss: Tensor  # (P,), float64
    gradients: RowGradients


@dataclass
class SideCoefficients:
    """A `Solution` and the means, (L_s, d) and (L_t, p), that rows are centred about; None: about their own."""

    solution: Solution
    means: tuple[Tensor, Tensor] | None


Statistics = dict[Side, SideMoments]
Coefficients = dict[Side, SideCoefficients]


class PooledLoss(StatisticsLoss):
    """A loss of all rows of the update (``scope`` "update") or of each micro-batch by itself ("micro").

    The terms are the sum over pairs; logged are the mean over pairs as `name`, and each pair. In scope "micro" a
    micro-batch without rows on any side gives 0. Sums are float32 under autocast too, or float64 where states or
    ``dtype`` are; what is solved from them is float64. NaN and infinity pass through to the pair that they are in.
    """

    name: str
    #: Which sums are wanted.
    order: Order = "second"

    def __init__(self, pairs: tuple[LayerPair, ...], scope: str, dtype: torch.dtype | None = None) -> None:
        super().__init__(pairs)
        self.scope = scope
        self.dtype = dtype
        self.layouts = SideLayout.all(pairs)

    @abstractmethod
    def solve(self, layout: SideLayout, moments: SideMoments) -> Solution:
        """The loss of the rows that ``moments`` are of."""

    @property
    def collects(self) -> Literal["no", "before", "along"]:
        return "no" if self.scope == "micro" else "before"

    @property
    def pooled(self) -> bool:
        return self.scope != "micro"

    @torch.no_grad()
    def statistics(self, student: ModelOutput, teacher: ModelOutput, prior: Statistics | None = None) -> Statistics:
        """Moments of one micro-batch, added to ``prior`` in place."""
        found: Statistics = {} if prior is None else prior
        for layout in self.layouts:
            rows = self._rows(layout, student, teacher)
            if layout.side not in found:
                found[layout.side] = SideMoments.zeros(layout, rows, self.order)
            with torch.autocast(rows.student.mean.device.type, enabled=False):
                self._collect(layout, found[layout.side], rows)
        return found

    @torch.no_grad()
    def pool(self, statistics: Statistics, all_reduce: AllReduce) -> Statistics:
        """Moments of all ranks' rows about their common means; ``statistics`` are used up."""
        for layout in self.layouts:
            statistics[layout.side].pool(layout, all_reduce)
        return statistics

    @torch.no_grad()
    def coefficients(self, pooled: Statistics) -> Coefficients:
        """The losses, and what the gradient needs; ``pooled`` is emptied, whoever else holds it, unless kept."""
        found = {layout.side: self._solved(layout, pooled[layout.side]) for layout in self.layouts}
        if not self.keeps_state:
            pooled.clear()  # the largest of all that an update holds beside the models
        return found

    def terms(self, student: ModelOutput, teacher: ModelOutput, coefficients: Any = None) -> list[Term]:
        """One term. Unless the scope is "micro", its total is a zero that has the gradient.

        Raises `ValueError` where a gradient is wanted without the coefficients that it needs.
        """
        if self.scope == "micro":
            return [self._micro_term(student, teacher)]
        if coefficients is None:
            if torch.is_grad_enabled():
                raise ValueError(f"{self.name} of scope {self.scope} needs the coefficients of the update's statistics")
            return []  # in evaluation the value comes from `pooled_term`
        totals = [self._surrogate(layout, student, teacher, coefficients[layout.side]) for layout in self.layouts]
        return [replace(self.pooled_term(coefficients), total=torch.stack(totals).sum())]

    def pooled_term(self, coefficients: Coefficients) -> Term:
        """The loss of all pooled rows: its value without a gradient."""
        losses = {side: found.solution.loss for side, found in coefficients.items()}
        value = torch.cat(list(losses.values())).sum()
        return Term(self.name, value, "update", parts=self._parts(losses), value=value)

    def _collect(self, layout: SideLayout, moments: SideMoments, rows: SideRows) -> None:
        moments.join(layout, rows)

    def _solved(self, layout: SideLayout, moments: SideMoments) -> SideCoefficients:
        return SideCoefficients(self.solve(layout, moments), (moments.student.mean, moments.teacher.mean))

    def _solve_alone(self, layout: SideLayout, rows: SideRows) -> Solution:
        """The loss of ``rows`` by themselves."""
        moments = SideMoments.zeros(layout, rows, self.order)
        moments.join(layout, rows)
        return self.solve(layout, moments)

    def _gradient_factor(self, rows: SideRows) -> float:
        """What the scope multiplies the gradient of ``rows`` by."""
        del rows
        return 1.0

    def _micro_term(self, student: ModelOutput, teacher: ModelOutput) -> Term:
        losses, totals = {}, []
        dummy = not any(len(state) for state in student.hidden.values())
        for layout in self.layouts:
            with torch.no_grad(), torch.autocast(next(iter(student.hidden.values())).device.type, enabled=False):
                rows = self._rows(layout, student, teacher)
                solution = self._solve_alone(layout, rows)
                losses[layout.side] = torch.zeros_like(solution.loss) if dummy else solution.loss
            totals.append(self._attach(layout, student, rows, solution, losses[layout.side].sum()))
        return Term(self.name, torch.stack(totals).sum(), "microbatch", parts=self._parts(losses))

    def _surrogate(
        self, layout: SideLayout, student: ModelOutput, teacher: ModelOutput, coefficients: SideCoefficients
    ) -> Tensor:
        """A zero whose gradient in the student's states is that of the side's loss."""
        if not torch.is_grad_enabled():
            return next(iter(student.hidden.values())).new_zeros((), dtype=torch.float32)
        rows = self._rows(layout, student, teacher, coefficients.means)
        return self._attach(layout, student, rows, coefficients.solution, rows.student.stack.new_zeros(()))

    def _attach(
        self, layout: SideLayout, student: ModelOutput, rows: SideRows, solution: Solution, value: Tensor
    ) -> Tensor:
        """``value``, in the dtype of ``rows``, with the solution's gradient in the student's states."""
        value = value.to(rows.student.stack)
        if not torch.is_grad_enabled():
            return value
        with torch.no_grad(), torch.autocast(value.device.type, enabled=False):
            pairs = layout.student_of_pairs(rows.student.rows), layout.teacher_of_pairs(rows.teacher.rows)
            gradients = solution.gradients(*pairs)
            if (factor := self._gradient_factor(rows)) != 1:
                gradients *= factor
            layers = layout.sum_by_student(gradients).unbind()
        total: Tensor = _ClosedForm.apply(value, layers, *layout.student_states(student))  # type: ignore[no-untyped-call]
        return total

    @torch.no_grad()
    def _rows(
        self,
        layout: SideLayout,
        student: ModelOutput,
        teacher: ModelOutput,
        means: tuple[Tensor, Tensor] | None = None,
    ) -> SideRows:
        students, teachers = layout.student_states(student), layout.teacher_states(teacher)
        dtype = self._working_dtype(student, teacher)
        student_mean, teacher_mean = means or (None, None)
        return SideRows(Centred.of(students, dtype, student_mean), Centred.of(teachers, dtype, teacher_mean))

    def _working_dtype(self, student: ModelOutput, teacher: ModelOutput) -> torch.dtype:
        return self.dtype or working_dtype(*student.hidden.values(), *teacher.hidden.values())

    def _parts(self, losses: Mapping[Side, Tensor]) -> dict[str, Tensor]:
        names = [f"{self.name}/{pair}" for layout in self.layouts for pair in layout.pairs]
        flat = torch.cat([losses[layout.side] for layout in self.layouts])
        return {self.name: flat.mean(), **dict(zip(names, flat.unbind(), strict=True))}


class _ClosedForm(torch.autograd.Function):
    """``value`` as a function of ``states`` whose gradients are known."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: Sequence[Tensor], *states: Tensor) -> Tensor:
        ctx.save_for_backward(*gradients)
        ctx.dtypes = [state.dtype for state in states]
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        found = [
            (gradient * outer).to(dtype) if needed else None
            for gradient, dtype, needed in zip(ctx.saved_tensors, ctx.dtypes, ctx.needs_input_grad[2:], strict=True)
        ]
        return None, None, *found


def varied(norms: Tensor, level: Tensor, dtype: torch.dtype) -> Tensor:
    """``norms`` (L,), of degree 2 in the rows, with 0 where rows differ by no more than the rounding of their mean.

    ``level`` is that of `ModelMoments`, ``dtype`` the one of the sums. NaN is not "no variance", and stays.
    """
    floor = (_CONSTANT_ROUNDINGS * torch.finfo(dtype).eps) ** 2 * level
    return torch.where(norms <= floor, 0.0, norms)


def scaled(matrices: Tensor, factors: Tensor) -> Tensor:
    """``matrices`` (K, v, w) times ``factors`` (K,), in two steps: the factor itself may be beyond float32."""
    roots = factors.abs().sqrt().to(matrices)[:, None, None]
    return (matrices * roots).mul_(roots * factors.sign().to(matrices)[:, None, None])
