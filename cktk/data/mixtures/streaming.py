"""Text straight from a streaming `datasets` source: tokenised on the fly, never all in memory, continued exactly.

A window of a mixture is read beside the training, while the model learns from the window before. What a checkpoint
keeps is where a window begins, so nothing that was read ahead is part of it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from itertools import islice
from typing import Any

import numpy as np

from cktk.data.batching import Int64s
from cktk.data.mixtures.background import Background, Job
from cktk.data.mixtures.mixture import Place
from cktk.data.sources.stream_sources import StreamSource, StreamSpec
from cktk.data.texts import Ids, cut_samples
from cktk.errors import CheckpointError, CktkError, DataError

_log = logging.getLogger(__name__)

#: Texts that are tokenised at a time. Part of the order: blocks do not reach over them.
CHUNK_TEXTS = 256
#: Streams that are read at the same time: most of it is waiting for the network.
_THREADS = 8


class TextStream:
    """The texts of ``column`` in the order of the source, once; `open` comes first."""

    def __init__(self, spec: StreamSpec, column: str) -> None:
        self.spec, self._column = spec, column
        self.source = StreamSource.find(spec)
        self.settings = {"stream": str(spec), "files": dict(self.source.files), "column": column}

    def open(self) -> None:
        """Go to the beginning, and see whether there are texts; raises `DataError`."""
        self._data = self.source.open()
        self._begin(None)
        if not self.read(1):
            raise self.source.empty()
        self._begin(None)

    def go_to(self, state: Mapping[str, Any] | None) -> None:
        """Go to the position of ``state``; None is the beginning."""
        if self._moved or self._began is not None:
            self._data = self.source.open()  # which takes a while
        self._begin(state)

    def _begin(self, state: Mapping[str, Any] | None) -> None:
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
            raise self.source.unreadable(error, self._followed()) from error
        return texts

    def state(self) -> Mapping[str, Any] | None:
        """The position behind the last text read, as JSON values."""
        return dict(self._data.state_dict()) if self._moved else self._began

    def _followed(self) -> Any:
        """The data where its state tells the file: behind a loaded one, `datasets` does not count files on."""
        return self._data if self._began is None else None

    def _text(self, row: Mapping[str, Any]) -> str:
        if self._column not in row:
            raise DataError(
                f"{self.source.at(self._followed())}: no column {self._column!r}; choose with --stream-column among: "
                f"{', '.join(row)}"
            )
        text = row[self._column]
        if not isinstance(text, str | None):
            raise DataError(
                f"{self.source.at(self._followed())}: column {self._column!r} holds {type(text).__name__}, not text; "
                "choose another"
            )
        return text or ""


class SampleStream:
    """The samples of a stream, pass after pass; see `cut_samples` for ``room`` and ``separator``.

    ``encode`` gives token ids without special ones. When the stream ends it starts over. In memory is one chunk of
    texts.
    """

    def __init__(
        self,
        stream: TextStream,
        encode: Callable[[list[str]], list[Ids]],
        room: int,
        separator: int | None,
        chunk_texts: int = CHUNK_TEXTS,
    ) -> None:
        self.stream = stream
        self.settings = {**stream.settings, "room": room, "separator": separator, "chunk_texts": chunk_texts}
        self._encode = encode
        self._room, self._separator, self._chunk_texts = room, separator, chunk_texts
        # The chunk that is being read: where it begins, how many samples of the pass are before it, and its own.
        self._position: Mapping[str, Any] | None = None
        self._before = self._next = 0
        self._chunk: list[Ids] = []

    def mark(self) -> dict[str, Any]:
        """Where the next sample is, as JSON values."""
        return {"position": self._position, "before": self._before, "samples": self._next}

    def go_to(self, mark: Mapping[str, Any]) -> None:
        """Go to where `mark` was asked for."""
        self.stream.go_to(mark["position"])
        self._position, self._before = mark["position"], mark["before"]
        self._chunk, self._next = [], 0
        if mark["samples"]:
            self._read_chunk()
            self._next = mark["samples"]

    def some(self, most: int) -> list[Ids]:
        """The next samples, as many as the chunk that is being read, or else the next one, has of the ``most``."""
        if self._next == len(self._chunk):
            self._read_chunk()
        found = self._chunk[self._next : self._next + most]
        self._next += len(found)
        return found

    def _read_chunk(self) -> None:
        """The samples of the next chunk, none at the end of a pass."""
        self._before += len(self._chunk)
        self._position, self._chunk, self._next = self.stream.state(), [], 0
        if texts := self.stream.read(self._chunk_texts):
            self._chunk = cut_samples(self._encode(texts), self._room, self._separator)
            return
        if not self._before:
            raise self.stream.source.empty()
        _log.info("the stream %s has ended after %d samples and starts over", self.stream.spec.corpus, self._before)
        self.stream.go_to(None)
        self._before = 0


class StreamCorpus:
    """A `Corpus` of a stream, which is read in the ``background``.

    ``lengths`` gives the sides (n, 2) of samples with the given numbers of tokens. In memory are the samples taken
    last and those read ahead.
    """

    rows = None

    def __init__(self, samples: SampleStream, lengths: Callable[[Int64s], Int64s], background: Background) -> None:
        self.name, self.settings = samples.stream.spec.corpus, samples.settings
        self._samples, self._lengths, self._background = samples, lengths, background
        self._held: dict[int, Ids] = {}
        #: Where in the stream the sample with this number is: at the ends of what was taken.
        self._marks: dict[int, dict[str, Any]] = {0: samples.mark()}
        self._at: int | None = None
        self._ahead: tuple[int, int, Future[list[Ids]]] | None = None

    def ahead(self, start: int, stop: int) -> None:
        """See `Corpus.ahead`."""
        if self._ahead is not None and self._ahead[:2] == (start, stop):
            return
        self._drop()
        mark = None if self._at == start else self._mark(start)
        self._at = None  # until it is known that all went well
        self._ahead = start, stop, self._background.start(_read(self._samples, mark, stop - start))

    def take(self, start: int, stop: int) -> tuple[Int64s, Int64s]:
        """See `Corpus.take`; a number is that of the sample, counted on from pass to pass."""
        self.ahead(start, stop)
        assert self._ahead is not None
        future, self._ahead = self._ahead[2], None
        samples = future.result()
        self._at, self._marks[stop] = stop, self._samples.mark()
        self._held = dict(zip(range(start, stop), samples, strict=True))
        return np.arange(start, stop), self._lengths(np.array([len(ids) for ids in samples], np.int64))

    def place(self, number: int) -> Place:
        """See `Corpus.place`."""
        if number not in self._held:
            raise RuntimeError(f"sample {number} of the stream {self.name} is not among those taken last")
        return Place(self.name, 0, number, self._held[number])

    def state(self, start: int) -> dict[str, Any]:
        """The position of the chunk that holds sample ``start``, and how many of its samples are before that.

        Forgets earlier ones, as `Corpus.state` allows.
        """
        self._marks = {at: mark for at, mark in self._marks.items() if at >= start}
        return self._mark(start)

    def load_state(self, start: int, state: Mapping[str, Any]) -> None:
        """See `Corpus.load_state`; raises `CheckpointError` for a state without a position."""
        if not {"position", "before", "samples"} <= set(state):
            raise CheckpointError(f"the checkpoint has no position of the stream {self.name}; start a new run")
        self._drop()
        self._marks, self._at = {start: dict(state)}, None

    def _mark(self, number: int) -> dict[str, Any]:
        if number not in self._marks:
            raise RuntimeError(f"sample {number} of the stream {self.name} is not at an end of what was taken")
        return self._marks[number]

    def _drop(self) -> None:
        """Forget what was read ahead."""
        if self._ahead is not None:
            future, self._ahead = self._ahead[2], None
            if not future.cancel():
                wait([future])


def _read(samples: SampleStream, mark: Mapping[str, Any] | None, number: int) -> Job[list[Ids]]:
    """The next ``number`` samples, or those at ``mark``."""
    if mark is not None:
        samples.go_to(mark)
    found: list[Ids] = []
    while len(found) < number:
        found += samples.some(number - len(found))
        yield
    return found


def _open(stream: TextStream) -> Job[None]:
    stream.open()
    yield


def open_streams(
    streams: Sequence[TextStream], make: Callable[[TextStream, Background], StreamCorpus]
) -> list[StreamCorpus]:
    """The corpora that ``make`` makes of ``streams``, opened side by side; raises `DataError`."""
    if not streams:
        return []
    background = Background(min(len(streams), _THREADS))
    for opened in [background.start(_open(stream)) for stream in streams]:
        opened.result()
    return [make(stream, background) for stream in streams]
