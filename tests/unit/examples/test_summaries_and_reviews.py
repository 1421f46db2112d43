"""The data of the summarization and the sentiment example: rows that are kept, and splits that do not change."""

from __future__ import annotations

import importlib.util
import io
import tarfile
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"


def load(example: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"fetch_{example}", EXAMPLES / example / "fetch.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_summaries_are_long_enough_unique_and_on_one_line() -> None:
    fetch = load("debian_summarization")
    body = " ".join(["word"] * 19)
    texts = [f"a tool\n {body}\n .\n end", f"the same again\n {body} end", f"too short\n {body}", "no body"]
    assert list(fetch.summaries(texts)) == [(f"{body} end", "a tool")]
    splits = [fetch.split_of(f"description {number}") for number in range(2000)]
    assert 0.02 < splits.count("test") / 2000 < 0.04 and 0.02 < splits.count("valid") / 2000 < 0.04


def archive(files: dict[str, bytes]) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return made.getvalue()


def test_reviews(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch = load("minilm_sentiment")
    table = (
        "".join(f"{i}\t{(-1) ** i * 0.5}\tfilm number {i}\r\n" for i in range(300))
        + "9\t0\tso so\r\n1\t-1\tfilm number 2"
    )
    inner = archive({fetch.RATINGS: table.encode()})
    monkeypatch.setattr(fetch, "_download", lambda: archive({f"vaderSentiment-3.3.2/{fetch.RESOURCES}": inner}))
    counts = fetch.fetch_reviews(tmp_path)
    rows = [line.split("\t") for split in fetch.SPLITS for line in (tmp_path / f"{split}.tsv").read_text().splitlines()]
    found = {text: (label, rating) for text, label, rating in rows if text != "text"}
    assert len(found) == 300 and "so so" not in found  # rated 0
    assert found["film number 2"] == ("positive", "0.5000") and found["film number 3"] == ("negative", "-0.5000")
    assert fetch.fetch_reviews(tmp_path) == counts
