"""English-French package descriptions of Debian as parallel text: {train,valid,test}.{en,fr}.

The Debian Description Translation Project translates package descriptions by hand; the package archive serves them as
the index files Translation-en and Translation-fr. They are fetched with apt into a private folder: no root needed,
nothing of the system touched. Where there is no apt, the books of OPUS are taken from the Hugging Face hub instead.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from cktk.errors import CktkError, DataError
from cktk.utils.files import atomic_file

sys.path.append(str(Path(__file__).resolve().parents[1]))  # what the examples share
import debian_index

Pair = tuple[str, str]

#: Digests of the held-out English paragraphs. They pin down valid and test, whatever the archive serves by now.
HELD_OUT = Path(__file__).with_name("held_out.txt")
SPLITS = ("train", "valid", "test")
LONGEST = 100  # words of an English paragraph; longer ones are mostly lists


def main(argv: list[str] | None = None) -> int:
    """Write the six files into ``--dest`` unless they are there; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--dest", type=Path, default=Path("work/data"), help="folder to write (default: %(default)s)")
    dest: Path = parser.parse_args(argv).dest
    try:
        print(fetch(dest))
    except CktkError as error:
        print(f"fetch.py: error: {error}", file=sys.stderr)
        return 1
    return 0


def fetch(dest: Path) -> str:
    """Make the splits in ``dest`` and return a line on what they hold; existing files are kept."""
    if not all((dest / f"{split}.{language}").exists() for split in SPLITS for language in ("en", "fr")):
        dest.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=dest, prefix=".apt-") as folder:
            splits = _splits(Path(folder))
        for split, pairs in splits.items():
            for column, language in enumerate(("en", "fr")):
                with atomic_file(dest / f"{split}.{language}", "w", encoding="utf-8", newline="\n") as stream:
                    stream.writelines(pair[column] + "\n" for pair in pairs)
    counts = {split: _count_lines(dest / f"{split}.en") for split in SPLITS}
    return f"{dest}: " + ", ".join(f"{count:,} {split}" for split, count in counts.items()) + " pairs"


def _splits(apt_folder: Path) -> dict[str, list[Pair]]:
    try:
        english, french = debian_index.fetch_descriptions(apt_folder)
    except DataError as apt_error:
        print(f"{apt_error}; trying opus_books from the Hugging Face hub", file=sys.stderr)
        try:
            return split_by_hash(_opus_books())
        except Exception as hub_error:
            # Whatever the hub client raises, there is nothing left to try.
            raise DataError(
                f"no data: {apt_error}; opus_books: {hub_error}. Run on Debian or with access to the Hugging Face hub, "
                "or lay your own {train,valid,test}.{en,fr} into the data folder"
            ) from hub_error
    return split_held_out(paragraph_pairs(english, french))


# -- Debian ------------------------------------------------------------------------------------------------------------


def paragraph_pairs(english: dict[str, str], french: dict[str, str]) -> Iterator[Pair]:
    """Aligned paragraphs, by checksum; each English paragraph once, of at most `LONGEST` words.

    Descriptions whose translation has another number of paragraphs are left out.
    """
    seen = set()
    for checksum in sorted(english.keys() & french.keys()):
        sources, targets = (debian_index.paragraphs(language[checksum]) for language in (english, french))
        if len(sources) != len(targets):
            continue
        for source, target in zip(sources, targets, strict=True):
            if source not in seen and 1 <= len(source.split()) <= LONGEST and target.split():
                seen.add(source)
                yield source, target


def split_held_out(pairs: Iterable[Pair]) -> dict[str, list[Pair]]:
    """Valid and test are the listed paragraphs, train is all the rest."""
    listed = (line.split() for line in HELD_OUT.read_text().splitlines())
    split_of = {name: split for split, name in listed}
    splits: dict[str, list[Pair]] = {split: [] for split in SPLITS}
    for pair in pairs:
        splits[split_of.get(debian_index.digest(pair[0]), "train")].append(pair)
    return splits


# -- Elsewhere ---------------------------------------------------------------------------------------------------------


def _opus_books() -> Iterator[Pair]:
    from datasets import load_dataset  # an import of seconds that Debian systems need not wait for

    seen = set()
    for row in load_dataset("Helsinki-NLP/opus_books", "en-fr", split="train"):
        source, target = (" ".join(row["translation"][language].split()) for language in ("en", "fr"))
        if source not in seen and 1 <= len(source.split()) <= LONGEST and target:
            seen.add(source)
            yield source, target


def split_by_hash(pairs: Iterable[Pair]) -> dict[str, list[Pair]]:
    """3 % test and 3 % valid, chosen by a hash of the English side, so that a pair never changes its split."""
    splits: dict[str, list[Pair]] = {split: [] for split in SPLITS}
    for pair in pairs:
        percentile = int(debian_index.digest(pair[0]), 16) % 100
        splits["test" if percentile < 3 else "valid" if percentile < 6 else "train"].append(pair)
    return splits


def _count_lines(path: Path) -> int:
    with open(path, "rb") as stream:
        return sum(1 for _ in stream)


if __name__ == "__main__":
    sys.exit(main())
