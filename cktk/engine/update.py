"""One update of the student: counts first, then one or two passes over its micro-batches, then one optimizer step.

Every term of the loss is divided by its global count before its backward, so the result depends neither on how the
update is split into micro-batches nor on how they are dealt to ranks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from cktk.distributed.world import World
from cktk.engine.step import FrozenTeacher, Step
from cktk.engine.totals import Totals, global_counts
from cktk.errors import CktkError
from cktk.protocols import Batch, ModelOutput, Unit
from cktk.utils.rng import seed_everything_from

#: Updates that may be skipped in a row for overflow: enough for a loss scale of 2^16 to reach 2^-24.
MOST_SKIPS = 40


@dataclass
class UpdateResult:
    """What an update did: averages of the loss's parts, global counts, gradient norm before clipping, stop wishes."""

    values: dict[str, float]
    counts: dict[Unit, int]
    grad_norm: float
    skipped: bool
    stop: bool


class Updater:
    """Runs updates. ``module`` is the `Step`, possibly wrapped; ``scaler`` is enabled for float16 only."""

    def __init__(
        self,
        module: nn.Module,
        step: Step,
        teacher: FrozenTeacher | None,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        world: World,
        clip_norm: float,
        seed: int,
    ) -> None:
        self.module, self.step, self.teacher = module, step, teacher
        self.optimizer, self.scaler, self.world = optimizer, scaler, world
        self._clip_norm = clip_norm or math.inf
        self._seed = seed
        self._skips = 0
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def run(self, batches: Sequence[Batch], update: int, lr: float, stop: bool = False) -> UpdateResult:
        """Make update number ``update`` (0-based) from this rank's micro-batches.

        ``stop`` is this rank's wish to stop; the result carries whether any rank wishes so, known to all alike.
        """
        self.step.train()
        batches = [batch.to(self.world.device) for batch in batches]
        counts, (wishes,) = global_counts(
            [batch.counts() for batch in batches], self.world.device, self.world.all_reduce, int(stop)
        )
        # DDP averages gradients over ranks, hence the world size.
        factors: dict[Unit, float] = {u: self.world.size / n if n else 0.0 for u, n in counts.items()}
        try:
            totals = self._accumulate(batches, update, factors)
        except torch.OutOfMemoryError as error:
            raise CktkError(
                f"out of memory in update {update + 1}: lower --max-tokens and raise --update-freq by the same factor"
            ) from error
        values = totals.averages(counts, self.world.all_reduce)
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        if bad and not self.scaler.is_enabled():
            raise CktkError(_not_finite(bad, update, batches) + "; lower --lr or raise --warmup-updates")
        grad_norm = math.nan if bad else self._optimizer_step(lr)
        self.optimizer.zero_grad(set_to_none=True)
        self._count_skips(not math.isfinite(grad_norm), bad or ["the gradient"], update, batches)
        return UpdateResult(values, counts, grad_norm, self._skips > 0, wishes > 0)

    def _accumulate(self, batches: list[Batch], update: int, factors: dict[Unit, float]) -> Totals:
        """Add up the gradients of all micro-batches; returns what is to be logged."""
        last = len(batches) - 1
        order = [*range(last + 1)]
        prior: Any = None
        targets: dict[int, ModelOutput | None] = {}
        if self.step.train_criterion.uses_statistics:
            # The last micro-batch settles the coefficients inside its own forward; the others are then replayed. Only
            # here are the teacher's states of the whole update kept.
            order = [last, *range(last)]
            for index in range(last):
                targets[index] = self._teacher_states(batches[index])
                prior = self._merge(prior, self._statistics(batches[index], targets[index], update, index))
        coefficients, totals = None, Totals()
        for position, index in enumerate(order):
            target = targets.pop(index) if index in targets else self._teacher_states(batches[index])
            with self._gradient_sync(position == last):
                self._seed_dropout(update, index)
                output = self.module("loss", batches[index], target, factors, prior, coefficients)
                self.scaler.scale(output.loss).backward()
            coefficients = output.coefficients
            totals.add(output.totals)
        return totals

    def _teacher_states(self, batch: Batch) -> ModelOutput | None:
        return self.teacher.states(batch) if self.teacher else None

    def _statistics(self, batch: Batch, target: ModelOutput | None, update: int, index: int) -> Any:
        with torch.no_grad(), self._gradient_sync(False):
            self._seed_dropout(update, index)
            return self.module("statistics", batch, target)

    def _merge(self, prior: Any, statistics: Any) -> Any:
        return statistics if prior is None else self.step.train_criterion.merge(prior, statistics)

    def _seed_dropout(self, update: int, index: int) -> None:
        # The position in the global order of the update, so that dropout does not depend on the world size either.
        seed_everything_from(self._seed, update, index * self.world.size + self.world.rank)

    def _gradient_sync(self, wanted: bool) -> Any:
        if isinstance(self.module, DistributedDataParallel) and not wanted:
            return self.module.no_sync()
        return nullcontext()

    def _optimizer_step(self, lr: float) -> float:
        """Clip and step; returns the norm. With loss scaling, a norm that is not finite steps nothing."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self._clip_norm, foreach=True).item()
        if not math.isfinite(norm) and not self.scaler.is_enabled():
            raise CktkError("the gradient is not finite; lower --lr, raise --warmup-updates or train in float32")
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return norm

    def _count_skips(self, skipped: bool, bad: list[str], update: int, batches: Sequence[Batch]) -> None:
        """Overflow in float16 skips an update now and then; a run that only skips would never end."""
        self._skips = self._skips + 1 if skipped else 0
        if self._skips >= MOST_SKIPS:
            words = f"{_not_finite(bad, update, batches)}, {MOST_SKIPS} times in a row"
            raise CktkError(f"{words}; train with --bf16 or in float32, or lower --lr")


def _not_finite(bad: list[str], update: int, batches: Sequence[Batch]) -> str:
    rows = [batch.ids[0] for batch in batches if batch.ids]
    return f"update {update + 1}: {', '.join(bad)} not finite (micro-batches starting at rows {rows})"
