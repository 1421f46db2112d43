"""Reading one split of a teacher cache."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cktk.data.teacher_cache.reader import Column, TeacherCache, state_column
from cktk.errors import DataError
from cktk.protocols import Side, SparseTargets

# Each mapped file holds a descriptor, of which a process has some 1,024.
_OPEN_FILES = 256


class CachedSplit:
    """The teacher's answers to the rows of one split, addressed as those of the data folder's `Split`.

    Answers to several rows are joined in the order of the ids asked for, which is how ``Batch.rows`` packs. Files are
    mapped when first used. Raises `DataError` where a file holds what cannot be.
    """

    def __init__(self, cache: TeacherCache, name: str) -> None:
        self.cache = cache
        self.name = name
        self._entries = cache.entries(name)
        self._columns = cache.key.columns()
        self._starts = np.cumsum([0, *(int(entry["rows"]) for entry in self._entries)])
        self._open: OrderedDict[tuple[int, str], npt.NDArray[Any]] = OrderedDict()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def digests(self, ids: Sequence[int]) -> npt.NDArray[np.uint64]:
        """The `row_digests` (len(ids),) of the rows when they were cached; 0 for one that the cache does not have."""
        return np.array([self._row(row)[1]["digest"] if 0 <= row < len(self) else 0 for row in ids], np.uint64)

    def targets(self, ids: Sequence[int]) -> SparseTargets:
        """The targets (N, k) of the N scored positions of ``ids``; token ids are int64."""
        key = self.cache.key
        found = self._gather("ids", ids)
        if found.size and found.max() >= key.vocab_size:
            raise self._damaged(f"token id {found.max()} of a vocabulary of {key.vocab_size}")
        log_probs = torch.from_numpy(self._gather("logp", ids))
        return SparseTargets(
            torch.from_numpy(found.astype(np.int64)), log_probs, key.kind == "sampled", key.temperature
        )

    def states(self, side: Side, layer: int, ids: Sequence[int]) -> Tensor:
        """The hidden states (N, width) of the N positions of ``ids`` on ``side``, in the type that they are kept in."""
        found = self._gather(state_column(side, layer), ids)
        if found.dtype == np.float32:
            return torch.from_numpy(found)
        return torch.from_numpy(found.view(np.int16)).view(torch.bfloat16)

    def _gather(self, name: str, ids: Sequence[int]) -> npt.NDArray[Any]:
        """The positions of ``ids`` in the files ``name``, below one another."""
        column = self._columns[name]
        parts = [np.empty((0, column.width), column.dtype), *(self._slices(name, column, ids))]
        return np.concatenate(parts)

    def _slices(self, name: str, column: Column, ids: Sequence[int]) -> Iterator[npt.NDArray[Any]]:
        for row in ids:
            shard, record = self._row(row)
            start, rows = int(record[column.side]), int(record[f"{column.side}_rows"])
            file = self._map(shard, name)
            if not 0 <= start <= start + rows <= len(file):
                raise self._damaged(f"row {row} points beyond the end of {self._entries[shard]['name']}.{name}")
            yield file[start : start + rows]

    def _row(self, row: int) -> tuple[int, Any]:
        """The shard of data row ``row``, and its record."""
        shard = int(np.searchsorted(self._starts, row, side="right")) - 1
        return shard, self._map(shard, "rows")[row - int(self._starts[shard])]

    def _map(self, shard: int, name: str) -> npt.NDArray[Any]:
        """The file ``name`` of ``shard``: (positions, width), or (rows,) for the records."""
        where = (shard, name)
        if where not in self._open:
            while len(self._open) >= _OPEN_FILES:
                self._open.popitem(last=False)
            self._open[where] = self._map_file(shard, name)
        self._open.move_to_end(where)
        return self._open[where]

    def _map_file(self, shard: int, name: str) -> npt.NDArray[Any]:
        column = self._columns[name]
        file = f"{self._entries[shard]['name']}.{name}"
        positions = int(self._entries[shard]["files"][file]["bytes"]) // column.bytes
        shape = (positions,) if column.side is None else (positions, column.width)
        if not positions:  # an empty file cannot be mapped
            return np.empty(shape, column.dtype)
        try:
            # A plain array over the mapping: slicing np.memmap itself is several times slower.
            return np.memmap(self.cache.path / file, column.dtype, "r", shape=shape).view(np.ndarray)
        except (OSError, ValueError) as error:
            raise DataError(f"{self.cache.path / file}: cannot be mapped ({error}); make the cache again") from error

    def _damaged(self, what: str) -> DataError:
        return DataError(
            f"the teacher cache {self.cache.path} is damaged in split {self.name} ({what}); make it again with "
            "cktk-cache-teacher"
        )
