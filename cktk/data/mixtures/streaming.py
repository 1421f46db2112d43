"""Text straight from a streaming `datasets` source: tokenised on the fly, never all in memory, continued exactly."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from cktk.data.batching import Int64s
from cktk.data.mixtures.mixture import Place
from cktk.data.sources.stream_sources import StreamSource, StreamSpec
from cktk.data.texts import cut_samples
from cktk.errors import CheckpointError, CktkError, DataError

_log = logging.getLogger(__name__)

#: Texts that are tokenised at a time. Part of the order: blocks do not reach over them.
CHUNK_TEXTS = 1_024

Ids = npt.NDArray[Any]


class TextStream:
    """The texts of ``column`` in the order of the source, once."""

    def __init__(self, spec: StreamSpec, column: str) -> None:
        self.spec, self._column = spec, column
        self.source = StreamSource.find(spec)
        self._began: Mapping[str, Any] | None = None
        self._moved = True
        self.go_to(None)

    def go_to(self, state: Mapping[str, Any] | None) -> None:
        """Go to the position of ``state``; None is the beginning."""
        if state == self._began and not self._moved:
            return  # it is there; opening takes a while
        self._data: Any = self.source.open()
        if state is not None:
            self._data.load_state_dict(dict(state))
        self._rows: Iterator[Mapping[str, Any]] = iter(self._data)
        self._began, self._moved = state, False

    def read(self, most: int) -> list[str]:
        """The next texts, fewer than ``most`` only at the end."""
        texts: list[str] = []
        try:
            for row in islice(self._rows, most):
                self._moved = True
                texts.append(self._text(row))
        except CktkError:
            raise
        except Exception as error:  # datasets raises many kinds: its own, of the network, of parsers
            raise self.source.unreadable(error, self._data) from error
        return texts

    def state(self) -> Mapping[str, Any] | None:
        """The position behind the last text read, as JSON values."""
        return dict(self._data.state_dict()) if self._moved else self._began

    def _text(self, row: Mapping[str, Any]) -> str:
        if self._column not in row:
            raise DataError(
                f"{self.source.at(self._data)}: no column {self._column!r}; choose with --stream-column among: "
                f"{', '.join(row)}"
            )
        text = row[self._column]
        if not isinstance(text, str | None):
            raise DataError(
                f"{self.source.at(self._data)}: column {self._column!r} holds {type(text).__name__}, not text; "
                "choose another"
            )
        return text or ""


class StreamCorpus:
    """A `Corpus` of a stream; see `cut_samples` for ``room`` and ``separator``.

    ``encode`` gives token ids without special ones, ``lengths`` the sides (n, 2) of samples with the given numbers of
    tokens. When the stream ends it starts over. In memory are the samples taken last and one chunk of texts.
    """

    rows = None

    def __init__(
        self,
        stream: TextStream,
        encode: Callable[[list[str]], list[Ids]],
        lengths: Callable[[Int64s], Int64s],
        room: int,
        separator: int | None,
        column: str,
        chunk_texts: int = CHUNK_TEXTS,
    ) -> None:
        self.name = stream.spec.corpus
        self.settings = {
            "stream": str(stream.spec),
            "files": dict(stream.source.files),
            "column": column,
            "room": room,
            "separator": separator,
            "chunk_texts": chunk_texts,
        }
        self._stream, self._encode, self._lengths = stream, encode, lengths
        self._room, self._separator, self._chunk_texts = room, separator, chunk_texts
        self._held: dict[int, Ids] = {}
        #: Where in the stream the sample with this number is: at the ends of what was taken.
        self._marks: dict[int, dict[str, Any]] = {0: {"position": None, "before": 0, "samples": 0}}
        self._at: int | None = None
        # The chunk that is being read: where it begins, how many samples of the pass are before it, and its own.
        self._position: Mapping[str, Any] | None = None
        self._before = self._next = 0
        self._samples: list[Ids] = []

    def take(self, start: int, stop: int) -> tuple[Int64s, Int64s]:
        """See `Corpus.take`; a number is that of the sample, counted on from pass to pass."""
        if self._at != start:
            self._go_to(start)
        self._held = {}
        for number in range(start, stop):
            self._held[number] = self._read()
        self._at = stop
        self._marks[stop] = {"position": self._position, "before": self._before, "samples": self._next}
        lengths = np.array([len(ids) for ids in self._held.values()], np.int64)
        return np.arange(start, stop), self._lengths(lengths)

    def place(self, number: int) -> Place:
        """See `Corpus.place`."""
        if number not in self._held:
            raise RuntimeError(f"sample {number} of the stream {self.name} is not among those taken last")
        return Place(self.name, 0, number, self._held[number])

    def state(self, start: int) -> dict[str, Any]:
        """The position of the chunk that holds sample ``start``, and how many of its samples are before that.

        Forgets earlier ones, as `Corpus.state` allows.
        """
        self._forget_before(start)
        return self._mark(start)

    def load_state(self, start: int, state: Mapping[str, Any]) -> None:
        """See `Corpus.load_state`; raises `CheckpointError` for a state without a position."""
        if not {"position", "before", "samples"} <= set(state):
            raise CheckpointError(f"the checkpoint has no position of the stream {self.name}; start a new run")
        self._marks, self._at = {start: dict(state)}, None

    def _forget_before(self, number: int) -> None:
        self._marks = {at: mark for at, mark in self._marks.items() if at >= number}

    def _mark(self, number: int) -> dict[str, Any]:
        if number not in self._marks:
            raise RuntimeError(f"sample {number} of the stream {self.name} is not at an end of what was taken")
        return self._marks[number]

    def _go_to(self, number: int) -> None:
        mark = self._mark(number)
        self._stream.go_to(mark["position"])
        self._position, self._before = mark["position"], mark["before"]
        self._samples, self._next = [], 0
        for _ in range(mark["samples"]):
            self._read()

    def _read(self) -> Ids:
        """The next sample."""
        while self._next == len(self._samples):
            self._read_chunk()
        self._next += 1
        return self._samples[self._next - 1]

    def _read_chunk(self) -> None:
        """The samples of the next chunk, none at the end of a pass."""
        self._before += len(self._samples)
        self._position, self._samples, self._next = self._stream.state(), [], 0
        if texts := self._stream.read(self._chunk_texts):
            self._samples = cut_samples(self._encode(texts), self._room, self._separator)
            return
        if not self._before:
            raise self._stream.source.empty()
        _log.info("the stream %s has ended after %d samples and starts over", self.name, self._before)
        self._stream.go_to(None)
        self._before = 0
