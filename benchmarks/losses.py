"""The losses: how exact they are, and what they cost beside plain PyTorch and beside one another.

``python -m benchmarks.losses [--quick] [--only accuracy,head,step,memory] [--json FILE]``. Peers are measured in the
same run, in turns; times are medians.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.cka_accuracy import accuracy_figures
from benchmarks.head_loss import head_figures
from benchmarks.report import Figure, publish
from benchmarks.steps import memory_figures, step_figures

PARTS: dict[str, Callable[[bool], list[Figure]]] = {
    "accuracy": lambda _: accuracy_figures(),
    "head": head_figures,
    "step": step_figures,
    "memory": memory_figures,
}


def main() -> None:
    """Measure what is asked for and publish it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.losses", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, one round, no targets for time and memory")
    parser.add_argument("--only", default=",".join(PARTS), help=f"any of {', '.join(PARTS)}, with commas between")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    arguments = parser.parse_args()
    names = arguments.only.split(",")
    if unknown := [name for name in names if name not in PARTS]:
        parser.error(f"--only: no part {unknown[0]!r}; there are {', '.join(PARTS)}")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    publish([figure for name in names for figure in PARTS[name](arguments.quick)], arguments.json)


if __name__ == "__main__":
    main()
