"""Pairs of texts in a data folder as an encoder-decoder sees them: template, prompt, context, and what is cut."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cktk.data.batching import Int64s
from cktk.data.framing import Context, Frame, check_room
from cktk.data.shards import DataFolder, Role, Split
from cktk.errors import DataError
from cktk.tasks.batches import chunks

#: The column that says which document a row is of.
DOCUMENT = "document"


@dataclass(frozen=True, kw_only=True)
class TextSide(Frame):
    """One side of the pairs: its column, and what goes around a text of it."""

    column: str


def text_side(
    data: DataFolder,
    role: Role,
    column: Role,
    positions: int,
    prompt: tuple[int, ...] = (),
    separator: int | None = None,
) -> TextSide:
    """The side that reads ``column`` of ``data`` in the place of ``role`` and keeps to ``positions`` tokens in all.

    Raises `DataError` for a folder without that column or end tokens, `ConfigError` where no room is left for text.
    """
    if column not in data.columns:
        raise DataError(
            f"{data.path}: has no column {column} (but {', '.join(data.columns)}); this task needs pairs of texts: "
            "preprocess such"
        )
    template = data.template(role, data.languages.get(column, ""))
    if not template.suffix:
        raise DataError(
            f"{data.path}: its tokenizer puts no end token behind a {role}; preprocess with a tokenizer that does"
        )
    room = check_room(role, positions, template, prompt)
    return TextSide(column=column, template=template, room=room, prompt=prompt, separator=separator)


class Pair(NamedTuple):
    """A row as the models see it: ids with all that goes around them, and which target positions are never scored."""

    source: Int64s
    target: Int64s
    unscored: slice = slice(0, 0)


class PairRows:
    """The rows of a split as the two sides and the context of ``corpus`` show them."""

    def __init__(self, corpus: PairCorpus, split: Split) -> None:
        self.split = split
        self.context = corpus.context
        self._source, self._target = corpus.source, corpus.target

    def __len__(self) -> int:
        return len(self.split)

    @property
    def shard_rows(self) -> list[int]:
        """The numbers of rows of the split's shards."""
        return self.split.shard_rows

    def pair(self, index: int) -> Pair:
        """Row ``index`` as models are trained on it."""
        if self.context is None:
            row = self.split[index]
            return Pair(self._source.framed(row[self._source.column]), self._target.framed(row[self._target.column]))
        *earlier, row = (self.split[at] for at in range(index - self._earlier(index), index + 1))
        source = self._source.framed(row[self._source.column], [one[self._source.column] for one in earlier])
        before = [] if self.context.target == "none" else [one[self._target.column] for one in earlier]
        target, start = self._target.framed(row[self._target.column], before), len(self._target.template.prefix)
        given = len(self._target.context(before)) if self.context.target == "given" else 0
        return Pair(source, target, slice(start, start + given))

    @property
    def source(self) -> TextSide:
        """What goes around a source text."""
        return self._source

    @property
    def target(self) -> TextSide:
        """What goes around a target text."""
        return self._target

    def text_length(self, index: int) -> int:
        """Tokens of the source text of row ``index`` alone."""
        return len(self._text(index, self._source))

    def is_cut(self, index: int) -> bool:
        """Whether the source text of row ``index`` is longer than there is room for."""
        return self.text_length(index) > self._source.room

    def source_ids(self, index: int) -> Int64s:
        """The encoder's input for row ``index`` when output is generated for it."""
        *earlier, row = (self._text(at, self._source) for at in range(index - self.earlier(index), index + 1))
        return self._source.framed(row, earlier)

    def earlier(self, index: int) -> int:
        """How many sentences stand before the source of row ``index`` when output is generated for it.

        The target has no say in it: it is not known then.
        """
        return int(self._contexts(index, index + 1, (self._source,))[0][0]) if self.context else 0

    def reference_ids(self, index: int) -> Int64s:
        """The whole target text of row ``index`` as token ids, without template, never cut."""
        return self._text(index, self._target).astype(np.int64, copy=False)

    def is_blank(self, index: int) -> bool:
        """Whether row ``index`` has no source text."""
        return not self.text_length(index)

    def blank(self) -> int:
        """How many rows have no source text; reads the offsets of the whole split."""
        lengths = (self.split.lengths(self._source.column, *chunk) for chunk in chunks(len(self)))
        return sum(int((found == 0).sum()) for found in lengths)

    def runs(self, stop: int) -> list[range]:
        """Rows 0 .. ``stop - 1`` in runs that need nothing of one another when output is generated for them.

        Where earlier outputs are the context of later ones, these are the documents.
        """
        if self.context is None or self.context.target != "given":
            return [range(row, row + 1) for row in range(stop)]
        documents = self.split.values(DOCUMENT, 0, stop)
        bounds = [0, *(np.flatnonzero(np.diff(documents)) + 1).tolist(), stop]
        return [range(*pair) for pair in pairwise(bounds) if pair[0] < pair[1]]

    def lengths(self, start: int, stop: int) -> Int64s:
        """(stop - start, 2): source and target lengths of rows ``start`` .. ``stop - 1`` as `pair` gives them."""
        sides = (self._source, self._target)
        texts = [np.minimum(self.split.lengths(side.column, start, stop), side.room) + side.special for side in sides]
        return np.stack(texts, axis=1) + self._context_tokens(start, stop)

    def positions(self) -> tuple[int, int]:
        """Source tokens and scored target tokens of all rows, as `pair` gives them; reads the whole split's offsets."""
        totals = np.zeros(2, np.int64)
        for chunk in chunks(len(self)):
            totals += self.lengths(*chunk).sum(axis=0)
            if self.context and self.context.target == "given":
                totals[1] -= self._context_tokens(*chunk)[:, 1].sum()
        return int(totals[0]), int(totals[1])

    def truncated(self) -> dict[str, int]:
        """How many sources, targets and contexts are cut; reads the offsets of the whole split."""
        counts = {"source": 0, "target": 0, "context": 0}
        for chunk in chunks(len(self)):
            for role, side in (("source", self._source), ("target", self._target)):
                counts[role] += int((self.split.lengths(side.column, *chunk) > side.room).sum())
            if self.context:
                shown, there = self._contexts(*chunk, self._with_context)
                counts["context"] += int((shown < there).sum())
        return counts

    def _text(self, index: int, side: TextSide) -> npt.NDArray[Any]:
        text: npt.NDArray[Any] = self.split[index][side.column]
        return text

    def _earlier(self, index: int) -> int:
        return int(self._contexts(index, index + 1, self._with_context)[0][0])

    @cached_property
    def _with_context(self) -> tuple[TextSide, ...]:
        """The sides on which a training row shows context; both show the same sentences."""
        if self.context is None:
            return ()
        return (self._source,) if self.context.target == "none" else (self._source, self._target)

    def _contexts(self, start: int, stop: int, sides: tuple[TextSide, ...]) -> tuple[Int64s, Int64s]:
        """How many earlier rows are shown with each of rows ``start`` .. ``stop - 1``, and how many there would be."""
        assert self.context is not None
        base = max(0, start - self.context.size)
        lengths = [self.split.lengths(side.column, base, stop) for side in sides]
        documents = self.split.values(DOCUMENT, base, stop)
        return self.context.earlier(lengths, [side.room for side in sides], documents, start - base)

    def _context_tokens(self, start: int, stop: int) -> Int64s:
        """(stop - start, 2): tokens of context on either side, separators included."""
        tokens = np.zeros((stop - start, 2), np.int64)
        if self.context is None:
            return tokens
        base = max(0, start - self.context.size)
        shown = self._contexts(start, stop, self._with_context)[0]
        ends = np.arange(start, stop) - base
        for number, side in enumerate(self._with_context):
            before = np.concatenate([[0], np.cumsum(self.split.lengths(side.column, base, stop) + 1)])
            tokens[:, number] = before[ends] - before[ends - shown]
        return tokens


@dataclass(frozen=True)
class PairCorpus:
    """Pairs of one data folder in one direction, under the name that figures about them bear.

    Raises `DataError` for a context in a folder that does not say which document a row is of.
    """

    name: str
    data: DataFolder
    source: TextSide
    target: TextSide
    context: Context | None = None

    def __post_init__(self) -> None:
        if self.context and DOCUMENT not in self.data.columns:
            raise DataError(
                f"{self.data.path}: --context-size {self.context.size} needs to know the document of each row; "
                "preprocess again with --document-column NAME (beside text files: PREFIX.NAME)"
            )

    def rows(self, split_name: str) -> PairRows:
        """The rows of a split; raises `DataError` for a split that is not there."""
        return PairRows(self, self.data.split(split_name))

    def settings(self) -> dict[str, Any]:
        """What decides how a row is shown, as JSON values under the names of flags where there are any."""
        found: dict[str, Any] = {}
        for role, side in (("source", self.source), ("target", self.target)):
            found[f"max_{role}_positions"] = side.room + side.special
            found[f"{role}_template"] = [list(side.template.prefix), list(side.template.suffix)]
        if self.source.prompt:
            found["source_prompt"] = list(self.source.prompt)
        if self.context:
            found["context_size"] = self.context.size
            found["context_separator"] = self.context.separator
            found["context_target"] = self.context.target
            # A row shows rows of other shards too, so that none may change without the others.
            found["context_data"] = self._fingerprint()
        return found

    def _fingerprint(self) -> str:
        files = [entry["sha256"] for split in self.data.splits for entry in self.data.entries(split)]
        return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:16]
