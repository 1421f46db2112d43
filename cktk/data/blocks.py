"""Blocks of parallel lines to rows of token ids, with the rules for unusual lines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cktk.data.encoder import Encoder, Rows
from cktk.data.shards import Ids


class Rules(NamedTuple):
    """Fate of unusual lines: ``empty`` is drop or keep; ``overlong`` (> ``max_length`` tokens) also truncate."""

    empty: str = "drop"
    overlong: str = "keep"
    max_length: int = 1024


class Block(NamedTuple):
    """Consecutive lines of both sides."""

    sources: list[str]
    targets: list[str]


class Encoded(NamedTuple):
    """The rows that remain of a block, and what was counted in it."""

    source: Rows
    target: Rows
    counts: Counter[str]


class BlockEncoder:
    """Tokenises a block and applies the rules for unusual lines.

    Counted are ``empty``, ``overlong``, ``truncated`` and ``dropped_*`` pairs, ``unknown`` tokens, and ``special``:
    pairs whose text spells a special token that the tokenizer takes for one.
    """

    def __init__(self, encode: Encoder, rules: Rules, unknown: int | None, specials: Sequence[int]) -> None:
        self._encode = encode
        self._rules = rules
        self._unknown = unknown
        self._specials = np.array(sorted(specials), np.int64)

    def __call__(self, block: Block, may_drop: bool) -> Encoded:
        """The rows of ``block``; without ``may_drop`` every line stays."""
        sides = [self._encode(block.sources, "source"), self._encode(block.targets, "target")]
        empty = np.logical_or(*(side.lengths == 0 for side in sides))
        overlong = np.logical_or(*(side.lengths > self._rules.max_length for side in sides))
        counts = Counter(lines=len(empty), empty=int(empty.sum()), overlong=int(overlong.sum()))
        drop = np.zeros_like(empty)
        if may_drop and self._rules.empty == "drop":
            drop |= empty
            counts["dropped_empty"] = int(empty.sum())
        if may_drop and self._rules.overlong == "drop":
            counts["dropped_overlong"] = int((overlong & ~drop).sum())
            drop |= overlong
        if drop.any():
            sides = [_select(side, ~drop) for side in sides]
        if self._rules.overlong == "truncate":
            counts["truncated"] = int(overlong[~drop].sum())
            sides = [_truncate(side, self._rules.max_length) for side in sides]
        if self._unknown is not None:
            counts["unknown"] = sum(int((side.ids == self._unknown).sum()) for side in sides)
        counts["special"] = int(np.logical_or(*(self._has_special(side) for side in sides)).sum())
        return Encoded(sides[0], sides[1], counts)

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
