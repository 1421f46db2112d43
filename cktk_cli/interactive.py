"""``cktk-generate --interactive``: a line in, its output at once."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator

from cktk.config.command import Settings
from cktk.generation.configs import GenerateConfig, SearchConfig
from cktk_cli.live import ReadLine, live_lines
from cktk_cli.outputs import LineModel
from cktk_cli.streams import opened, shown
from cktk_cli.timing import Timing

_PROMPT = "> "


def converse(settings: Settings) -> None:
    """Answer each line that is typed, or comes by a pipe, until the end of input; Ctrl-C leaves a line.

    Lines are those of one text where context is asked for.
    """
    config = settings.section(GenerateConfig)
    scores = config.print_scores or settings.section(SearchConfig).nbest > 1
    model, timing = LineModel(settings), Timing()
    model.translate([])  # what is made ready by the first call is not to keep the first line waiting
    typed = sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty()
    number = 0
    with opened(None) as out:
        for line in _typed() if typed else _piped():
            started = time.perf_counter()
            try:
                (outputs,), counts = model.translate([line.text])
            except KeyboardInterrupt:
                if not typed:
                    raise
                print(file=sys.stderr)
                continue
            number += 1
            out.write("".join(shown(number, outputs, scores)))
            out.flush()
            timing.add(started, [line.when], counts)
    timing.report()


def _piped() -> Iterator[ReadLine]:
    live = live_lines("-", 1)
    assert live is not None
    for window in live.windows():
        yield from window


def _typed() -> Iterator[ReadLine]:
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  input() then lets one edit the line
    while True:
        try:
            line = input(_PROMPT)
            line.encode()
        except EOFError:
            print(file=sys.stderr)
            return
        except KeyboardInterrupt:
            print(file=sys.stderr)
            continue
        except UnicodeError:
            print("not valid UTF-8; set the terminal to UTF-8, or type the line again", file=sys.stderr)
            continue
        yield ReadLine(line, time.perf_counter())
