"""A random part of the rows of a split, to train on less than there is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cktk.data.batching import Int64s, Lengths
from cktk.data.mixtures.mixture import Place, StoredCorpus
from cktk.errors import ConfigError

#: Rows that are looked at together: at no time is there anything for every row of a split.
_CHUNK_ROWS = 1 << 16
# What a random number generator is for: its last seed.
_SUBSET = 5


def chosen_rows(rows: int, size: int, seed: int) -> Int64s:
    """The numbers, ascending, of ``size`` of ``rows`` rows, all such sets being equally likely.

    Every row draws a number, and the smallest win: so a smaller subset of the same seed lies inside of a larger one.
    """
    numbers, draws = np.empty(0, np.int64), np.empty(0)
    for start in range(0, rows, _CHUNK_ROWS):
        stop = min(start + _CHUNK_ROWS, rows)
        drawn = np.random.default_rng([seed, start, _SUBSET]).random(stop - start)
        numbers, draws = np.concatenate([numbers, np.arange(start, stop)]), np.concatenate([draws, drawn])
        if len(draws) > size:
            kept = np.argpartition(draws, size - 1)[:size]
            numbers, draws = numbers[kept], draws[kept]
    return np.sort(numbers)


class RowSubset:
    """``size`` rows of a split whose shards have ``shard_rows`` rows, numbered from 0, with their ``lengths``.

    They follow from ``seed`` and the number of rows alone. Raises `ConfigError` where there are fewer.
    """

    def __init__(self, shard_rows: Sequence[int], lengths: Lengths, size: int, seed: int) -> None:
        self.rows = sum(shard_rows)
        if size > self.rows:
            raise ConfigError(
                f"--train-subset {size}: the training split has {self.rows} rows; give no more, or leave it out"
            )
        self._chosen = chosen_rows(self.rows, size, seed)
        self._lengths = lengths
        bounds = np.searchsorted(self._chosen, np.concatenate([[0], np.cumsum(shard_rows, dtype=np.int64)]))
        self.shard_rows: list[int] = np.diff(bounds).tolist()

    def lengths(self, start: int, stop: int) -> Int64s:
        """(stop - start, 2): the lengths of those rows of the subset."""
        chosen = self._chosen[start:stop]
        parts = [np.empty((0, 2), np.int64)]
        for part in np.split(chosen, np.flatnonzero(np.diff(chosen // _CHUNK_ROWS)) + 1):
            if len(part):
                first = int(part[0])
                parts.append(self._lengths(first, int(part[-1]) + 1)[part - first])
        return np.concatenate(parts)

    def original(self, number: int) -> int:
        """Which row of the split the row ``number`` of the subset is."""
        return int(self._chosen[number])


class SubsetCorpus(StoredCorpus):
    """A `StoredCorpus` of the rows of ``subset``; its places name rows of the split."""

    def __init__(self, name: str, subset: RowSubset, seed: int) -> None:
        super().__init__(name, subset.shard_rows, subset.lengths, seed)
        self.settings["drawn_from"] = subset.rows
        self._subset = subset

    def place(self, number: int) -> Place:
        """See `Corpus.place`."""
        place = super().place(number)
        return place._replace(row=self._subset.original(place.row))
