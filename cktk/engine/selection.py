"""Which validation was the best, and when to lose patience."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


class BestTracker:
    """Follows one figure of the validations; ``patience`` 0 never stops."""

    def __init__(self, metric: str, maximize: bool, patience: int) -> None:
        self.metric = metric
        self.best: float | None = None
        self._maximize, self._patience, self._stale = maximize, patience, 0

    def improved(self, values: Mapping[str, float]) -> bool:
        """Take one validation in; whether it is the best so far. NaN never is."""
        value = values[self.metric]
        better = self.best is None or (value > self.best if self._maximize else value < self.best)
        if better and not math.isnan(value):
            self.best, self._stale = value, 0
            return True
        self._stale += 1
        return False

    @property
    def exhausted(self) -> bool:
        """Whether the last ``patience`` validations all failed to improve."""
        return 0 < self._patience <= self._stale

    def begin_anew(self) -> None:
        """Forget all validations so far: what comes is compared with what comes."""
        self.best, self._stale = None, 0

    def state_dict(self) -> dict[str, Any]:
        return {"metric": self.metric, "best": self.best, "stale": self._stale}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore; the record of another metric is forgotten."""
        if state["metric"] == self.metric:
            self.best, self._stale = state["best"], state["stale"]
