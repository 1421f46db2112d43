"""Lines of text as the rows of a search: sentences in order, documents parted by blank lines."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cktk.data.batching import Int64s
from cktk.data.framing import NO_DOCUMENT, Context, Frame, Ids


class Lines:
    """Lines by number, counted on from one `add` to the next; only those that a later one may show are kept.

    A blank line is of no document and ends the one before it.
    """

    def __init__(self, source: Frame, context: Context | None) -> None:
        self._source, self._context = source, context
        self._kept: dict[int, Ids] = {}
        self._document_of: dict[int, int] = {}
        self._next = self._document = 0

    @property
    def source(self) -> Frame:
        """What goes around a line."""
        return self._source

    def add(self, texts: Sequence[Ids | None]) -> range:
        """Take in further lines (None: a blank one); returns their numbers."""
        start, back = self._next, self._context.size if self._context else 0
        for number in [number for number in self._kept if number < start - back]:
            del self._kept[number], self._document_of[number]
        for number, text in enumerate(texts, start):
            self._kept[number] = () if text is None else text
            self._document_of[number] = NO_DOCUMENT if text is None else self._document
            self._document += text is None
        self._next += len(texts)
        return range(start, self._next)

    def text_length(self, number: int) -> int:
        """Tokens of a line."""
        return len(self._kept[number])

    def is_cut(self, number: int) -> bool:
        """Whether a line is longer than there is room for."""
        return self.text_length(number) > self.source.room

    def is_blank(self, number: int) -> bool:
        """Whether there is nothing to translate."""
        return self._document_of[number] == NO_DOCUMENT

    def earlier(self, number: int) -> int:
        """How many lines before it stand before a line."""
        if self._context is None:
            return 0
        window = [at for at in range(number - self._context.size, number + 1) if at in self._kept]
        lengths = np.array([len(self._kept[at]) for at in window])
        documents = np.array([self._document_of[at] for at in window])
        shown, _ = self._context.earlier([lengths], [self.source.room], documents, len(window) - 1)
        return int(shown[0])

    def source_ids(self, number: int) -> Int64s:
        """What the encoder gets for a line."""
        before = [self._kept[at] for at in range(number - self.earlier(number), number)]
        return self.source.framed(self._kept[number], before)
