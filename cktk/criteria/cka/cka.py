"""Centred kernel alignment (CKA) of hidden states ("Improving Language Model Distillation through Hidden State
Matching", eq. 3 and 4), over micro-batches, whole updates or moving averages. The formulas are in `cka_forms`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from cktk.criteria.base import AllReduce
from cktk.criteria.cka import cka_forms
from cktk.criteria.cka.cka_forms import Form
from cktk.criteria.cka.moments import SideMoments, SideRows
from cktk.criteria.cka.running import RunningMoments
from cktk.criteria.layout import SideLayout
from cktk.criteria.pooled import Coefficients, PooledLoss, SideCoefficients, Solution, Statistics
from cktk.errors import ConfigError
from cktk.protocols import LayerPair, ModelOutput, Side, Term, Unit

Scope = Literal["update", "summed", "micro", "running"]

_TOKENS: dict[Side, Unit] = {"encoder": "source_token", "decoder": "target_token"}


@dataclass(frozen=True)
class CkaOptions:
    """See `cktk.criteria.configs.CkaKdConfig`; ``dtype`` None is float32, or float64 for float64 states."""

    scope: Scope = "update"
    form: Form = "sqrt"
    momentum: float = 0.9
    eps: float = 0.0
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        if self.form == "debiased" and self.scope in ("summed", "running"):
            raise ConfigError(
                f"--cka-form debiased has no --cka-scope {self.scope}: use --cka-scope update or micro, or another form"
            )


class Cka(PooledLoss):
    """1 - CKA, summed over layer pairs. Scopes:

    - "update": of all rows of the update on all ranks about their common means, however they are split. Two passes.
    - "summed": of the sums, over micro-batches and ranks, of covariances about each micro-batch's own means
      (eq. 4). Micro-batches of one row have no part. Two passes.
    - "micro": of each micro-batch by itself. From N x N or from feature matrices, whichever is cheaper.
    - "running": gradients with moving averages over the updates before, so that one pass is enough; biased. The value
      is that of the averages. The first update, which has none before it, takes two passes and uses its own.
      In evaluation exact over the split, as "update".

    Without variance in either model (or with too few rows: one, three for "debiased") a pair's loss is 1 and its
    gradient 0. ``eps`` is added to the norms of M and Q as the scope sums them. ``widths`` are student's and teacher's.
    """

    name = "cka"

    def __init__(
        self,
        pairs: tuple[LayerPair, ...],
        widths: Mapping[Side, tuple[int, int]],
        options: CkaOptions = CkaOptions(),
    ) -> None:
        super().__init__(pairs, options.scope, options.dtype)
        self.options = options
        self.order = "fourth" if options.form == "debiased" else "second"
        dtype, beta = options.dtype or torch.float32, options.momentum
        averaged = self.layouts if options.scope == "running" else []
        self.averages = nn.ModuleDict({x.side: RunningMoments(x, widths[x.side], beta, dtype) for x in averaged})
        # Solved once an update: the averages that this is of, their version, and the coefficients.
        self._solved_averages: tuple[list[Tensor], list[int], Coefficients] | None = None

    @property
    def collects(self) -> Literal["no", "before", "along"]:
        if self.scope == "running" and all(average.updates > 0 for average in self._running()):
            return "along"
        return super().collects

    def solve(self, layout: SideLayout, moments: SideMoments) -> Solution:
        return cka_forms.from_moments(layout, moments, self.options.form, self.options.eps)

    def pool(self, statistics: Statistics, all_reduce: AllReduce) -> Statistics:
        if self.scope != "summed":
            return super().pool(statistics, all_reduce)
        for moments in statistics.values():
            moments.add_up(all_reduce)
        return statistics

    def terms(self, student: ModelOutput, teacher: ModelOutput, coefficients: Any = None) -> list[Term]:
        """See `PooledLoss`. Those of averages are per token: a gradient on each side, and the value beside them."""
        if coefficients is None and torch.is_grad_enabled() and self.collects == "along":
            return self._lagged_terms(student, teacher)
        return super().terms(student, teacher, coefficients)

    @property
    def keeps_state(self) -> bool:
        return self.scope == "running"

    def advance(self, pooled: Statistics) -> None:
        """Move the averages of scope "running"."""
        for layout, average in zip(self.layouts, self._running(), strict=True):
            average.advance(pooled[layout.side])

    def _running(self) -> list[RunningMoments]:
        return [cast(RunningMoments, self.averages[layout.side]) for layout in self.layouts]

    def _collect(self, layout: SideLayout, moments: SideMoments, rows: SideRows) -> None:
        if self.scope == "summed":
            moments.add_covariance(layout, rows)
        else:
            moments.join(layout, rows)

    def _solved(self, layout: SideLayout, moments: SideMoments) -> SideCoefficients:
        found = super()._solved(layout, moments)
        return replace(found, means=None) if self.scope == "summed" else found

    def _gradient_factor(self, rows: SideRows) -> float:
        if self.scope != "summed":
            return 1.0
        return 1 / (len(rows) - 1) if len(rows) > 1 else 0.0

    def _solve_alone(self, layout: SideLayout, rows: SideRows) -> Solution:
        if self.options.form != "debiased" and cka_forms.gram_is_cheaper(layout, rows):
            return cka_forms.from_rows(layout, rows, self.options.form, self.options.eps)
        return super()._solve_alone(layout, rows)

    def _lagged_terms(self, student: ModelOutput, teacher: ModelOutput) -> list[Term]:
        coefficients = self._lagged_coefficients(self._working_dtype(student, teacher))
        pooled = self.pooled_term(coefficients)
        assert pooled.parts is not None
        terms = [replace(pooled, total=torch.zeros_like(pooled.total), parts={self.name: pooled.parts[self.name]})]
        for layout in self.layouts:
            found = coefficients[layout.side]
            total = self._surrogate(layout, student, teacher, found)
            # The averages hide NaN and infinity of the micro-batch at hand, which have to show in what is logged.
            losses = len(student.hidden[layout.side, layout.student_layers[0]]) * found.solution.loss
            losses = losses + _nan_if_not_finite(layout, student, teacher)
            parts = dict(zip((f"{self.name}/{pair}" for pair in layout.pairs), losses.unbind(), strict=True))
            terms.append(Term(self.name, total, _TOKENS[layout.side], parts=parts))
        return terms

    @torch.no_grad()
    def _lagged_coefficients(self, dtype: torch.dtype) -> Coefficients:
        """Those of the averages as they are."""
        running = self._running()
        tensors, versions = [x.cross for x in running], [x.cross._version for x in running]
        known = self._solved_averages
        if known is None or known[1] != versions or any(a is not b for a, b in zip(known[0], tensors, strict=True)):
            moments = [average.moments(dtype) for average in running]
            found = {x.side: self._solved(x, one) for x, one in zip(self.layouts, moments, strict=True)}
            known = self._solved_averages = tensors, versions, found
        return known[2]


@torch.no_grad()
def _nan_if_not_finite(layout: SideLayout, student: ModelOutput, teacher: ModelOutput) -> Tensor:
    """Zero for each pair (P,), NaN where a state is not finite."""
    zeros = [
        torch.stack([0 * state.sum(dtype=torch.float32) for state in states]).double()
        for states in (layout.student_states(student), layout.teacher_states(teacher))
    ]
    return layout.student_of_pairs(zeros[0]) + layout.teacher_of_pairs(zeros[1])
