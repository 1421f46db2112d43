"""Several corpora as one source of micro-batches, each with its share.

An epoch has a given number of samples and is cut into windows of equal size. By the end of any window each corpus has
given its share of all samples so far, rounded: what a window takes of it follows from the window's number alone. A
corpus' rows come in the order of its own passes, each block-shuffled anew, however often the others were gone through.
So everything follows from (seed, epoch, window); only a stream has to say where in it a window begins.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from cktk.data.batch_config import BatchingConfig
from cktk.data.batching import Int64s, Lengths, Plan, blocks_of, cut_window
from cktk.data.iterators import PlannedBatches
from cktk.data.mixtures.mixture_config import MixtureConfig
from cktk.errors import ConfigError, DataError
from cktk.protocols import Batch

_WINDOW_ROWS = 65_536
_BLOCK_ROWS = 1_024


class Place(NamedTuple):
    """A sample of a mixture: row ``row`` of ``corpus`` in its pass ``pass_``; the samples of a stream bring their ids.

    In a stream rows count on from pass to pass.
    """

    corpus: str
    pass_: int
    row: int
    ids: npt.NDArray[Any] | None = None


class Corpus(Protocol):
    """An endless sequence of samples: passes over a corpus, one after the other. Samples have numbers."""

    @property
    def name(self) -> str: ...

    @property
    def rows(self) -> int | None:
        """Samples of a pass; None if only reading all would tell."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """What the order follows from beyond the seed, as JSON values."""

    def ahead(self, start: int, stop: int) -> None:
        """Be told what is taken next, where it may take a while to get. Need not be told."""

    def take(self, start: int, stop: int) -> tuple[Int64s, Int64s]:
        """The numbers (n,) of the samples at ``start`` .. ``stop - 1`` of the sequence, and their lengths (n, 2)."""

    def place(self, number: int) -> Place:
        """The sample with ``number``, which was among those taken last."""

    def state(self, start: int) -> Mapping[str, Any]:
        """What another process needs to know, as JSON values, to take samples from ``start`` on.

        This process may ask again for ``start`` and what is behind it, and for nothing before: that may be forgotten.
        """

    def load_state(self, start: int, state: Mapping[str, Any]) -> None:
        """Take back what `state` gave for ``start``."""


class StoredCorpus:
    """Rows of a split whose shards have ``shard_rows`` rows, with ``lengths`` as the model will see them."""

    def __init__(
        self, name: str, shard_rows: Sequence[int], lengths: Lengths, seed: int, block_rows: int = _BLOCK_ROWS
    ) -> None:
        self.name = name
        self.rows = sum(shard_rows)
        if not self.rows:
            raise DataError(f"the corpus {name} has no rows to train on; preprocess it again with text in it")
        self.settings = {"rows": self.rows, "block_rows": block_rows}
        self._blocks = blocks_of(shard_rows, block_rows)
        self._lengths = lengths
        # By name, so that a corpus keeps its order when another joins.
        self._seed = (seed, zlib.crc32(name.encode()))
        self._pass: tuple[int, Int64s, Int64s] | None = None

    def ahead(self, start: int, stop: int) -> None:
        """Nothing: lengths are at hand."""

    def take(self, start: int, stop: int) -> tuple[Int64s, Int64s]:
        """See `Corpus.take`; numbers are pass x rows + row."""
        numbers, lengths = [np.empty(0, np.int64)], [np.empty((0, 2), np.int64)]
        while start < stop:
            pass_, at = divmod(start, self.rows)
            end = min(at + stop - start, self.rows)
            blocks, before = self._order(pass_)
            first, last = np.searchsorted(before, at, side="right") - 1, np.searchsorted(before, end, side="left")
            for (low, high), ahead in zip(blocks[first:last].tolist(), before[first:last].tolist(), strict=True):
                low, high = low + max(0, at - ahead), min(high, low + end - ahead)
                numbers.append(pass_ * self.rows + np.arange(low, high))
                lengths.append(self._lengths(low, high))
            start += end - at
        return np.concatenate(numbers), np.concatenate(lengths)

    def place(self, number: int) -> Place:
        """See `Corpus.place`."""
        return Place(self.name, *divmod(number, self.rows))

    def state(self, start: int) -> dict[str, Any]:  # noqa: ARG002
        """Nothing: all follows from the seed."""
        return {}

    def load_state(self, start: int, state: Mapping[str, Any]) -> None:
        """Nothing; see `state`."""

    def _order(self, pass_: int) -> tuple[Int64s, Int64s]:
        """The blocks in the order of ``pass_``, and how many rows are before each and before the end."""
        if self._pass is None or self._pass[0] != pass_:
            seed, name = self._seed
            order = np.random.default_rng([seed, pass_, name, 1]).permutation(len(self._blocks))
            blocks = self._blocks[order]
            self._pass = pass_, blocks, np.concatenate([[0], np.cumsum(blocks[:, 1] - blocks[:, 0])])
        return self._pass[1:]


class MixturePlanner:
    """A `Planner` whose passes are epochs of ``samples_per_epoch`` samples of several corpora.

    ``shares`` are those of the corpora, by name; without any of it a corpus is left out. An epoch may be longer or
    shorter by less than one row for each corpus; ``window_rows`` is the least that a window has, if the epoch has them.
    """

    def __init__(
        self,
        corpora: Sequence[Corpus],
        shares: Mapping[str, float],
        *,
        samples_per_epoch: int,
        max_tokens: int | None,
        batch_size: int | None,
        seed: int,
        window_rows: int = _WINDOW_ROWS,
    ) -> None:
        self.rows = samples_per_epoch
        self._corpora = [corpus for corpus in corpora if shares[corpus.name] > 0]
        self._shares = [shares[corpus.name] for corpus in self._corpora]
        self._max_tokens, self._batch_size, self._seed = max_tokens, batch_size, seed
        if samples_per_epoch <= len(self._corpora):
            raise ConfigError(
                f"--samples-per-epoch {samples_per_epoch}: there are {len(self._corpora)} corpora; give more than these"
            )
        # With more rows than corpora, no window's shares are all rounded to nothing.
        self._windows = max(1, samples_per_epoch // max(window_rows, len(self._corpora) + 1))
        self.settings = {
            "max_tokens": max_tokens,
            "batch_size": batch_size,
            "seed": seed,
            "window_rows": window_rows,
            "mixture_samples_per_epoch": samples_per_epoch,
            "corpora": {
                c.name: {"share": share, **c.settings} for c, share in zip(self._corpora, self._shares, strict=True)
            },
        }

    def window_count(self, pass_: int) -> int:  # noqa: ARG002 - they are all alike
        """Windows of an epoch."""
        return self._windows

    def taken(self, pass_: int, window: int) -> dict[str, int]:
        """How many samples each corpus has given before ``window`` of epoch ``pass_``, all epochs together.

        Windows count on into the next epoch.
        """
        position = pass_ * self.rows + window * self.rows // self._windows
        # Each is rounded by itself: so none ever decreases, and none is further from its share than half a row.
        return {
            corpus.name: math.floor(share * position + 0.5)
            for corpus, share in zip(self._corpora, self._shares, strict=True)
        }

    def plan(self, pass_: int, window: int) -> Plan:
        """See `Planner.plan`; a row number is number x corpora + corpus."""
        starts, stops = self._tell(pass_, window)
        rows, lengths = [], []
        for index, corpus in enumerate(self._corpora):
            numbers, sides = corpus.take(starts[corpus.name], stops[corpus.name])
            rows.append(numbers * len(self._corpora) + index)
            lengths.append(sides)
        self._tell(pass_, window + 1)
        rng = np.random.default_rng([self._seed, pass_, window, 2])
        return cut_window(np.concatenate(rows), np.concatenate(lengths), rng, self._max_tokens, self._batch_size)

    def _tell(self, pass_: int, window: int) -> tuple[dict[str, int], dict[str, int]]:
        """Tell all corpora that ``window`` is next, so that they get at it side by side; where it begins and ends."""
        starts, stops = self.taken(pass_, window), self.taken(pass_, window + 1)
        for corpus in self._corpora:
            corpus.ahead(starts[corpus.name], stops[corpus.name])
        return starts, stops

    def items(self, rows: Int64s) -> list[Place]:
        """The places of ``rows``."""
        split = (divmod(row, len(self._corpora)) for row in rows.tolist())
        return [self._corpora[index].place(number) for number, index in split]

    def state(self, pass_: int, window: int) -> dict[str, Any]:
        """The positions of the streams at the start of ``window``; nothing where there are none."""
        starts = self.taken(pass_, window)
        found = {corpus.name: dict(corpus.state(starts[corpus.name])) for corpus in self._corpora}
        return {name: state for name, state in found.items() if state}

    def load_state(self, pass_: int, window: int, state: Mapping[str, Any]) -> None:
        """Take back what `state` gave."""
        starts = self.taken(pass_, window)
        for corpus in self._corpora:
            corpus.load_state(starts[corpus.name], state.get(corpus.name, {}))


def mixed_batches(
    corpora: Sequence[Corpus],
    load: Callable[[Sequence[Place]], Batch],
    mixture: MixtureConfig,
    batching: BatchingConfig,
    *,
    seed: int,
    rank: int = 0,
    world: int = 1,
    window_rows: int = _WINDOW_ROWS,
) -> PlannedBatches:
    """The micro-batches to train on: ``corpora`` as the mixture that is asked for.

    Without ``--samples-per-epoch`` an epoch has as many samples as all corpora have rows; raises `ConfigError` where
    a stream leaves that open, and for shares that do not fit the corpora.
    """
    sizes = {corpus.name: corpus.rows for corpus in corpora}
    samples = batching.samples_per_epoch
    if samples is None:
        if None in sizes.values():
            raise ConfigError("--samples-per-epoch: streams have no known size; say how many samples make an epoch")
        samples = sum(rows or 0 for rows in sizes.values())
    planner = MixturePlanner(
        corpora,
        mixture.shares(sizes),
        samples_per_epoch=samples,
        max_tokens=batching.token_budget,
        batch_size=batching.batch_size,
        seed=seed,
        window_rows=window_rows,
    )
    return PlannedBatches(planner, load, rank=rank, world=world, num_workers=batching.num_workers)
