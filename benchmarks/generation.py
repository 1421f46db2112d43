"""Generation beside transformers and CTranslate2: speed, memory of the caches, and whether outputs are the same.

``python -m benchmarks.generation [--quick] [--only speed,products,...] [--json FILE]``. All engines run in turns in one
process, threads stated; times are medians. ``text`` and ``command`` translate the file ``--input`` with
``--student``, by default the test split of examples/debian_translation, which its run.sh fetches.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.generation_cache import cache_figures
from benchmarks.generation_products import product_figures
from benchmarks.generation_speed import speed_figures
from benchmarks.generation_text import command_figures, text_figures
from benchmarks.report import Figure, publish

EXAMPLE = Path(__file__).parents[1] / "examples" / "debian_translation"


def main() -> None:
    """Measure what is asked for and publish it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.generation", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one small student, one round, few sentences")
    parser.add_argument(
        "--only", default="speed,products,cache,text,command", help="parts to measure, with commas between"
    )
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    parser.add_argument("--student", type=Path, default=EXAMPLE / "models" / "student")
    parser.add_argument("--input", type=Path, default=EXAMPLE / "work" / "data" / "test.en")
    parser.add_argument("--reference", type=Path, default=EXAMPLE / "work" / "data" / "test.fr")
    arguments = parser.parse_args()
    files = (arguments.student, arguments.input, arguments.reference)
    parts: dict[str, Callable[[bool], list[Figure]]] = {
        "speed": speed_figures,
        "products": product_figures,
        "cache": cache_figures,
        "text": lambda quick: text_figures(*files, quick=quick),
        "command": lambda quick: command_figures(*files[:2], quick=quick),
    }
    names = arguments.only.split(",")
    if unknown := [name for name in names if name not in parts]:
        parser.error(f"--only: no part {unknown[0]!r}; there are {', '.join(parts)}")
    for file in files:
        if {"text", "command"} & set(names) and not file.exists():
            parser.error(f"{file} is missing; fetch it (examples/debian_translation/run.sh), or leave out text,command")
    print(f"torch {torch.__version__}")
    publish([figure for name in names for figure in parts[name](arguments.quick)], arguments.json)


if __name__ == "__main__":
    main()
