"""Which ids of a vocabulary a trimmed one holds, there and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cktk.errors import DataError
from cktk.utils.files import read_json, write_json

#: The map's file in each folder that cktk-trim-vocab writes.
MAP = "vocabulary_map.json"

_SCHEMA = 1
_OUTSIDE = -1

Ids = npt.NDArray[np.int64]


class VocabularyMap:
    """The ids ``kept`` of a vocabulary of ``old_size``: new id ``i`` is old id ``kept[i]``, in the old order.

    Keeping the order keeps the special tokens, which most vocabularies begin with, at the ids that tokenizer classes
    take for granted. Raises `DataError` for ids that are not ascending or outside of the old vocabulary.
    """

    def __init__(self, kept: Sequence[int] | Ids, old_size: int) -> None:
        self.kept: Ids = np.asarray(kept, np.int64)
        self.old_size = old_size
        if self.kept.ndim != 1 or not len(self.kept) or (np.diff(self.kept) <= 0).any():
            raise DataError("a vocabulary map needs ids in ascending order, each once")
        if not 0 <= self.kept[0] <= self.kept[-1] < old_size:
            raise DataError(f"a vocabulary map holds ids outside of the vocabulary of {old_size}")
        self._new = np.full(old_size, _OUTSIDE, np.int64)
        self._new[self.kept] = np.arange(len(self.kept))

    @classmethod
    def between(cls, old: Mapping[str, int], new: Mapping[str, int], old_size: int) -> VocabularyMap:
        """The map from the tokens ``old`` to those of a vocabulary that was trimmed from it.

        Raises `DataError` where ``new`` was not, naming the first token that tells.
        """
        by_id = sorted(new, key=new.__getitem__)
        for index, token in enumerate(by_id):
            if new[token] != index or token not in old or (index and old[token] <= old[by_id[index - 1]]):
                raise DataError(
                    f"token {token!r} (id {new[token]}) shows that one vocabulary was not cut from the other"
                )
        return cls([old[token] for token in by_id], old_size)

    @property
    def new_size(self) -> int:
        return len(self.kept)

    def __contains__(self, old_id: int) -> bool:
        return 0 <= old_id < self.old_size and bool(self._new[old_id] != _OUTSIDE)

    def to_new(self, old_ids: Any) -> Ids:
        """New ids of ``old_ids``, in any shape; raises `DataError` for one that was dropped."""
        old = np.asarray(old_ids, np.int64)
        if old.size and not 0 <= old.min() <= old.max() < self.old_size:
            raise DataError(f"ids from {old.min()} to {old.max()} are outside of the vocabulary of {self.old_size}")
        new: Ids = self._new[old]
        if (new == _OUTSIDE).any():
            raise DataError(f"id {old[new == _OUTSIDE][0]} is not in the trimmed vocabulary")
        return new

    def to_old(self, new_ids: Any) -> Ids:
        """Old ids of ``new_ids``, in any shape; raises `DataError` for ids outside of the trimmed vocabulary."""
        new = np.asarray(new_ids, np.int64)
        if new.size and not 0 <= new.min() <= new.max() < self.new_size:
            raise DataError(f"ids from {new.min()} to {new.max()} are outside of the vocabulary of {self.new_size}")
        old: Ids = self.kept[new]
        return old

    def write(self, folder: Path) -> None:
        """Write the map as JSON into ``folder``."""
        write_json(folder / MAP, {"schema": _SCHEMA, "old_size": self.old_size, "kept": self.kept.tolist()})

    @classmethod
    def read(cls, folder: Path) -> VocabularyMap:
        """The map in ``folder``; raises `DataError` where there is none, or a damaged one."""
        raw = read_json(folder / MAP)
        if not isinstance(raw, dict) or raw.get("schema") != _SCHEMA:
            raise DataError(f"{folder / MAP}: not a vocabulary map of schema {_SCHEMA}")
        try:
            return cls(raw["kept"], raw["old_size"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{folder / MAP}: not a vocabulary map ({error!r})") from error
