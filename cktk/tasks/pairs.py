"""Pairs of texts in a data folder as an encoder-decoder sees them: template, prompt, and what is cut."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cktk.data.batching import Int64s
from cktk.data.shards import DataFolder, Role, Split
from cktk.errors import ConfigError, DataError
from cktk.protocols import Template

_CHUNK_ROWS = 1 << 20


@dataclass(frozen=True)
class TextSide:
    """One side of the pairs: its column, what goes around a text, and how many tokens of the text itself may stay.

    ``prompt`` stands between the template's prefix and the text.
    """

    column: str
    template: Template
    room: int
    prompt: tuple[int, ...] = ()

    @property
    def special(self) -> int:
        """How many tokens stand around every text."""
        return len(self.template.prefix) + len(self.prompt) + len(self.template.suffix)

    def framed(self, text: npt.ArrayLike) -> Int64s:
        """``text`` with prefix and prompt before it and the suffix behind it; cut at its end if it is too long."""
        parts = (self.template.prefix, self.prompt, np.asarray(text)[: self.room], self.template.suffix)
        # An empty prefix is an array of floats to numpy, hence the cast.
        return np.concatenate(parts, dtype=np.int64, casting="unsafe")


def text_side(data: DataFolder, role: Role, column: Role, positions: int, prompt: tuple[int, ...] = ()) -> TextSide:
    """The side that reads ``column`` of ``data`` in the place of ``role`` and keeps to ``positions`` tokens in all.

    Raises `DataError` for a folder without that column or end tokens, `ConfigError` where no room is left for text.
    """
    if column not in data.columns:
        raise DataError(
            f"{data.path}: has no column {column} (but {', '.join(data.columns)}); this task needs pairs of texts: "
            "preprocess such"
        )
    template = data.template(role, data.languages[column])
    if not template.suffix:
        raise DataError(
            f"{data.path}: its tokenizer puts no end token behind a {role}; preprocess with a tokenizer that does"
        )
    special = len(template.prefix) + len(template.suffix)
    if positions <= special + len(prompt):
        beside = f"{len(prompt)} tokens of --{role}-prompt and {special}" if prompt else f"{special}"
        mend = "raise it, or shorten the prompt" if prompt else "raise it"
        raise ConfigError(
            f"--max-{role}-positions {positions} leaves no room for text beside {beside} special tokens; {mend} "
            "(the model's own limit holds too)"
        )
    return TextSide(column, template, positions - special - len(prompt), prompt)


class Pair(NamedTuple):
    """A row as the models see it: ids with all that goes around them."""

    source: Int64s
    target: Int64s


class PairRows:
    """The rows of a split as ``source`` and ``target`` show them."""

    def __init__(self, split: Split, source: TextSide, target: TextSide) -> None:
        self.split = split
        self._source, self._target = source, target

    def __len__(self) -> int:
        return len(self.split)

    @property
    def shard_rows(self) -> list[int]:
        """The numbers of rows of the split's shards."""
        return self.split.shard_rows

    def pair(self, index: int) -> Pair:
        """Row ``index``."""
        row = self.split[index]
        return Pair(self._source.framed(row[self._source.column]), self._target.framed(row[self._target.column]))

    def source_ids(self, index: int) -> Int64s:
        """The encoder's input for row ``index``."""
        return self._source.framed(self.split[index][self._source.column])

    def reference_ids(self, index: int) -> Int64s:
        """The whole target text of row ``index`` as token ids, without template, never cut."""
        ids: Int64s = self.split[index][self._target.column].astype(np.int64)
        return ids

    def is_blank(self, index: int) -> bool:
        """Whether row ``index`` has no source text."""
        return not len(self.split[index][self._source.column])

    def lengths(self, start: int, stop: int) -> Int64s:
        """(stop - start, 2): source and target lengths of rows ``start`` .. ``stop - 1`` as `pair` gives them."""
        sides = (self._source, self._target)
        texts = [np.minimum(self.split.lengths(side.column, start, stop), side.room) + side.special for side in sides]
        return np.stack(texts, axis=1)

    def positions(self) -> tuple[int, int]:
        """Source and target tokens of all rows together, as `pair` gives them; reads the offsets of the whole split."""
        totals = sum((self.lengths(*chunk).sum(axis=0) for chunk in self._chunks()), start=np.zeros(2, np.int64))
        return int(totals[0]), int(totals[1])

    def truncated(self) -> dict[str, int]:
        """How many sources and how many targets are cut; reads the offsets of the whole split."""
        sides = {"source": self._source, "target": self._target}
        return {
            role: sum(int((self.split.lengths(side.column, *chunk) > side.room).sum()) for chunk in self._chunks())
            for role, side in sides.items()
        }

    def _chunks(self) -> Iterator[tuple[int, int]]:
        for start in range(0, len(self), _CHUNK_ROWS):
            yield start, min(start + _CHUNK_ROWS, len(self))


@dataclass(frozen=True)
class PairCorpus:
    """Pairs of one data folder in one direction, under the name that figures about them bear."""

    name: str
    data: DataFolder
    source: TextSide
    target: TextSide

    def rows(self, split_name: str) -> PairRows:
        """The rows of a split; raises `DataError` for a split that is not there."""
        return PairRows(self.data.split(split_name), self.source, self.target)
