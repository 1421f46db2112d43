"""Blocks of rows to token ids and values, with the rules for unusual rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from cktk.data.manifest import VALUES
from cktk.data.preprocessing.layouts import Column
from cktk.data.shards import Ids
from cktk.data.tokenization.encoder import Encoder, Rows


class Rules(NamedTuple):
    """Fate of unusual rows: ``empty`` is drop or keep; ``overlong`` (> ``max_length`` tokens) also truncate."""

    empty: str = "drop"
    overlong: str = "keep"
    max_length: int = 1024


#: Consecutive rows: a list of cells for each column of a layout.
Block = Sequence[list[Any]]


class Encoded(NamedTuple):
    """The rows that remain of a block, texts as ids and values as one array a column, and what was counted in it."""

    columns: dict[str, Rows | Ids]
    counts: Counter[str]


class BlockEncoder:
    """Tokenises a block and applies the rules for unusual rows.

    Counted are ``empty``, ``overlong``, ``truncated`` and ``dropped_*`` rows, where one text suffices; ``unlabelled``
    rows, which have a value that is not known; ``unknown`` tokens; and ``special``: rows whose text spells a special
    token that the tokenizer takes for one.
    """

    def __init__(
        self, encode: Encoder, columns: Sequence[Column], rules: Rules, unknown: int | None, specials: Sequence[int]
    ) -> None:
        self._encode = encode
        self._columns = tuple(columns)
        self._rules = rules
        self._unknown = unknown
        self._specials = np.array(sorted(specials), np.int64)

    def __call__(self, block: Block, may_drop: bool) -> Encoded:
        """The rows of ``block``; without ``may_drop`` every row stays."""
        texts: dict[str, Rows] = {}
        values: dict[str, Ids] = {}
        counts: Counter[str] = Counter()
        for column, cells in zip(self._columns, block, strict=True):
            if column.values is None:
                texts[column.name] = self._encode(cells, column.role)
            else:
                values[column.name] = np.array(cells, VALUES[column.values.kind])
                counts["unlabelled"] += int(column.values.unknown(values[column.name]).sum())
        keep, overlong = self._judge(list(texts.values()), may_drop, counts)
        if not keep.all():
            texts = {name: _select(rows, keep) for name, rows in texts.items()}
            values = {name: array[keep] for name, array in values.items()}
        if self._rules.overlong == "truncate":
            counts["truncated"] = int(overlong[keep].sum())
            texts = {name: _truncate(rows, self._rules.max_length) for name, rows in texts.items()}
        if self._unknown is not None:
            counts["unknown"] = sum(int((rows.ids == self._unknown).sum()) for rows in texts.values())
        counts["special"] = int(np.logical_or.reduce([self._has_special(rows) for rows in texts.values()]).sum())
        found: dict[str, Rows | Ids] = {**texts, **values}
        return Encoded({column.name: found[column.name] for column in self._columns}, counts)

    def _judge(self, texts: Sequence[Rows], may_drop: bool, counts: Counter[str]) -> tuple[Ids, Ids]:
        """Which rows stay, and which are over-long; adds both to ``counts``."""
        empty = np.logical_or.reduce([rows.lengths == 0 for rows in texts])
        overlong = np.logical_or.reduce([rows.lengths > self._rules.max_length for rows in texts])
        counts += Counter(lines=len(empty), empty=int(empty.sum()), overlong=int(overlong.sum()))
        drop = np.zeros_like(empty)
        if may_drop and self._rules.empty == "drop":
            drop |= empty
            counts["dropped_empty"] = int(empty.sum())
        if may_drop and self._rules.overlong == "drop":
            counts["dropped_overlong"] = int((overlong & ~drop).sum())
            drop |= overlong
        return ~drop, overlong

    def _has_special(self, rows: Rows) -> Ids:
        found = np.zeros(len(rows.lengths), bool)
        positions = np.flatnonzero(np.isin(rows.ids, self._specials))
        found[np.searchsorted(np.cumsum(rows.lengths), positions, side="right")] = True
        return found


def _select(rows: Rows, keep: Ids) -> Rows:
    return Rows(rows.ids[np.repeat(keep, rows.lengths)], rows.lengths[keep])


def _truncate(rows: Rows, limit: int) -> Rows:
    if not (rows.lengths > limit).any():
        return rows
    starts = np.cumsum(rows.lengths) - rows.lengths
    place = np.arange(len(rows.ids)) - np.repeat(starts, rows.lengths)
    return Rows(rows.ids[place < limit], np.minimum(rows.lengths, limit))
