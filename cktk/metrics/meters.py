"""Running averages kept as sums and counts, so that they can be saved, restored and reduced exactly."""

from __future__ import annotations

from collections.abc import Mapping


class Meters:
    """Named weighted averages since the last `reset`."""

    def __init__(self) -> None:
        self._sums: dict[str, list[float]] = {}

    def add(self, name: str, total: float, count: float) -> None:
        """Add ``total``, the sum over ``count`` units."""
        sums = self._sums.setdefault(name, [0.0, 0.0])
        sums[0] += total
        sums[1] += count

    def averages(self) -> dict[str, float]:
        """Sum / count of each name, 0 where nothing was counted."""
        return {name: total / count if count else 0.0 for name, (total, count) in self._sums.items()}

    def reset(self) -> None:
        """Forget everything."""
        self._sums.clear()

    def state_dict(self) -> dict[str, list[float]]:
        """JSON-ready state; floats survive JSON bit for bit."""
        return {name: list(sums) for name, sums in self._sums.items()}

    def load_state_dict(self, state: Mapping[str, list[float]]) -> None:
        """Restore `state_dict`."""
        self._sums = {name: list(sums) for name, sums in state.items()}
