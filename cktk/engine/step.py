"""One micro-batch through student and criterion, as one module, so that DDP sees everything that trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from cktk.engine.totals import Totals
from cktk.protocols import Adapter, Batch, HeadParams, ModelOutput, Needs, Term, Unit


class TrainCriterion(Protocol):
    """What the engine asks of a criterion (an ``nn.Module``)."""

    uses_statistics: bool

    def needs(self) -> Needs: ...

    def statistics(self, student: ModelOutput, teacher: ModelOutput) -> Any: ...

    def merge(self, first: Any, second: Any) -> Any: ...

    def coefficients(self, statistics: Any, all_reduce: Callable[[Tensor], Tensor]) -> Any: ...

    def pooled_term(self, coefficients: Any) -> Term: ...

    def __call__(
        self,
        student: ModelOutput,
        teacher: ModelOutput | None,
        labels: Tensor,
        head: HeadParams,
        teacher_head: HeadParams | None,
        coefficients: Any = None,
    ) -> list[Term]: ...


@dataclass
class Autocast:
    """Mixed precision: None computes in float32."""

    device_type: str
    dtype: torch.dtype | None

    def __call__(self) -> torch.autocast:
        return torch.autocast(self.device_type, dtype=self.dtype or torch.bfloat16, enabled=self.dtype is not None)


class FrozenTeacher:
    """The teacher: eval mode, no gradients, outside any wrapper.

    Its states are computed under ``no_grad`` and not as inference tensors, which autograd could not save for backward.
    """

    def __init__(self, model: nn.Module, adapter: Adapter, needs: Needs, autocast: Autocast) -> None:
        self.model = model.eval().requires_grad_(False)
        self._adapter = adapter
        self._request = needs.request("teacher", head=needs.teacher_head)
        self._autocast = autocast
        self.head = adapter.head() if needs.teacher_head else None

    @torch.no_grad()
    def states(self, batch: Batch) -> ModelOutput:
        """The states that the criterion needs of ``batch``, packed."""
        with self._autocast():
            return self._adapter(batch, self._request)


@dataclass
class StepOutput:
    """What one micro-batch gives: ``loss`` for backward, ``totals`` to log, and what a statistics criterion keeps."""

    loss: Tensor
    totals: Totals
    statistics: Any = None
    coefficients: Any = None


class Step(nn.Module):
    """Student and criterion.

    ``forward`` has three phases. ``"statistics"`` runs the student's trunk and returns the criterion's additive
    statistics. ``"loss"`` runs everything; given ``coefficients`` it uses them (a replay), otherwise it first adds its
    own statistics to ``prior``, reduces over all ranks and derives them: the last micro-batch of an update needs no
    replay, and an update of one micro-batch needs one pass only. ``"evaluate"`` returns the additive terms and the
    statistics, for validation.
    """

    def __init__(
        self,
        student: nn.Module,
        adapter: Adapter,
        criterion: nn.Module,
        teacher: FrozenTeacher | None,
        autocast: Autocast,
        all_reduce: Callable[[Tensor], Tensor],
    ) -> None:
        super().__init__()
        self.student = student
        self.criterion = criterion
        self.all_reduce = all_reduce
        self._adapter = adapter
        self._needs = self.train_criterion.needs()
        self._teacher_head = teacher.head if teacher else None
        self._autocast = autocast

    @property
    def train_criterion(self) -> TrainCriterion:
        """The criterion under the type that the engine uses it by."""
        return self.criterion  # type: ignore[return-value]

    def forward(
        self,
        phase: Literal["statistics", "loss", "evaluate"],
        batch: Batch,
        teacher: ModelOutput | None,
        factors: Mapping[Unit, float] | None = None,
        prior: Any = None,
        coefficients: Any = None,
    ) -> Any:
        """See the class. ``factors`` are what a unit's sum is multiplied by: world size / global count."""
        criterion = self.train_criterion
        with self._autocast():
            states = self._adapter(batch, self._needs.request("student", head=phase != "statistics"))
        statistics = None
        if criterion.uses_statistics and coefficients is None:
            assert teacher is not None
            statistics = criterion.statistics(states, teacher)
            if phase == "statistics":
                return statistics
            if phase == "loss":
                total = statistics if prior is None else criterion.merge(prior, statistics)
                coefficients = criterion.coefficients(total, self.all_reduce)
        with self._autocast():
            labels = batch.labels[batch.rows("decoder")]
            terms = criterion(states, teacher, labels, self._adapter.head(), self._teacher_head, coefficients)
        output = weigh(terms, factors or {})
        output.statistics, output.coefficients = statistics, coefficients
        return output


def weigh(terms: list[Term], factors: Mapping[Unit, float]) -> StepOutput:
    """Add the terms up, each times its weight and its unit's factor (1 where none is given)."""
    loss = torch.stack([term.total * (term.weight * factors.get(term.unit, 1.0)) for term in terms]).sum()
    totals = Totals()
    for term in terms:
        totals.take(term)
    return StepOutput(loss, totals)
