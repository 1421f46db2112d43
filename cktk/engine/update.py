"""One update of the student: counts first, then one or two passes over its micro-batches, then one optimizer step.

Every term of the loss is divided by its global count before its backward, so the result depends neither on how the
update is split into micro-batches nor on how they are dealt to ranks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel

from cktk.distributed.world import World
from cktk.engine.not_finite import culprits
from cktk.engine.step import FirstPass, Step, StepOutput
from cktk.engine.teacher import StateStore, Teacher
from cktk.engine.totals import Totals, global_counts
from cktk.errors import CktkError
from cktk.protocols import Batch, Unit
from cktk.utils.log import logger
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


class _ReplayDiffers(Exception):
    """The second pass over a micro-batch did not give the states of the first."""


class Updater:
    """Runs updates. ``module`` is the `Step`, possibly wrapped; ``scaler`` is enabled for float16 only.

    ``store`` keeps the teacher's states between the two passes of an update; None without a teacher.
    """

    def __init__(
        self,
        module: nn.Module,
        step: Step,
        teacher: Teacher | None,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        world: World,
        clip_norm: float,
        seed: int,
        store: StateStore | None = None,
    ) -> None:
        self.module, self.step, self.teacher = module, step, teacher
        self.optimizer, self.scaler, self.world = optimizer, scaler, world
        self._store = StateStore(teacher) if store is None and teacher is not None else store
        self._clip_norm = clip_norm or math.inf
        self._seed = seed
        self._skips = 0
        self._plain_attention = False
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
        totals, pooled = self._with_second_try(batches, update, factors)
        values = totals.averages(counts, self.world.all_reduce)
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        if bad and not self.scaler.is_enabled():
            mend = "lower --lr or raise --warmup-updates"
            if self.teacher is not None:
                mend += ", and see whether the teacher's weights are finite"
            raise CktkError(f"{self._not_finite(bad, update, batches)}; {mend}")
        grad_norm = math.nan if bad else self._optimizer_step(update, lr)
        self.optimizer.zero_grad(set_to_none=True)
        skipped = not math.isfinite(grad_norm)
        self._count_skips(skipped, bad or ["the gradient"], update, batches)
        if pooled is not None and not skipped:
            self.step.train_criterion.advance(pooled)
        return UpdateResult(values, counts, grad_norm, skipped, wishes > 0)

    def _with_second_try(self, batches: list[Batch], update: int, factors: dict[Unit, float]) -> tuple[Totals, Any]:
        """`_accumulate`, and again from the first pass where that can help."""
        retried = False
        while True:
            try:
                with self._attention():
                    return self._accumulate(batches, update, factors)
            except _ReplayDiffers:
                self._plain_attention = True
                logger.warning(
                    "the second pass over a micro-batch gave other states than the first, because attention chose "
                    "another kernel; both passes use the plain one from here on, which is slower"
                )
            except torch.OutOfMemoryError as error:
                # Another rank may have gone on to a collective; alone, a tidied memory may be enough.
                if retried or self.world.size > 1:
                    raise CktkError(
                        f"out of memory in update {update + 1}: lower --max-tokens and raise --update-freq by the same "
                        "factor, or try --teacher-states host"
                    ) from error
                retried = True
                torch.cuda.empty_cache()
            self.optimizer.zero_grad(set_to_none=True)
            if self._store:
                self._store.forget()

    def _attention(self) -> AbstractContextManager[Any]:
        return sdpa_kernel([SDPBackend.MATH]) if self._plain_attention else nullcontext()

    def _accumulate(self, batches: list[Batch], update: int, factors: dict[Unit, float]) -> tuple[Totals, Any]:
        """Add up the gradients of all micro-batches; what is to be logged, and the criterion's pooled statistics."""
        criterion = self.step.train_criterion
        collects, last = criterion.collects, len(batches) - 1
        order = [*range(last + 1)]
        prior: Any = None
        digests: dict[int, Tensor | None] = {}
        if collects == "before":
            # The last micro-batch settles the coefficients inside its own forward; the others are then replayed. Only
            # here are the teacher's states of the whole update kept.
            order = [last, *range(last)]
            for index in range(last):
                first = self._first_pass(batches[index], update, index, prior)
                prior, digests[index] = first.statistics, first.digest
        coefficients, pooled, totals = None, None, Totals()
        for position, index in enumerate(order):
            target = self._store.again(index, batches[index]) if self._store else None
            with self._gradient_sync(position == last):
                self._seed_dropout(update, index)
                output: StepOutput = self.module("loss", batches[index], target, factors, prior, coefficients)
                if index in digests and self.step.digests:
                    self._check_replay(digests[index], output.digest)
                torch.autograd.backward(self.scaler.scale(output.loss))
            totals.add(output.totals)
            coefficients, prior = output.coefficients, output.statistics
            pooled = pooled if output.pooled is None else output.pooled
        self.step.digests = self.step.digests and not digests
        if collects == "along":
            pooled = criterion.pool(prior, self.world.all_reduce)
        return totals, pooled

    def _first_pass(self, batch: Batch, update: int, index: int, prior: Any) -> FirstPass:
        assert self._store is not None
        target = self._store.first(index, batch)
        with torch.no_grad(), self._gradient_sync(False):
            self._seed_dropout(update, index)
            found: FirstPass = self.module("statistics", batch, target, prior=prior)
            return found

    def _check_replay(self, first: Tensor | None, second: Tensor | None) -> None:
        """In the first update of a run that has replays, see whether these are exact; all ranks decide alike."""
        assert first is not None and second is not None
        same = torch.allclose(first, second, rtol=0, atol=0, equal_nan=True)
        differ = self.world.all_reduce(torch.tensor(float(not same), device=self.world.device)).item() > 0
        if differ and not self._plain_attention:
            raise _ReplayDiffers
        if differ:
            logger.warning("the two passes over a micro-batch still differ a little: updates are not quite exact")
            self.step.digests = False

    def _seed_dropout(self, update: int, index: int) -> None:
        # The position in the global order of the update, so that dropout does not depend on the world size either.
        seed_everything_from(self._seed, update, index * self.world.size + self.world.rank)

    def _gradient_sync(self, wanted: bool) -> AbstractContextManager[Any]:
        if isinstance(self.module, DistributedDataParallel) and not wanted:
            return self.module.no_sync()
        return nullcontext()

    def _optimizer_step(self, update: int, lr: float) -> float:
        """Clip and step; returns the norm. With loss scaling, a norm that is not finite steps nothing."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self._clip_norm, foreach=True).item()
        if not math.isfinite(norm) and not self.scaler.is_enabled():
            named = self.step.named_parameters()
            names = [name for name, p in named if p.grad is not None and not p.grad.isfinite().all()]
            raise CktkError(
                f"update {update + 1}: the losses are finite, but not the gradient of {_some(names)}; lower --lr or "
                "--clip-norm, raise --warmup-updates, or train without --bf16"
            )
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return norm

    def _count_skips(self, skipped: bool, bad: list[str], update: int, batches: Sequence[Batch]) -> None:
        """Overflow in float16 skips an update now and then; a run that only skips would never end."""
        self._skips = self._skips + 1 if skipped else 0
        if self._skips >= MOST_SKIPS:
            words = f"{self._not_finite(bad, update, batches)}, {MOST_SKIPS} times in a row"
            raise CktkError(f"{words}; train with --bf16 or in float32, or lower --lr")

    def _not_finite(self, bad: list[str], update: int, batches: Sequence[Batch]) -> str:
        """What went wrong in words: the terms with their layer pairs, and the micro-batches; the same on all ranks."""

        def totals(index: int) -> StepOutput:
            self._seed_dropout(update, index)
            target = self.teacher.states(batches[index]) if self.teacher else None
            found: StepOutput = self.step("evaluate", batches[index], target)
            return found

        names = [name for name in bad if name != "loss"] or bad
        with self._attention():
            own = culprits(self.step, batches, totals)
        rows = self.world.gather_sequences(own)
        where = [f"rows {_some(ids)}" for ranks in rows for ids in ranks]
        batch_words = f" (micro-batch of {'; '.join(where)})" if where else ""
        return f"update {update + 1}: {', '.join(names)} not finite{batch_words}"


def _some(things: Sequence[object]) -> str:
    """The first few of ``things`` and how many more there are."""
    more = f" and {len(things) - 4} more" if len(things) > 4 else ""
    return ", ".join(map(str, things[:4])) + more
