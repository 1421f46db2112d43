"""When a training that goes through stages leaves one for the next. Numbers only: no models, no tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from cktk.errors import CheckpointError


class StageSchedule:
    """A state machine: stages 0, 1, ... ``len(limits)``, of which the last one is never left.

    At the end of an epoch stage i is left for the next if ``limits[i]`` epochs were spent in it (None: no limit), or if
    the mean loss of that epoch is below ``threshold`` (0: never; losses are not negative), whichever comes first. The
    mean is over all that was observed since the epoch began, weighed; an epoch without observations has none.
    """

    def __init__(self, limits: Sequence[int | None], threshold: float = 0.0) -> None:
        self._limits, self._threshold = tuple(limits), threshold
        self.stage = 0
        self.epochs = 0  # ended in this stage
        self.loss: float | None = None  # mean of the epoch that ended last, in this stage or the one before
        self._sum, self._weight = 0.0, 0.0

    @property
    def stages(self) -> int:
        """How many there are."""
        return len(self._limits) + 1

    @property
    def last(self) -> bool:
        """Whether this is the last stage."""
        return self.stage == len(self._limits)

    @property
    def epochs_before_last(self) -> int | None:
        """After how many epochs the last stage begins; None where that depends on losses."""
        if self._threshold:
            return None
        return sum(limit for limit in self._limits if limit is not None) if None not in self._limits else None

    def observe(self, loss: float, weight: float) -> None:
        """Take in a loss that is the mean over ``weight`` things; one that is not finite counts for nothing."""
        if math.isfinite(loss) and weight > 0:
            self._sum += loss * weight
            self._weight += weight

    def end_epoch(self) -> bool:
        """End an epoch; whether the next stage begins."""
        self.loss = self._sum / self._weight if self._weight else None
        self._sum, self._weight = 0.0, 0.0
        self.epochs += 1
        if self.last:
            return False
        limit = self._limits[self.stage]
        low = self.loss is not None and self.loss < self._threshold
        if not low and (limit is None or self.epochs < limit):
            return False
        self.advance()
        return True

    def advance(self) -> None:
        """Go on to the next stage, whatever the rule says; the last one stays."""
        if not self.last:
            self.stage, self.epochs = self.stage + 1, 0

    def state_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "stage": self.stage,
            "stages": self.stages,
            "epochs": self.epochs,
            "loss": self.loss,
            "sum": self._sum,
            "weight": self._weight,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``; raises `CheckpointError` if it has another number of stages."""
        if state["stages"] != self.stages:
            raise CheckpointError(
                f"the checkpoint is of a training in {state['stages']} stages, not {self.stages}: give the --procedure "
                "and --layer-map of its run, or use --finetune-from-model to take nothing but the weights"
            )
        self.stage, self.epochs, self.loss = state["stage"], state["epochs"], state["loss"]
        self._sum, self._weight = state["sum"], state["weight"]
