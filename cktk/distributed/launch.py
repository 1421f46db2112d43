"""``--nproc-per-node``: the command starts itself again under torchrun."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

_PR_SET_PDEATHSIG = 1  # of linux/prctl.h


def under_torchrun() -> bool:
    """Whether torchrun (or another launcher with its environment) started this process."""
    return "WORLD_SIZE" in os.environ


def end_with_launcher() -> None:
    """Let the kernel (of Linux) end this process when its parent dies: a killed launcher can tell it nothing more."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def launch(module: str, argv: Sequence[str], processes: int) -> int:
    """Run ``python -m module argv`` in ``processes`` processes of this machine, and return the exit code.

    A signal to end is handed on to the processes, which have 30 seconds (torchrun's grace) to save and leave.
    """
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    torchrun: Any = run

    # torchrun would set 1 thread per process and say so at length; share the machine's cores out instead.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    # The processes say themselves what went wrong; torchrun's account of it would bury their line.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        torchrun.run(torchrun.parse_args(["--standalone", f"--nproc-per-node={processes}", "-m", module, *argv]))
    except ChildFailedError as error:
        code: int = error.get_first_failure()[1].exitcode
        return code if code > 0 else 128 - code
    except SignalException:
        return 0
    return 0
