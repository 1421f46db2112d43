"""Lines of a stream as they come."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from cktk.errors import DataError
from cktk_cli import live
from cktk_cli.live import LiveLines, live_lines


class Blocks:
    """A stream that gives one block of ``blocks`` at a look."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks, self.looks = blocks, 0

    def read1(self, _: int) -> bytes:
        self.looks += 1
        return next(self._blocks, b"")


def texts(blocks: list[bytes], size: int = 100, *, full: bool = True) -> list[list[str]]:
    stream: Any = Blocks(iter(blocks))
    return [[line.text for line in window] for window in LiveLines(stream, "it", size, full=full).windows()]


def until(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it never came to that")


@pytest.fixture
def pipe() -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    reading, writing = os.pipe()
    with open(reading, "rb") as ours, open(writing, "wb", buffering=0) as theirs:
        yield ours, theirs


def test_a_window_is_what_waits(pipe: tuple[IO[bytes], IO[bytes]]) -> None:
    ours, theirs = pipe
    windows = LiveLines(ours, "it", 100).windows()
    before = time.perf_counter()
    for sent, expected in (("a\n", ["a"]), ("b\n\nc\nd", ["b", "", "c"]), ("e\n", ["de"]), ("f", None)):
        theirs.write(sent.encode())
        if expected is not None:
            window = next(windows)
            assert [line.text for line in window] == expected
            assert all(before <= line.when <= time.perf_counter() for line in window)
    theirs.close()
    assert [line.text for line in next(windows)] == ["f"]
    assert next(windows, None) is None


def test_lines_do_not_depend_on_blocks() -> None:
    raw = "\ufeffone\r\n\n\u2028 two\x0c\nthree éé\n\nlast".encode()
    expected = ["one", "", "\u2028 two\x0c", "three éé", "", "last"]
    for width in (1, 2, 5, 1000):
        blocks = [raw[start : start + width] for start in range(0, len(raw), width)]
        assert texts(blocks) == [expected]
        assert texts(blocks, 4) == [expected[:4], expected[4:]]
        assert [line for window in texts(blocks, 1, full=False) for line in window] == expected
    assert texts([]) == texts([b""]) == []
    assert texts([b"\n"]) == [[""]]


def test_it_does_not_read_far_ahead() -> None:
    stream: Any = Blocks(b"line\n" for _ in range(3000))
    windows, taken = LiveLines(stream, "it", 4).windows(), 0
    for _ in range(20):
        window = next(windows)
        assert 1 <= len(window) <= 4
        taken += len(window)
        time.sleep(0.005)
        assert stream.looks <= taken + 4 + 2
    windows.close()  # type: ignore[attr-defined]
    looks = stream.looks
    until(lambda: stream.looks <= looks + 1)
    time.sleep(0.02)
    assert stream.looks <= looks + 1


def test_lines_before_an_error_are_handed_out() -> None:
    for full in (False, True):
        stream: Any = Blocks(iter([b"a\nb\n\xff\nd\n"]))
        windows = LiveLines(stream, "it", 10, full=full).windows()
        assert [line.text for line in next(windows)] == ["a", "b"]
        with pytest.raises(DataError, match=r"it:3: not valid UTF-8 \(byte 0xff at column 1\)"):
            next(windows)


def test_files_and_streams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, fifo = tmp_path / "file", tmp_path / "fifo"
    file.write_bytes(b"a\n" * 9)
    assert live_lines(str(file), 4) is None
    os.mkfifo(fifo)
    keep = os.open(fifo, os.O_RDWR)  # or opening would wait for a writer
    os.write(keep, b"x\n")
    found = live_lines(str(fifo), 4)
    assert found is not None and [line.text for line in next(found.windows())] == ["x"]
    os.close(keep)
    with open(file) as stream:  # a file in the place of stdin is read in full windows
        monkeypatch.setattr("sys.stdin", stream)
        found = live_lines("-", 4)
        assert found is not None and [len(window) for window in found.windows()] == [4, 4, 1]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a\nb")))
    found = live_lines("-", 4)
    assert found is not None and sum(len(window) for window in found.windows()) == 2
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(DataError, match="stdin: is closed; name a file with --input"):
        live_lines("-", 4)


def test_a_line_without_an_end_does_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lines before it are handed out; no more is read than is kept."""
    monkeypatch.setattr(live, "LONGEST_LINE", 1 << 20)
    stream: Any = Blocks(iter([b"first\nsecond\n", *[b"a" * (1 << 16)] * 100]))
    windows = LiveLines(stream, "it", 100, full=True).windows()
    assert [line.text for line in next(windows)] == ["first", "second"]
    with pytest.raises(DataError, match=r"^it:3: more than 1 MiB without an end of the line; break the text"):
        next(windows)
    assert stream.looks < 20
