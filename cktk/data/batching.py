"""Which rows form which micro-batch: block shuffle, windows, and a sort by length under a token budget.

A pass over a split is cut into blocks of neighbouring rows; blocks are put in a seeded order, and some tens of them
make a window. Only the rows of one window are ever in memory: they are shuffled, sorted by (target, source) length, cut
into micro-batches, and these are shuffled. Everything follows from (seed, pass, window), so nothing else is saved.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

Int64s = npt.NDArray[np.int64]

#: (start, stop) -> (stop - start, 2): source and target lengths of those rows, as the model will see them.
Lengths = Callable[[int, int], Int64s]


def cut_batches(longest: Sequence[int], max_tokens: int | None, batch_size: int | None) -> list[int]:
    """Greedy cuts of rows with the given longest sides: bounds 0 = b_0 < b_1 < .. = len(longest).

    A batch holds at most ``batch_size`` rows, and rows x its longest side is at most ``max_tokens``, unless it is a
    single row that is longer than that by itself.
    """
    budget = max_tokens or float("inf")
    most = batch_size or len(longest)
    bounds = [0]
    rows = widest = 0
    # A plain loop: what a batch may take depends on the cut before it, and 65,536 steps take some 10 ms.
    for index, length in enumerate(longest):
        widest = max(widest, length)
        rows += 1
        if rows > 1 and (rows > most or rows * widest > budget):
            bounds.append(index)
            rows, widest = 1, length
    if longest:
        bounds.append(len(longest))
    return bounds


class Plan(NamedTuple):
    """The micro-batches of a window in order, and the longest side of each row that exceeds the budget by itself."""

    batches: list[Int64s]
    beyond: Int64s


class Planner(Protocol):
    """Decides what the micro-batches are. A pass has windows; rows are numbers that mean something to the planner."""

    @property
    def rows(self) -> int:
        """Rows in a pass."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """What the plan follows from, as JSON values; ``max_tokens`` is among them."""

    def window_count(self, pass_: int) -> int:
        """How many windows pass ``pass_`` has."""

    def plan(self, pass_: int, window: int) -> Plan:
        """The micro-batches of a window."""

    def items(self, rows: Int64s) -> list[Any]:
        """What the batch of ``rows`` of the window planned last is loaded from."""

    def state(self, pass_: int, window: int) -> Mapping[str, Any]:
        """What has to be kept, as JSON values, to plan from ``window`` on in another process."""

    def load_state(self, pass_: int, window: int, state: Mapping[str, Any]) -> None:
        """Take back what `state` gave for that window."""


def cut_window(
    rows: Int64s, lengths: Int64s, rng: np.random.Generator | None, max_tokens: int | None, batch_size: int | None
) -> Plan:
    """Sort ``rows`` with ``lengths`` (n, 2) by (target, source) length, and cut them into micro-batches.

    With ``rng`` rows of equal lengths stand in random order, and so do the micro-batches.
    """
    if rng is not None:
        order = rng.permutation(len(rows))
        rows, lengths = rows[order], lengths[order]
    order = np.lexsort((lengths[:, 0], lengths[:, 1]))
    longest = lengths.max(axis=1)[order]
    bounds = cut_batches(longest.tolist(), max_tokens, batch_size)
    rows = rows[order]
    batches = [rows[start:stop] for start, stop in pairwise(bounds)]
    if rng is not None:
        batches = [batches[index] for index in rng.permutation(len(batches))]
    return Plan(batches, longest[longest > max_tokens] if max_tokens else longest[:0])


def blocks_of(shard_rows: Sequence[int], block_rows: int) -> Int64s:
    """(blocks, 2): first row and end of the blocks of at most ``block_rows`` neighbours; none reaches over a shard."""
    ends = np.cumsum(shard_rows, dtype=np.int64)
    starts = [np.arange(end - rows, end, block_rows) for end, rows in zip(ends, shard_rows, strict=True)]
    stops = [np.minimum(start + block_rows, end) for start, end in zip(starts, ends, strict=True)]
    return np.stack([np.concatenate([np.empty(0, np.int64), *part]) for part in (starts, stops)], axis=1)


class WindowPlanner:
    """The micro-batches of any window of any pass over a split whose shards have ``shard_rows`` rows.

    Without ``shuffle`` blocks keep their order and the batches of a window run from short to long. ``drawn_from`` is
    the number of rows of which these are a subset, None where they are all.
    """

    def __init__(
        self,
        shard_rows: Sequence[int],
        lengths: Lengths,
        *,
        max_tokens: int | None,
        batch_size: int | None,
        shuffle: bool,
        seed: int,
        window_rows: int,
        block_rows: int,
        drawn_from: int | None = None,
    ) -> None:
        self.rows = sum(shard_rows)
        self.settings: dict[str, Any] = {
            "rows": self.rows,
            "max_tokens": max_tokens,
            "batch_size": batch_size,
            "shuffle": shuffle,
            "seed": seed,
            "window_rows": window_rows,
            "block_rows": block_rows,
        }
        if drawn_from is not None:
            self.settings["drawn_from"] = drawn_from
        self._blocks = blocks_of(shard_rows, block_rows)
        self._lengths = lengths
        self._max_tokens = max_tokens
        self._batch_size = batch_size
        self._shuffle = shuffle
        self._seed = seed
        self._window_rows = window_rows
        self._pass: tuple[int, list[Int64s]] | None = None

    def window_count(self, pass_: int) -> int:
        """How many windows pass ``pass_`` has."""
        return len(self._windows(pass_))

    def plan(self, pass_: int, window: int) -> Plan:
        """See `Planner.plan`; rows are those of the split."""
        blocks = self._windows(pass_)[window]
        rows = np.concatenate([np.arange(start, stop) for start, stop in blocks])
        lengths = np.concatenate([self._lengths(int(start), int(stop)) for start, stop in blocks])
        rng = self._generator(pass_, 1 + window) if self._shuffle else None
        return cut_window(rows, lengths, rng, self._max_tokens, self._batch_size)

    def items(self, rows: Int64s) -> list[Any]:
        """The row numbers themselves."""
        return list(rows.tolist())

    def state(self, pass_: int, window: int) -> dict[str, Any]:  # noqa: ARG002
        """Nothing: all follows from the settings."""
        return {}

    def load_state(self, pass_: int, window: int, state: Mapping[str, Any]) -> None:
        """Nothing; see `state`."""

    def _windows(self, pass_: int) -> list[Int64s]:
        if self._pass is None or self._pass[0] != pass_:
            self._pass = pass_, self._plan_pass(pass_)
        return self._pass[1]

    def _plan_pass(self, pass_: int) -> list[Int64s]:
        blocks = self._blocks
        if self._shuffle:
            blocks = blocks[self._generator(pass_, 0).permutation(len(blocks))]
        before = np.cumsum(blocks[:, 1] - blocks[:, 0]) - (blocks[:, 1] - blocks[:, 0])
        # A block belongs to the window in which it begins, so a window may be longer by less than a block.
        numbers = before // self._window_rows
        return np.split(blocks, np.flatnonzero(np.diff(numbers)) + 1) if len(blocks) else []

    def _generator(self, pass_: int, purpose: int) -> np.random.Generator:
        # Purpose 0 orders the blocks; 1 + w is window w. Always three numbers: numpy pads shorter seeds with zeros.
        return np.random.default_rng([self._seed, pass_, purpose])
