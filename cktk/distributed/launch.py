"""``--nproc-per-node``: the command starts itself again under torchrun."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence


def under_torchrun() -> bool:
    """Whether torchrun (or another launcher with its environment) started this process."""
    return "WORLD_SIZE" in os.environ


def launch(module: str, argv: Sequence[str], processes: int) -> int:
    """Run ``python -m module argv`` in ``processes`` processes of this machine, and return the exit code."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = dict(os.environ)
    # torchrun would set 1 thread per process and say so at length; share the machine's cores out instead.
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    return subprocess.run([*torchrun, "-m", module, *argv], env=environment, check=False).returncode
