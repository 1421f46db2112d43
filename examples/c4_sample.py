"""The first texts of a language of mC4's validation split, as JSON lines with a column ``text``."""

from __future__ import annotations

import argparse
import json
import sys
from itertools import islice
from pathlib import Path

from cktk.utils.files import atomic_file


def main(argv: list[str] | None = None) -> int:
    """Write the file unless it is there; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--language", required=True, help="mC4's code of the language")
    parser.add_argument("--output", type=Path, required=True, help="file to write")
    parser.add_argument("--texts", type=int, default=500, help="how many (default: %(default)s)")
    parser.add_argument("--dataset", default="allenai/c4", help="name on the hub, or folder (default: %(default)s)")
    options = parser.parse_args(argv)
    if options.output.exists():
        return 0
    from datasets import load_dataset  # an import of seconds that --help need not wait for

    stream = load_dataset(options.dataset, options.language, split="validation", streaming=True)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(options.output, "w", encoding="utf-8", newline="\n") as file:
        for row in islice(stream, options.texts):
            file.write(json.dumps({"text": row["text"]}, ensure_ascii=False) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
