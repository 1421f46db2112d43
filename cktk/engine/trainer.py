"""The training loop: updates, and what happens between them."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from cktk.distributed.world import World
from cktk.engine.callbacks import MetricLog, ProgressBar, describe
from cktk.engine.checkpoint import (
    Checkpoint,
    CheckpointStore,
    checkpoint_name,
    optimizer_state,
    restore_criterion,
    restore_optimizer,
    restore_raw_weights,
)
from cktk.engine.configs import CheckpointConfig, UpdateConfig, ValidationConfig
from cktk.engine.ema import WeightAverage
from cktk.engine.selection import BestTracker
from cktk.engine.stages import Stages
from cktk.engine.update import Updater, UpdateResult
from cktk.engine.validation import Validator
from cktk.protocols import Batch
from cktk.utils.log import logger
from cktk.utils.run_layout import BEST, LAST


class TrainingData(Protocol):
    """A resumable source of this rank's micro-batches."""

    @property
    def epoch(self) -> int: ...

    def next_update(self, n: int) -> list[Batch] | None: ...

    def epoch_fraction(self) -> float: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Schedule(Protocol):
    """The learning rate after ``update`` of ``total`` updates (infinite where nobody knows), 0 for the first."""

    def __call__(self, update: int, total: float) -> float: ...


@dataclass
class Parts:
    """What a trainer is put together from."""

    updater: Updater
    data: TrainingData
    schedule: Schedule
    validator: Validator | None
    store: CheckpointStore
    save_student: Callable[[Path], None]
    average: WeightAverage | None
    world: World
    stages: Stages | None = None


class Trainer:
    """Trains until a limit, the end of patience, or a signal; continues any checkpoint exactly."""

    def __init__(
        self, parts: Parts, updates: UpdateConfig, checkpoints: CheckpointConfig, validation: ValidationConfig
    ) -> None:
        self.parts = parts
        self._updates, self._checkpoints, self._validation = updates, checkpoints, validation
        self._best = BestTracker(
            validation.best_checkpoint_metric, validation.maximize_best_checkpoint_metric, validation.patience
        )
        self.update = 0
        self._log: MetricLog | None = None
        self._bar: ProgressBar | None = None
        self._best_checkpoint: str | None = None
        self._unsaved = False
        self._validated_at = -1
        self._started = time.monotonic()
        self._signalled = False

    def watch(self, log: MetricLog, bar: ProgressBar) -> None:
        """Let ``log`` and ``bar`` (rank 0's) see the run; it ends them."""
        self._log, self._bar = log, bar

    def run(self) -> None:
        """The whole training."""
        previous = {number: signal.signal(number, self._on_signal) for number in (signal.SIGTERM, signal.SIGUSR1)}
        try:
            if self._log and self._log.empty:
                self._tell_stage()
            stop = False
            while not (stop or self.finished()):
                stop = self._one_update()
            if self.parts.world.is_main and self.parts.stages and not (stop or self.parts.stages.last):
                logger.warning("training ended in %s: its last stage never came; train longer", self.parts.stages.words)
            if self._unsaved:
                # The last weights may be the best; after a signal or at the end of the time there is none to look.
                self._validate_and_save(self.parts.data.epoch, validate=not stop, save=True, epoch_end=False)
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
            for watcher in (self._bar, self._log):
                if watcher:
                    watcher.close()

    def finished(self) -> bool:
        """Whether a limit that all ranks see alike is reached."""
        limits = self._updates
        return (
            (0 < limits.max_update <= self.update)
            or (0 < limits.max_epoch < self.parts.data.epoch)
            or (self._best.exhausted and (self.parts.stages is None or self.parts.stages.last))
        )

    def fraction_done(self) -> float:
        """How much of the run is over, by whichever limit is nearest."""
        limits, data = self._updates, self.parts.data
        parts = [0.0]
        if limits.max_update:
            parts.append(self.update / limits.max_update)
        if limits.max_epoch:
            parts.append((data.epoch - 1 + data.epoch_fraction()) / limits.max_epoch)
        if limits.stop_time_hours:
            parts.append(self._hours() / limits.stop_time_hours)
        return min(1.0, max(parts))

    def _one_update(self) -> bool:
        """One update, or the end of an epoch; whether to stop now."""
        data = self.parts.data
        frequency = self._updates.update_freq
        batches = data.next_update(frequency[min(data.epoch, len(frequency)) - 1])
        if batches is None:
            self._end_epoch(data.epoch - 1)
            return False
        lr = self.parts.schedule(self.update, self._expected_updates())
        result = self.parts.updater.run(batches, self.update, lr, stop=self._wishes_to_stop())
        self._unsaved = True
        if not result.skipped:
            self.update += 1
            if self.parts.average:
                self.parts.average.update()
            if self.parts.stages:
                self.parts.stages.observe(result)
        self._watch(data.epoch, lr, result)
        if not result.skipped:
            self._between_updates(data.epoch)
        return result.stop

    def _expected_updates(self) -> float:
        """How many updates the run will have had, if all go like those that were made, the one at hand included."""
        limits, data = self._updates, self.parts.data
        expected = [math.inf]
        if limits.max_update:
            expected.append(limits.max_update)
        if limits.max_epoch:
            expected.append((self.update + 1) * limits.max_epoch / (data.epoch - 1 + data.epoch_fraction()))
        return min(expected)

    def _wishes_to_stop(self) -> bool:
        hours = self._updates.stop_time_hours
        return self._signalled or 0 < hours <= self._hours()

    def _hours(self) -> float:
        return (time.monotonic() - self._started) / 3600

    def _on_signal(self, *_: object) -> None:
        # A scheduler is about to kill the job: finish the update, save, and leave.
        self._signalled = True

    def _watch(self, epoch: int, lr: float, result: UpdateResult) -> None:
        averages = self._log.on_update(epoch, self.update, lr, result) if self._log and not result.skipped else None
        if self._bar:
            fraction, place = self.fraction_done(), self._place(epoch)
            speed = self._log.speed if self._log else {}
            self._bar.on_update(place, fraction, {**result.values, "lr": lr, **speed})
            if averages:
                self._bar.say(f"{place} | {describe(averages)}", fraction)

    def _place(self, epoch: int) -> str:
        """Where the run is, in words."""
        stage = f"{self.parts.stages.words} | " if self.parts.stages else ""
        return f"epoch {epoch} | {stage}update {self.update}"

    def _tell_stage(self) -> None:
        """Let those who watch know that a stage begins."""
        stages, epoch = self.parts.stages, self.parts.data.epoch
        if stages and self._log:
            self._log.on_stage(epoch, self.update, stages.name, stages.figures())
        if stages and self._bar:
            self._bar.say(f"{self._place(epoch)} | begins", self.fraction_done())

    def _between_updates(self, epoch: int) -> None:
        save = _due(self.update, self._checkpoints.save_interval_updates)
        if save or _due(self.update, self._validation.validate_interval_updates):
            self._validate_and_save(epoch, validate=True, save=save, epoch_end=False)

    def _end_epoch(self, epoch: int) -> None:
        validate = _due(epoch, self._validation.validate_interval)
        save = _due(epoch, self._checkpoints.save_interval)
        self._unsaved = True
        self._validate_and_save(epoch, validate, save, epoch_end=True)

    def _validate_and_save(self, epoch: int, validate: bool, save: bool, epoch_end: bool) -> None:
        improved = validate and self._validate(epoch)
        if epoch_end and self.parts.stages and self.parts.stages.end_epoch():
            self._best.begin_anew()
            self._tell_stage()
        if save or improved:
            self._save(epoch, epoch_end, improved)

    def _validate(self, epoch: int) -> bool:
        if self.parts.validator is None or self._validated_at == self.update:
            return False
        self._validated_at = self.update
        with self._averaged_weights():
            values = self.parts.validator.run()
        improved = self._best.improved(values)
        if self._log:
            self._log.on_validation(epoch, self.update, values)
        if self._bar:
            best = " | best so far" if improved else ""
            self._bar.say(f"{self._place(epoch)} | valid | {describe(values)}{best}", self.fraction_done())
        return improved

    def _averaged_weights(self) -> AbstractContextManager[Mapping[str, Tensor]]:
        """Inside, the student has its averaged weights if there are any; yields the raw ones that these replace."""
        return self.parts.average.swapped_in() if self.parts.average else nullcontext({})

    def _save(self, epoch: int, epoch_end: bool, best: bool) -> None:
        """Write a checkpoint of this moment (rank 0), and make it the last one and perhaps the best."""
        parts = self.parts
        name = checkpoint_name(epoch, self.update, epoch_end)
        if best:
            self._best_checkpoint = name
        if parts.world.is_main:
            with self._averaged_weights() as raw:
                tensors, state = self._state(raw)
                parts.store.save(name, parts.save_student, tensors, {"epoch": epoch, "epoch_end": epoch_end, **state})
            self._link(name)
            parts.store.prune(self._checkpoints.keep_last_epochs, self._checkpoints.keep_interval_updates)
        parts.world.barrier()
        self._unsaved = False

    def _link(self, last: str) -> None:
        store = self.parts.store
        store.link(LAST, store.run / last)
        if self._best_checkpoint and (store.run / self._best_checkpoint).is_dir():
            store.link(BEST, store.run / self._best_checkpoint)

    def _state(self, raw_weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        step, updater = self.parts.updater.step, self.parts.updater
        moments, plain = optimizer_state(updater.optimizer, step.named_parameters())
        groups = {"optimizer": moments, "criterion": step.criterion.state_dict(), "student": raw_weights}
        tensors = {f"{group}.{name}": t for group, members in groups.items() for name, t in members.items()}
        return tensors, {
            "update": self.update,
            "validated_at": self._validated_at,
            "data": self.parts.data.state_dict(),
            "best": self._best.state_dict(),
            "best_checkpoint": self._best_checkpoint,
            "log": self._log.state_dict() if self._log else None,
            "optimizer": plain,
            "scaler": updater.scaler.state_dict(),
            "stages": self.parts.stages.state_dict() if self.parts.stages else None,
        }

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from ``checkpoint``; the student's weights are those of its ``student/`` folder already."""
        state, updater = checkpoint.state, self.parts.updater
        restore_criterion(updater.step.criterion, checkpoint.section("criterion"))
        if not self._checkpoints.reset_optimizer:
            restore_optimizer(
                updater.optimizer, updater.step.named_parameters(), checkpoint.section("optimizer"), state["optimizer"]
            )
            updater.scaler.load_state_dict(state["scaler"])
        restore_raw_weights(updater.step.student, checkpoint.section("student"))
        if self.parts.stages and state.get("stages") is not None:
            self.parts.stages.load_state_dict(state["stages"])
        if not self._checkpoints.reset_dataloader:
            self.parts.data.load_state_dict(state["data"])
        self.update, self._validated_at = state["update"], state["validated_at"]
        if checkpoint.folder.parent == self.parts.store.run:
            self._best.load_state_dict(state["best"])
            self._best_checkpoint = state["best_checkpoint"]
            if self.parts.world.is_main:
                # The process may have ended between the writing of the checkpoint and its links.
                self._link(checkpoint.folder.name)


def _due(number: int, interval: int) -> bool:
    return interval > 0 and number % interval == 0
