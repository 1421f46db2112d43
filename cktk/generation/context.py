"""Output for sentences of documents: what of the sentences before stands before an output, and is taken off again."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol

from cktk.data.framing import Context, Frame, Ids
from cktk.errors import ConfigError
from cktk.protocols import Hypothesis


class Rows(Protocol):
    """Texts in the order of their documents, by number."""

    def earlier(self, index: int) -> int:
        """How many rows right before row ``index`` stand before its source."""

    def text_length(self, index: int) -> int:
        """Tokens of the source text of row ``index`` alone."""


class Beginning(NamedTuple):
    """What an output has to begin with, None for nothing; ``context`` of these tokens belong to earlier sentences."""

    ids: tuple[int, ...] | None
    context: int


#: Finds the n-best hypotheses, best first, of rows given by number.
Search = Callable[[Sequence[int], Sequence[Beginning]], list[list[Hypothesis]]]


class ContextualSearch:
    """Finds outputs for rows whose targets are framed by ``target`` and may have ``context`` before them.

    With context that is ``given``, a row is searched when those are done that stand before it, all documents side by
    side; its output begins with theirs (without ``special`` tokens), as many of the latest as leave room for a text as
    long as the row's source. Context that is ``generated`` is what an output has up to its last separator.
    ``known`` holds the outputs found so far by row number, without special tokens; rows without any have empty ones.
    """

    def __init__(self, target: Frame, context: Context | None, special: Collection[int]) -> None:
        self._target, self._special = target, frozenset(special)
        self._context = context
        self._kind = "none" if context is None else context.target
        self.known: dict[int, list[int]] = {}

    def __call__(
        self, rows: Rows, numbers: Sequence[int], prefixes: Sequence[Ids | None] | None, search: Search
    ) -> list[list[Hypothesis]]:
        """The n-best hypotheses of the rows ``numbers``, in order, without context.

        ``prefixes`` are what each output begins with, without template; a hypothesis begins with the template's prefix
        where anything is forced. Raises `ConfigError` for prefixes behind context that is generated.
        """
        if self._kind == "generated" and prefixes is not None and any(prefix is not None for prefix in prefixes):
            raise ConfigError("--prefix cannot stand behind context that is generated; use --context-target given")
        own = {} if prefixes is None else dict(zip(numbers, prefixes, strict=True))
        found: dict[int, list[Hypothesis]] = {}
        self._forget(numbers)
        for batch in self._rounds(rows, numbers):
            beginnings = [self._beginning(rows, number, own.get(number)) for number in batch]
            for number, beginning, best in zip(batch, beginnings, search(batch, beginnings), strict=True):
                found[number] = [self._without_context(hypothesis, beginning) for hypothesis in best]
                self.known[number] = [token for token in found[number][0].tokens if token not in self._special]
        return [found[number] for number in numbers]

    def _forget(self, numbers: Sequence[int]) -> None:
        """Drop the outputs that none of ``numbers`` and what follows can show."""
        oldest = min(numbers, default=0) - (self._context.size if self._context else 0)
        self.known = {number: ids for number, ids in self.known.items() if number >= oldest}

    def _rounds(self, rows: Rows, numbers: Sequence[int]) -> Iterator[list[int]]:
        """``numbers`` in such parts that none of them stands before another of its part or of an earlier part."""
        if self._kind != "given":
            yield list(numbers)
            return
        parts: list[list[int]] = []
        part_of: dict[int, int] = {}
        for number in sorted(numbers):
            before = range(number - rows.earlier(number), number)
            part = 1 + max((part_of.get(row, -1) for row in before), default=-1)
            part_of[number] = part
            if part == len(parts):
                parts.append([])
            parts[part].append(number)
        yield from parts

    def _beginning(self, rows: Rows, number: int, prefix: Ids | None) -> Beginning:
        context: list[int] = []
        if self._kind == "given":
            left = self._target.room - min(rows.text_length(number), self._target.room)
            for row in range(number - 1, number - 1 - rows.earlier(number), -1):
                sentence = self._target.context([self.known.get(row, [])])
                if len(context) + len(sentence) > left:
                    break
                context = sentence + context
        if prefix is None and not context:
            return Beginning(None, 0)
        own = () if prefix is None else map(int, prefix)
        return Beginning((*self._target.template.prefix, *context, *own), len(context))

    def _without_context(self, hypothesis: Hypothesis, beginning: Beginning) -> Hypothesis:
        tokens = hypothesis.tokens
        if beginning.context:
            start = len(self._target.template.prefix)
            return replace(hypothesis, tokens=tokens[:start] + tokens[start + beginning.context :])
        if self._kind == "generated" and self._target.separator in tokens:
            last = max(at for at, token in enumerate(tokens) if token == self._target.separator)
            return replace(hypothesis, tokens=tokens[last + 1 :])
        return hypothesis
