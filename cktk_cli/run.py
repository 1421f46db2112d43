"""What every console script shares: errors become one line on stderr and a non-zero exit."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence

from cktk.config.command import Command, Settings
from cktk.errors import CktkError, ConfigError


def run_command(command: Command, work: Callable[[Settings], None], argv: Sequence[str] | None) -> int:
    """Parse ``argv``, do ``work``, and return the exit code: 0, 2 for bad usage, 1 for other errors, 130 for Ctrl-C.

    Set ``CKTK_TRACEBACK=1`` to see the traceback of an error as well.
    """
    try:
        work(command.parse(argv))
    except BrokenPipeError:
        # The reader of our output has gone (`| head`); point stdout away so that the interpreter's last flush is quiet.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except CktkError as error:
        if os.environ.get("CKTK_TRACEBACK"):
            raise
        _give_rank_0_the_word()
        print(f"{command.prog}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    except KeyboardInterrupt:
        print(f"{command.prog}: stopped", file=sys.stderr)
        return 130
    return 0


def _give_rank_0_the_word() -> None:
    """Under torchrun all ranks meet most errors alike: rank 0 tells, and its end is the end of those that wait here."""
    if int(os.environ.get("RANK", "0")) > 0:
        time.sleep(5)
