"""What every console script shares: errors become one line on stderr and a non-zero exit."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from typing import IO, Any, cast

from cktk.config.command import Command, Settings
from cktk.errors import CktkError, ConfigError

_STDOUT = "standard output"


def run_command(command: Command, work: Callable[[Settings], None], argv: Sequence[str] | None) -> int:
    """Parse ``argv``, do ``work``, and return the exit code: 0, 2 for bad usage, 1 for other errors, 130 for Ctrl-C.

    What the machine refuses (a full disk, a file without permission, memory) is an error of one line, too; all else
    that is raised is a fault of the program and keeps its traceback. Set ``CKTK_TRACEBACK=1`` to see the traceback of
    every error.
    """
    try:
        with redirect_stdout(cast(IO[str], _NamedStream(sys.stdout, _STDOUT))):
            work(command.parse(argv))
            sys.stdout.flush()  # what was buffered fails here, not behind our back
    except KeyboardInterrupt:
        print(f"{command.prog}: stopped", file=sys.stderr)
        return 130
    except (CktkError, OSError, MemoryError) as error:
        if isinstance(error, OSError) and error.filename == _STDOUT:
            # Pointed away, so that the interpreter's own flush at the end is quiet.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            if isinstance(error, BrokenPipeError):  # the reader has gone (`| head`): no error
                return 1
        reason = _reason(error)
        if reason is None or os.environ.get("CKTK_TRACEBACK"):
            raise
        _give_rank_0_the_word()
        print(f"{command.prog}: error: {' '.join(reason.split())}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    return 0


def _reason(error: Exception) -> str | None:
    """What to tell people; None for an error that only a traceback explains."""
    if isinstance(error, MemoryError):
        return "out of memory; ask for less at a time (smaller batches, fewer workers)"
    if not isinstance(error, OSError):
        return str(error)
    if error.errno is None:  # raised by a library for reasons of its own
        return None
    if error.filename is None:
        return f"{error.strerror} (CKTK_TRACEBACK=1 shows where)"
    return f"{os.fsdecode(error.filename)}: {error.strerror}"


class _NamedStream:
    """A stream whose errors tell its name, as those of files do."""

    def __init__(self, stream: IO[str], name: str) -> None:
        self._stream = stream
        self._name = name

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        written: int = self._try(lambda: self._stream.write(text))
        return written

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except OSError as error:
            error.filename = self._name
            raise


def _give_rank_0_the_word() -> None:
    """Under torchrun all ranks meet most errors alike: rank 0 tells, and its end is the end of those that wait here."""
    if int(os.environ.get("RANK", "0")) > 0:
        time.sleep(5)
