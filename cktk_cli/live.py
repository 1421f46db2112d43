"""Lines of a stream that may never end, as they come: read by a thread, worked on by another."""

from __future__ import annotations

import io
import os
import stat
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from cktk.data.sources.text import decode_lines
from cktk.errors import DataError

_BLOCK = 1 << 16

#: Bytes of the longest line that is kept in memory until it ends.
LONGEST_LINE = 1 << 24


class ReadLine(NamedTuple):
    """A line, and when it was read (s, `time.perf_counter`)."""

    text: str
    when: float


class LiveLines:
    """The lines of the binary ``stream``, which messages call ``name``, in windows of at most ``size``.

    A thread reads ahead: at most ``size`` lines and what one look at the stream finds wait to be worked on. A window is
    all that waits, or with ``full`` as much as there may be. What goes wrong while reading is raised when
    the lines before it were handed out.
    """

    def __init__(self, stream: IO[bytes], name: str, size: int, *, full: bool = False) -> None:
        self._stream, self._name, self._size, self._full = stream, name, size, full
        self._fresh: list[str] = []
        self._waiting: deque[ReadLine] = deque()
        self._changed = threading.Condition()
        self._ended = self._closed = False
        self._error: BaseException | None = None

    def windows(self) -> Iterator[list[ReadLine]]:
        """One window after another, until the stream ends; call it once."""
        threading.Thread(target=self._read, name="cktk-lines", daemon=True).start()
        try:
            while window := self._next():
                yield window
        finally:
            with self._changed:
                self._closed = True
                self._changed.notify_all()
        if self._error is not None:
            raise self._error

    def _next(self) -> list[ReadLine]:
        enough = self._size if self._full else 1
        with self._changed:
            self._changed.wait_for(lambda: self._ended or len(self._waiting) >= enough)
            window = [self._waiting.popleft() for _ in range(min(self._size, len(self._waiting)))]
            self._changed.notify_all()
        return window

    def _read(self) -> None:
        try:
            # Not extend: the list is emptied meanwhile.
            for line in decode_lines(self._raw_lines(), self._name):
                self._fresh.append(line)
        except BaseException as error:  # it is for whoever works on the lines
            self._error = error
        self._hand_over()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _raw_lines(self) -> Iterator[bytes]:
        """Lines with their ends; all that were found are handed over before more are waited for."""
        begun: list[bytes] = []
        length, number = 0, 1
        while True:
            self._hand_over()
            block = b"" if self._closed else _read_some(self._stream)
            if not block:
                break
            *lines, rest = block.split(b"\n")
            for line in lines:
                yield b"".join([*begun, line, b"\n"])
                begun, length, number = [], 0, number + 1
            begun.append(rest)
            length += len(rest)
            if length > LONGEST_LINE:
                raise DataError(
                    f"{self._name}:{number}: more than {LONGEST_LINE >> 20} MiB without an end of the line; "
                    "break the text into lines"
                )
        if any(begun):
            yield b"".join(begun)

    def _hand_over(self) -> None:
        now = time.perf_counter()
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._waiting) < self._size)
            self._waiting.extend(ReadLine(line, now) for line in self._fresh)
            self._changed.notify_all()
        self._fresh.clear()


def _read_some(stream: Any) -> bytes:
    """What is there of a stream, at least a byte; nothing at its end."""
    found: bytes = stream.read1(_BLOCK)
    return found


def live_lines(name: str, size: int) -> LiveLines | None:
    """The lines of stdin ("-"), a pipe or a device; None for a file, whose end can be seen beforehand.

    Windows of a file that stands in for stdin are as full as they may be.
    """
    if name != "-":
        return None if Path(name).is_file() else LiveLines(open(name, "rb"), name, size)
    if sys.stdin is None:
        raise DataError("stdin: is closed; name a file with --input, or send lines")
    try:
        number = sys.stdin.fileno()
    except io.UnsupportedOperation:  # something that is put in the place of stdin
        return LiveLines(sys.stdin.buffer, "stdin", size)
    # A buffer of its own: the interpreter, when it exits, would wait for stdin's while a thread reads.
    stream = open(number, "rb", closefd=False)
    return LiveLines(stream, "stdin", size, full=stat.S_ISREG(os.fstat(number).st_mode))
