"""Lines in, lines out: what a command that generates reads and writes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, Any

from cktk.data.sources.text import decode_lines
from cktk.errors import DataError
from cktk.generation.configs import GenerateConfig
from cktk.utils.files import atomic_file
from cktk_cli import lines
from cktk_cli.progress import SentenceBar


def line_outputs(config: GenerateConfig, translator: Any) -> Iterator[Any]:
    """The n-best lists of each input line, as they come."""
    sources = decode_lines(sys.stdin.buffer, "stdin") if config.input == "-" else lines.read(config.input)
    prefixes = None if config.prefix is None else lines.read(config.prefix)
    with SentenceBar("generating", lines.count(config.input)) as bar:
        yield from _windows(translator, sources, prefixes, config, bar)


def _windows(
    translator: Any,
    sources: Iterator[str],
    prefixes: Iterator[str] | None,
    config: GenerateConfig,
    on_progress: Callable[[int], None],
) -> Iterator[Any]:
    """Work on ``--buffer-size`` lines at a time: memory stays bounded however long the input is."""
    seen, reader = 0, translator.reader()
    while window := list(islice(sources, config.buffer_size)):
        begin = None if prefixes is None else list(islice(prefixes, len(window)))
        seen += len(window)
        if begin is not None and len(begin) < len(window):
            raise DataError(f"--prefix {config.prefix}: fewer lines than the input; give one line per input line")
        yield from reader.translate_nbest(window, begin, on_progress)
    if prefixes is not None and next(prefixes, None) is not None:
        raise DataError(f"--prefix {config.prefix}: more lines than the input ({seen}); give one line per input line")


def write(found: Iterable[Any], output: str | None, *, scores: bool, keep: bool) -> list[str]:
    """Write n-best lists as they come, with ``scores`` each output with its number and score.

    With ``keep`` the best outputs are also returned.
    """
    best = []
    with _opened(output) as out:
        for number, outputs in enumerate(found, start=1):
            if keep:
                best.append(outputs[0].text)
            if not scores:
                out.write(outputs[0].text + "\n")
                continue
            for one in outputs:
                out.write(f"{number}\t{one.score:.4f}\t{one.text}\n")
    return best


@contextmanager
def _opened(name: str | None) -> Iterator[IO[str]]:
    if name is None:
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(encoding="utf-8", newline="\n")
        yield sys.stdout
        sys.stdout.flush()
    else:
        with atomic_file(Path(name), "w", encoding="utf-8", newline="\n") as stream:
            yield stream


def summary(counts: Any, seconds: float) -> None:
    """Tell on stderr what was done, and what was unusual."""
    speed = f"{counts.sentences / seconds:.1f} sentences/s, {counts.tokens / seconds:.0f} tokens/s"
    print(f"{counts.sentences} sentences in {seconds:.1f} s ({speed})", file=sys.stderr)
    if counts.truncated:
        print(f"warning: {counts.truncated} sources were over-long and cut", file=sys.stderr)
    if counts.empty:
        print(f"warning: {counts.empty} blank sources gave blank outputs", file=sys.stderr)
