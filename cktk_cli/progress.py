"""A progress bar on stderr that disappears when it is done, and shows nothing where stderr is no terminal."""

from __future__ import annotations

import sys
from typing import Any, Self


class SentenceBar:
    """Counts sentences; ``total`` is None where it is not known. Call it with the number of sentences finished.

    It also shows nothing where ``beside_output``, which is written to stdout, it would stand on the same terminal.
    """

    def __init__(self, label: str, total: int | None, *, beside_output: bool = False) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar: Any = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("sentences"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
            disable=not sys.stderr.isatty() or (beside_output and sys.stdout.isatty()),
            redirect_stdout=False,
        )
        self._task = self._bar.add_task(label, total=total)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def __call__(self, sentences: int) -> None:
        if not self._bar.disable:
            self._bar.advance(self._task, sentences)
