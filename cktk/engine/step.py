"""One micro-batch through student and criterion, as one module, so that DDP sees everything that trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from cktk.engine.teacher import Autocast, Teacher
from cktk.engine.totals import Totals
from cktk.protocols import Adapter, Batch, HeadParams, ModelOutput, Needs, Term, Unit


class TrainCriterion(Protocol):
    """What the engine asks of a criterion (an ``nn.Module``)."""

    collects: Literal["no", "before", "along"]
    pooled: bool
    keeps_state: bool

    def needs(self) -> Needs: ...

    def statistics(self, student: ModelOutput, teacher: ModelOutput, prior: Any = None) -> Any: ...

    def pool(self, statistics: Any, all_reduce: Callable[[Tensor], Tensor]) -> Any: ...

    def coefficients(self, pooled: Any) -> Any: ...

    def pooled_term(self, coefficients: Any) -> Term: ...

    def advance(self, pooled: Any) -> None: ...

    def __call__(
        self,
        student: ModelOutput,
        teacher: ModelOutput | None,
        labels: Tensor,
        head: HeadParams | None,
        teacher_head: HeadParams | None,
        coefficients: Any = None,
    ) -> list[Term]: ...


@runtime_checkable
class StagedCriterion(Protocol):
    """What a criterion (an ``nn.Module``) offers in the place of `TrainCriterion` if its loss changes in the course of
    a run. What is frozen, or takes no part in a stage, keeps its place in the optimizer.
    """

    @property
    def current(self) -> TrainCriterion:
        """The criterion of the present stage; in eval mode one that is the same in all stages."""

    @property
    def whole(self) -> TrainCriterion:
        """One that looks at all that any stage looks at."""

    @property
    def stage(self) -> int:
        """The number of the present stage, from 1."""

    @property
    def plan(self) -> Sequence[tuple[str, Needs]]:
        """All stages in order: what is trained, in words, and what is looked at."""

    @property
    def body_frozen(self) -> bool:
        """Whether only the output head is trained now."""

    @property
    def freezes_body(self) -> bool:
        """Whether that is so in any stage."""

    def observe(self, values: Mapping[str, float], counts: Mapping[Unit, int]) -> None:
        """Take in the averages of an update, the same on all ranks."""

    def end_epoch(self) -> bool:
        """An epoch is over; whether that ends the stage."""

    def next_stage(self) -> None:
        """Go on to the next stage, whatever the rule says."""

    @property
    def epochs_before_last(self) -> int | None:
        """After how many epochs the last stage begins; None where that depends on losses."""

    def stage_figures(self) -> dict[str, float]:
        """Numbers to log where a stage begins."""

    def stage_state(self) -> dict[str, Any]:
        """All that decides about further stages, JSON-ready."""

    def load_stage_state(self, state: Mapping[str, Any]) -> None:
        """Go on from there; raises `CheckpointError` for the state of other stages."""


@dataclass
class StepOutput:
    """What one micro-batch gives: ``loss`` for backward, ``totals`` to log, and what a statistics criterion goes on by.

    ``statistics`` are those of the micro-batches so far, ``coefficients`` come from those of the whole update, which a
    criterion that keeps state sees again as ``pooled``. ``digest`` tells one run over a micro-batch from another.
    """

    loss: Tensor
    totals: Totals
    statistics: Any = None
    pooled: Any = None
    coefficients: Any = None
    digest: Tensor | None = None


@dataclass
class FirstPass:
    """What a micro-batch gives in the first of two passes: the statistics so far, and a `digest` of its states."""

    statistics: Any
    digest: Tensor | None


class Step(nn.Module):
    """Student and criterion.

    ``forward`` has three phases. ``"statistics"`` runs the student's trunk and adds the criterion's statistics to
    ``prior``. ``"loss"`` runs everything; given ``coefficients`` it uses them (a replay), otherwise, for a criterion
    that needs some, it first adds its own statistics to ``prior``, pools over all ranks and derives them: the last
    micro-batch of an update needs no replay, and an update of one micro-batch needs one pass only. ``"evaluate"``
    returns the additive terms and the statistics, for validation.
    """

    def __init__(
        self,
        student: nn.Module,
        adapter: Adapter,
        criterion: nn.Module,
        teacher: Teacher | None,
        autocast: Autocast,
        all_reduce: Callable[[Tensor], Tensor],
    ) -> None:
        super().__init__()
        self.student = student
        self.criterion = criterion
        self.all_reduce = all_reduce
        self._adapter = adapter
        #: Whose head the criterion is shown.
        self.teacher = teacher
        self._autocast = autocast
        #: Whether passes digest their states; the updater ends it once it trusts its replays.
        self.digests = True

    @property
    def train_criterion(self) -> TrainCriterion:
        """The criterion of the moment under the type that the engine uses it by."""
        if isinstance(self.criterion, StagedCriterion):
            return self.criterion.current
        return self.criterion  # type: ignore[return-value]

    def all_needs(self) -> Needs:
        """What the criterion wants at any time of the run."""
        return whole(self.criterion).needs()

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
        needs = criterion.needs()
        with self._autocast():
            with_head = phase != "statistics" and needs.student_head
            states = self._adapter(batch, needs.request("student", head=with_head))
        if phase == "statistics":
            found = criterion.statistics(states, _given(teacher), prior)
            return FirstPass(found, digest(states) if self.digests else None)
        statistics = pooled = None
        if phase == "evaluate":
            if criterion.pooled and teacher is not None:
                statistics = criterion.statistics(states, teacher, prior)
        elif criterion.collects == "along":
            statistics = criterion.statistics(states, _given(teacher), prior)
        elif criterion.collects == "before" and coefficients is None:
            pooled = criterion.pool(criterion.statistics(states, _given(teacher), prior), self.all_reduce)
            coefficients = criterion.coefficients(pooled)
            pooled = pooled if criterion.keeps_state else None
        with self._autocast():
            labels = batch.labels[batch.rows("decoder")]
            head = self._adapter.head() if with_head else None
            teacher_head = self.teacher.head if self.teacher else None
            terms = criterion(states, teacher, labels, head, teacher_head, coefficients)
        output = weigh(terms, factors or {})
        output.statistics, output.pooled, output.coefficients = statistics, pooled, coefficients
        if self.digests and criterion.collects == "before":
            output.digest = digest(states)
        return output


def whole(criterion: nn.Module) -> TrainCriterion:
    """``criterion``, or what looks at all that any of its stages looks at."""
    return criterion.whole if isinstance(criterion, StagedCriterion) else criterion  # type: ignore[return-value]


def digest(states: ModelOutput) -> Tensor:
    """A number a matched state, equal where two runs gave the same values (and next to never otherwise)."""
    with torch.no_grad():
        matched = [*states.hidden.values(), *states.first.values()]
        sums = [state.detach().sum(dtype=torch.float64) for state in matched]
        return torch.stack(sums) if sums else torch.zeros(0)


def _given(teacher: ModelOutput | None) -> ModelOutput:
    if teacher is None:
        raise ValueError("the criterion's statistics need a teacher")
    return teacher


def weigh(terms: list[Term], factors: Mapping[Unit, float]) -> StepOutput:
    """Add the terms up, each times its weight and its unit's factor (1 where none is given)."""
    weighed = [term.total * (term.weight * factors.get(term.unit, 1.0)) for term in terms]
    loss = torch.stack(weighed).sum() if weighed else torch.zeros(())
    totals = Totals()
    for term in terms:
        totals.take(term)
    return StepOutput(loss, totals)
