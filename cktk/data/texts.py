"""Samples of running text: one text each, or blocks of equal length cut from texts that stand one after the other."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cktk.data.batching import Int64s
from cktk.data.shards import DataFolder
from cktk.errors import DataError

Ids = npt.NDArray[Any]


def cut_samples(texts: Sequence[Ids], room: int, separator: int | None) -> list[Ids]:
    """The samples of ``texts`` (int32): each that is not empty, cut to ``room`` tokens.

    With ``separator`` it stands behind each text, and all are cut into blocks of ``room`` tokens, the last one being
    what is left.
    """
    written = [text for text in texts if len(text)]
    if separator is None:
        # Copies: a view would keep the whole text in memory.
        return [text[:room].astype(np.int32) for text in written]
    joined = np.concatenate([np.empty(0, np.int64), *(part for text in written for part in (text, [separator]))])
    return [joined[start : start + room].astype(np.int32) for start in range(0, len(joined), room)]


def check_column(folder: DataFolder, column: str) -> None:
    """Raise `DataError` unless ``folder`` has ``column``, with texts."""
    present = [name for name in folder.columns if folder.kinds[name] == "tokens"]
    if column not in present:
        raise DataError(
            f"{folder.path}: has no column {column} of texts (but {', '.join(present)}); preprocess text with "
            "--task pretraining, or name a column with --text-column"
        )


class Texts:
    """The samples of a column of texts in ``split_name``, of at most ``room`` tokens: see `cut_samples`.

    Blocks do not reach over the end of a shard. Raises `DataError` for a column that is not there or holds no texts.
    """

    def __init__(self, folder: DataFolder, split_name: str, column: str, room: int, separator: int | None) -> None:
        check_column(folder, column)
        self._split = folder.split(split_name)
        self._column, self._room, self._separator = column, room, separator
        rows = self._split.shard_rows
        tokens = [entry["tokens"][column] for entry in folder.entries(split_name)]
        # With blocks: tokens of each shard, separators included.
        self._sizes = [count + number for count, number in zip(tokens, rows, strict=True)]
        self.shard_rows = rows if separator is None else [-(-size // room) for size in self._sizes]
        self._starts = np.concatenate([[0], np.cumsum(self.shard_rows, dtype=np.int64)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def lengths(self, start: int, stop: int) -> Int64s:
        """Tokens (stop - start,) of those samples."""
        if self._separator is None:
            return np.minimum(self._split.lengths(self._column, start, stop), self._room)
        found = np.full(stop - start, self._room, np.int64)
        for shard, (first, end) in enumerate(zip(self._starts[:-1].tolist(), self._starts[1:].tolist(), strict=True)):
            if start < end <= stop and first < end:
                found[end - 1 - start] = self._sizes[shard] - (end - 1 - first) * self._room
        return found

    def truncated(self) -> int:
        """How many texts are cut; reads the offsets of the whole split. Blocks cut none."""
        if self._separator is not None:
            return 0
        chunk, rows = 1 << 20, len(self._split)
        starts = range(0, rows, chunk)
        lengths = (self._split.lengths(self._column, start, min(start + chunk, rows)) for start in starts)
        return sum(int((part > self._room).sum()) for part in lengths)

    def __getitem__(self, index: int) -> Ids:
        """Token ids of sample ``index``."""
        if self._separator is None:
            text: Ids = self._split[index][self._column]
            return text[: self._room]
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        start = (index - int(self._starts[shard])) * self._room
        return self._block(shard, start, min(start + self._room, self._sizes[shard]))

    def _block(self, shard: int, start: int, stop: int) -> Ids:
        """Tokens ``start`` .. ``stop - 1`` of a shard with a separator behind each text."""
        first = sum(self._split.shard_rows[:shard])
        offsets = self._split.shard(shard)[self._column].offsets
        # Text i begins at offsets[i] + i: there are i separators before it.
        row = bisect_right(range(len(offsets)), start, key=lambda i: int(offsets[i]) + i) - 1
        begin, parts, size = int(offsets[row]) + row, [], 0
        while size < stop - begin:
            parts += [self._split[first + row][self._column], [self._separator]]
            size += len(parts[-2]) + 1
            row += 1
        return np.concatenate(parts).astype(np.int64)[start - begin : stop - begin]
