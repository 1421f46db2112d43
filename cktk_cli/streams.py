"""Lines in, lines out: what a command that generates reads and writes."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO

from cktk.errors import DataError
from cktk.generation.configs import GenerateConfig
from cktk.utils.files import atomic_file
from cktk_cli import lines
from cktk_cli.live import LiveLines, ReadLine
from cktk_cli.outputs import Finished, Output, Window
from cktk_cli.timing import Timing


def input_windows(config: GenerateConfig, live: LiveLines | None) -> Iterator[Window]:
    """The lines of ``--input``, or of what is ``live``, in windows of at most ``--buffer-size``.

    Memory stays bounded however long the input is. Raises `DataError` where ``--prefix`` has not a line for each.
    """
    found = _full_windows(config.input, config.buffer_size) if live is None else live.windows()
    prefixes = None if config.prefix is None else lines.read(config.prefix)
    seen = 0
    for window in found:
        begin = None if prefixes is None else list(islice(prefixes, len(window)))
        if begin is not None and len(begin) < len(window):
            if begin:
                yield _window(window[: len(begin)], begin)
            raise DataError(f"--prefix {config.prefix}: fewer lines than the input; give one line per input line")
        yield _window(window, begin)
        seen += len(window)
    if prefixes is not None and next(prefixes, None) is not None:
        raise DataError(f"--prefix {config.prefix}: more lines than the input ({seen}); give one line per input line")


def _full_windows(name: str, size: int) -> Iterator[list[ReadLine]]:
    found = lines.read(name)
    while True:
        now = time.perf_counter()
        window = [ReadLine(line, now) for line in islice(found, size)]
        if not window:
            return
        yield window


def _window(read: list[ReadLine], prefixes: list[str] | None) -> Window:
    texts = [line.text for line in read]
    return Window(texts, prefixes, [line.when for line in read])


def split_windows(config: GenerateConfig, numbers: range) -> Iterator[Window]:
    """The ``numbers`` of all rows of a split as one window."""
    prefixes = None if config.prefix is None else list(lines.read(config.prefix))
    yield Window(numbers, prefixes, [time.perf_counter()] * len(numbers))


def write(found: Iterable[Finished], output: str | None, timing: Timing, *, scores: bool, keep: bool) -> list[str]:
    """Write n-best lists as they come, with ``scores`` each output with its number and score.

    With ``keep`` the best outputs are also returned.
    """
    best, number = [], 1
    with opened(output) as out:
        for done in found:
            if keep:
                best += [outputs[0].text for outputs in done.outputs]
            # One write, which names stdout in an error (`cktk_cli.run`); writelines would not.
            out.write("".join(line for at, one in enumerate(done.outputs, number) for line in shown(at, one, scores)))
            out.flush()
            number += len(done.outputs)
            timing.add(done.started, done.read, done.counts)
    return best


def shown(number: int, outputs: list[Output], scores: bool) -> list[str]:
    """The lines that are written for line ``number`` of the input."""
    if not scores:
        return [_with_pairs(outputs[0]) + "\n"]
    return [f"{number}\t{one.score:.4f}\t{_with_pairs(one)}\n" for one in outputs]


def _with_pairs(output: Output) -> str:
    if output.alignment is None:
        return output.text
    return output.text + "\t" + " ".join(f"{source}-{target}" for source, target in output.alignment)


@contextmanager
def opened(name: str | None) -> Iterator[IO[str]]:
    """The file ``name``, which appears when all is written, or stdout for None."""
    if name is None:
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(encoding="utf-8", newline="\n")
        yield sys.stdout
        sys.stdout.flush()
    else:
        with atomic_file(Path(name), "w", encoding="utf-8", newline="\n") as stream:
            yield stream
