"""Package descriptions of Debian and their one-line synopses: {train,valid,test}.tsv with description and synopsis."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from cktk.errors import CktkError
from cktk.utils.files import atomic_file

sys.path.append(str(Path(__file__).resolve().parents[1]))  # what the examples share
import debian_index

SPLITS = ("train", "valid", "test")
#: Words of a description: shorter ones have nothing to summarise, longer ones are mostly lists.
FEWEST, MOST = 20, 399


def main(argv: list[str] | None = None) -> int:
    """Write the three files into ``--dest`` unless they are there; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--dest", type=Path, default=Path("work/data"), help="folder to write (default: %(default)s)")
    dest: Path = parser.parse_args(argv).dest
    try:
        print(fetch(dest))
    except CktkError as error:
        print(f"fetch.py: error: {error}; run on Debian, or lay your own files into {dest}", file=sys.stderr)
        return 1
    return 0


def fetch(dest: Path) -> str:
    """Make the splits in ``dest`` and return a line on what they hold; existing files are kept."""
    files = {split: dest / f"{split}.tsv" for split in SPLITS}
    if not all(file.exists() for file in files.values()):
        dest.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=dest, prefix=".apt-") as folder:
            english, _ = debian_index.fetch_descriptions(Path(folder))
        rows: dict[str, list[str]] = {split: [] for split in SPLITS}
        for description, synopsis in summaries(english[checksum] for checksum in sorted(english)):
            rows[split_of(description)].append(f"{description}\t{synopsis}\n")
        for split, lines in rows.items():
            with atomic_file(files[split], "w", encoding="utf-8", newline="\n") as stream:
                stream.writelines(["description\tsynopsis\n", *lines])
    counts = {split: _count_lines(file) - 1 for split, file in files.items()}
    return f"{dest}: " + ", ".join(f"{count:,} {split}" for split, count in counts.items()) + " descriptions"


def summaries(texts: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Long description, as one line, and synopsis of each text; every long description once."""
    seen = set()
    for text in texts:
        synopsis, *paragraphs = debian_index.paragraphs(text)
        description = " ".join(paragraphs).replace("\t", " ")
        if synopsis and description not in seen and FEWEST <= len(description.split()) <= MOST:
            seen.add(description)
            yield description, " ".join(synopsis.split())


def split_of(description: str) -> str:
    """3 % test and 3 % valid, chosen by a hash of the description, so that it never changes its split."""
    percentile = int(debian_index.digest(description), 16) % 100
    return "test" if percentile < 3 else "valid" if percentile < 6 else "train"


def _count_lines(path: Path) -> int:
    with open(path, "rb") as stream:
        return sum(1 for _ in stream)


if __name__ == "__main__":
    sys.exit(main())
