"""Sentences and pairs of sentences as an encoder sees them: template, kinds of sentence, and what is cut."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cktk.data.batching import Int64s
from cktk.data.shards import DataFolder, Split
from cktk.errors import ConfigError, DataError
from cktk.protocols import PairTemplate
from cktk.tasks.batches import chunks

#: The columns of a data folder of sentences.
FIRST, SECOND, LABEL = "text_a", "text_b", "label"


def kept_tokens(first: Int64s, second: Int64s, room: int) -> tuple[Int64s, Int64s]:
    """How many tokens of pairs of texts of these lengths stay in ``room``: the longer text is cut first.

    Once both are equally long both are cut; of an odd ``room`` the longer text keeps one token more, of texts that are
    equally long the second. That is what Hugging Face's fast tokenizers do as ``longest_first``.
    """
    shorter, longer = np.minimum(first, second), np.maximum(first, second)
    fits = shorter + longer <= room
    less = np.where(fits | (2 * shorter <= room), shorter, room // 2)
    more = np.where(fits, longer, room - less)
    swapped = first > second
    return np.where(swapped, more, less), np.where(swapped, less, more)


@dataclass(frozen=True)
class SentenceFrame:
    """How the rows of a data folder are shown: what goes around one text or two, and the room for the texts."""

    template: PairTemplate
    pairs: bool
    room: int

    @classmethod
    def of(cls, data: DataFolder, positions: int) -> SentenceFrame:
        """The frame of the rows of ``data`` with at most ``positions`` tokens a row.

        Raises `DataError` for a folder that is not of sentences, `ConfigError` where no room is left for text.
        """
        pairs = SECOND in data.columns
        if pairs and data.pair_template is None:
            raise DataError(f"{data.path}: its tokenizer joins no pairs of texts; preprocess with another tokenizer")
        if pairs:
            assert data.pair_template is not None
            template = data.pair_template
        else:
            single = data.template("source", data.languages.get(FIRST, ""))
            template = PairTemplate(single.prefix, (), single.suffix)
        special = len(template.prefix) + len(template.middle) + len(template.suffix)
        if positions <= special:
            raise ConfigError(
                f"--max-source-positions {positions} leaves no room for text beside {special} special tokens; raise it"
            )
        return cls(template, pairs, positions - special)

    @property
    def special(self) -> int:
        """Tokens of a row that are not of its texts."""
        return len(self.template.prefix) + len(self.template.middle) + len(self.template.suffix)

    def show(self, row: Mapping[str, npt.NDArray[Any]]) -> tuple[Int64s, int]:
        """The input ids of ``row``, and from which of them on the kind of sentence is 1."""
        before, between, behind = self.template.prefix, self.template.middle, self.template.suffix
        first = row[FIRST]
        if not self.pairs:
            ids = np.concatenate([before, first[: self.room], behind], dtype=np.int64, casting="unsafe")
            return ids, len(ids)
        second = row[SECOND]
        a, b = (int(n) for n in kept_tokens(np.array(len(first)), np.array(len(second)), self.room))
        # An empty template is an array of floats to numpy, hence the cast.
        ids = np.concatenate([before, first[:a], between, second[:b], behind], dtype=np.int64, casting="unsafe")
        return ids, len(before) + a + len(between)


class SentenceRows:
    """The rows of a split as ``frame`` shows them."""

    def __init__(self, split: Split, frame: SentenceFrame) -> None:
        self.split, self.frame = split, frame

    def __len__(self) -> int:
        return len(self.split)

    @property
    def shard_rows(self) -> list[int]:
        """The numbers of rows of the split's shards."""
        return self.split.shard_rows

    def lengths(self, start: int, stop: int) -> Int64s:
        """(stop - start, 2): the numbers of input ids of those rows, twice, as there is no target."""
        found = self._kept(start, stop) + self.frame.special
        return np.stack([found, found], axis=1)

    def labels(self) -> npt.NDArray[Any]:
        """The labels of all rows: integers, -1 where unknown, or numbers, NaN where unknown."""
        return self.split.values(LABEL, 0, len(self))

    def tokens(self) -> int:
        """Input ids of all rows; reads the offsets of the whole split."""
        return sum(int(self.lengths(*chunk)[:, 0].sum()) for chunk in chunks(len(self)))

    def truncated(self) -> int:
        """How many rows are cut; reads the offsets of the whole split."""
        return sum(int((self._kept(*chunk) < self._texts(*chunk)).sum()) for chunk in chunks(len(self)))

    def _texts(self, start: int, stop: int) -> Int64s:
        columns = (FIRST, SECOND) if self.frame.pairs else (FIRST,)
        total: Int64s = np.sum([self.split.lengths(column, start, stop) for column in columns], axis=0)
        return total

    def _kept(self, start: int, stop: int) -> Int64s:
        return np.minimum(self._texts(start, stop), self.frame.room)
