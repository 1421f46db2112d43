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
        self._check_finite(values, update, batches)
        grad_norm, skipped = self._optimizer_step(lr)
        return UpdateResult(values, counts, grad_norm, skipped, wishes > 0)

    def _accumulate(self, batches: list[Batch], update: int, factors: dict[Unit, float]) -> Totals:
        """Add up the gradients of all micro-batches; returns what is to be logged."""
        targets = [self.teacher.states(batch) if self.teacher else None for batch in batches]
        last = len(batches) - 1
        order = [*range(last + 1)]
        prior: Any = None
        if self.step.train_criterion.uses_statistics:
            # The last micro-batch settles the coefficients inside its own forward; the others are then replayed.
            order = [last, *range(last)]
            for index in range(last):
                prior = self._merge(prior, self._statistics(batches[index], targets[index], update, index))
        coefficients, totals = None, Totals()
        for position, index in enumerate(order):
            with self._gradient_sync(position == last):
                self._seed_dropout(update, index)
                output = self.module("loss", batches[index], targets[index], factors, prior, coefficients)
                self.scaler.scale(output.loss).backward()
            coefficients, targets[index] = output.coefficients, None
            totals.add(output.totals)
        return totals

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

    def _check_finite(self, values: dict[str, float], update: int, batches: Sequence[Batch]) -> None:
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        if bad and not self.scaler.is_enabled():
            rows = [batch.ids[0] for batch in batches if batch.ids]
            raise CktkError(
                f"update {update + 1}: {', '.join(bad)} is not finite (micro-batches starting at rows {rows}); "
                "lower --lr, raise --warmup-updates or train in float32"
            )

    def _optimizer_step(self, lr: float) -> tuple[float, bool]:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self._clip_norm, foreach=True).item()
        if not math.isfinite(norm) and not self.scaler.is_enabled():
            raise CktkError("the gradient is not finite; lower --lr, raise --warmup-updates or train in float32")
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return norm, not math.isfinite(norm)
