"""English-French package descriptions of Debian as parallel text: {train,valid,test}.{en,fr}.

The Debian Description Translation Project translates package descriptions by hand; the package archive serves them as
the index files Translation-en and Translation-fr. They are fetched with apt into a private folder: no root needed,
nothing of the system touched. Where there is no apt, the books of OPUS are taken from the Hugging Face hub instead.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from cktk.errors import CktkError, DataError
from cktk.utils.files import atomic_file

Pair = tuple[str, str]

#: Digests of the held-out English paragraphs. They pin down valid and test, whatever the archive serves by now.
HELD_OUT = Path(__file__).with_name("held_out.txt")
SPLITS = ("train", "valid", "test")
LONGEST = 100  # words of an English paragraph; longer ones are mostly lists

# The hooks of the system's apt need root, and mirrors offer indices that nobody here reads.
APT_CONF = """\
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear Acquire::IndexTargets::deb-src;
#clear Acquire::IndexTargets::deb;
#clear Acquire::Languages;
Acquire::IndexTargets::deb::Translations {{
    MetaKey "$(COMPONENT)/i18n/Translation-$(LANGUAGE)";
    ShortDescription "Translation-$(LANGUAGE)";
    Description "$(RELEASE)/$(COMPONENT) Translation-$(LANGUAGE)";
}};
Acquire::Languages {{ "en"; "fr"; }};
Acquire::Retries "3";
APT::Sandbox::User "";
Dir::State "{folder}/state";
Dir::State::Lists "{folder}/lists";
Dir::State::status "{folder}/status";
Dir::Cache "{folder}/cache";
"""


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
        english, french = _from_apt(apt_folder)
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


def _from_apt(folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Descriptions by their checksum, English and French, of the main component that apt's sources name."""
    if shutil.which("apt-get") is None:
        raise DataError("this system has no apt-get")
    for name in ("state", "lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "status").touch()
    (folder / "apt.conf").write_text(APT_CONF.format(folder=folder.resolve()))
    run = subprocess.run(
        ["apt-get", "-c", str(folder / "apt.conf"), "update"],
        env={**os.environ, "LC_ALL": "C"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    french = _best_index(folder / "lists")
    if french is None:
        said = (run.stderr.strip() or "apt's sources offer no French descriptions").splitlines()[0]
        raise DataError(f"apt-get update brought no Translation-fr ({said})")
    english = french.with_name(french.name.replace("Translation-fr", "Translation-en"))
    return descriptions(_read_index(english), "en"), descriptions(_read_index(french), "fr")


def _best_index(lists: Path) -> Path | None:
    """The French index of Debian 12's main component, else the largest one."""
    found = [
        path
        for path in lists.glob("*_main_i18n_Translation-fr*")
        if path.with_name(path.name.replace("Translation-fr", "Translation-en")).exists()
    ]
    return max(found, key=lambda path: ("_debian_dists_bookworm_main_" in path.name, path.stat().st_size), default=None)


def _read_index(path: Path) -> str:
    # apt may keep its lists compressed, by whatever method the system prefers; its own helper knows them all.
    command = ["/usr/lib/apt/apt-helper", "cat-file", str(path)]
    return subprocess.run(command, capture_output=True, check=True).stdout.decode("utf-8")


def descriptions(index: str, language: str) -> dict[str, str]:
    """Descriptions of a Translation file by the checksum of the English one that they translate."""
    found: dict[str, str] = {}
    for stanza in index.split("\n\n"):
        checksum = re.search(r"^Description-md5: (\S+)", stanza, re.MULTILINE)
        text = re.search(rf"^Description-{language}: (.*)", stanza, re.MULTILINE | re.DOTALL)
        if checksum and text:
            found.setdefault(checksum[1], text[1])
    return found


def paragraphs(description: str) -> list[str]:
    """The synopsis, then the paragraphs of the long description (which a lone full stop separates), a line each."""
    synopsis, _, body = description.partition("\n")
    return [synopsis.strip(), *(" ".join(part.split()) for part in re.split(r"\n \.\n", body) if body)]


def paragraph_pairs(english: dict[str, str], french: dict[str, str]) -> Iterator[Pair]:
    """Aligned paragraphs, by checksum; each English paragraph once, of at most `LONGEST` words.

    Descriptions whose translation has another number of paragraphs are left out.
    """
    seen = set()
    for checksum in sorted(english.keys() & french.keys()):
        sources, targets = paragraphs(english[checksum]), paragraphs(french[checksum])
        if len(sources) != len(targets):
            continue
        for source, target in zip(sources, targets, strict=True):
            if source not in seen and 1 <= len(source.split()) <= LONGEST and target.split():
                seen.add(source)
                yield source, target


def digest(text: str) -> str:
    """Short name of a paragraph in `HELD_OUT`."""
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def split_held_out(pairs: Iterable[Pair]) -> dict[str, list[Pair]]:
    """Valid and test are the listed paragraphs, train is all the rest."""
    listed = (line.split() for line in HELD_OUT.read_text().splitlines())
    split_of = {name: split for split, name in listed}
    splits: dict[str, list[Pair]] = {split: [] for split in SPLITS}
    for pair in pairs:
        splits[split_of.get(digest(pair[0]), "train")].append(pair)
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
        percentile = int(digest(pair[0]), 16) % 100
        splits["test" if percentile < 3 else "valid" if percentile < 6 else "train"].append(pair)
    return splits


def _count_lines(path: Path) -> int:
    with open(path, "rb") as stream:
        return sum(1 for _ in stream)


if __name__ == "__main__":
    sys.exit(main())
