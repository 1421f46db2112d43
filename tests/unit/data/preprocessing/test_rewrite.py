"""New texts in one column: what changes, what stays, and how an interrupted call goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cktk.data.preprocessing import rewrite as module
from cktk.data.preprocessing.rewrite import Rewrite, rewrite
from cktk.data.shards import DataFolder, write_manifest, write_shard
from cktk.errors import DataError
from cktk.utils.files import read_json
from tests.unit.data.folders import content

SHARDS = (5, 3)
MADE_BY = {"fingerprint": "t", "search": {"beam": 4}}
JOB = Rewrite("train", "target", drop_empty=True, part_rows=2, made_by=MADE_BY, notes={"teacher": "here"})


@pytest.fixture
def data(tmp_path: Path) -> DataFolder:
    """Two shards of train, one of valid, with a document number a row."""
    folder = tmp_path / "data"
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "tokenizer/tokenizer.json").write_text("{}")
    rows = [np.array([10 + row, 11, 12][: 1 + row % 3]) for row in range(sum(SHARDS))]
    splits: dict[str, list[Any]] = {"train": [], "valid": []}
    for split, name, part in (
        ("train", "train-00000", rows[: SHARDS[0]]),
        ("train", "train-00001", rows[SHARDS[0] :]),
        ("valid", "valid-00000", rows[:2]),
    ):
        numbers = np.array([row[0] for row in part], np.int64)
        columns = {"source": part, "target": [row[::-1] for row in part], "document": numbers}
        splits[split].append(write_shard(folder, name, columns, 100))
    kinds = {"source": "tokens", "target": "tokens", "document": "integer"}
    write_manifest(folder, content(splits, columns=list(kinds), kinds=kinds))
    return DataFolder(folder)


class Texts:
    """Row r becomes r repeated r % 3 times; ``stop_at`` is a row that cannot be had."""

    def __init__(self, stop_at: int = -1) -> None:
        self.asked: list[range] = []
        self.stop_at = stop_at

    def __call__(self, rows: range) -> list[np.ndarray[Any, Any]]:
        if self.stop_at in rows:
            raise KeyboardInterrupt
        self.asked.append(rows)
        return [np.full(row % 3, 50 + row) for row in rows]


def made(data: DataFolder, dest: Path, job: Rewrite = JOB, **options: Any) -> Any:
    return rewrite(data, dest, job, Texts(**options), lambda rows: None)


def rows_of(folder: Path, split: str = "train") -> list[tuple[list[int], list[int], int]]:
    found = DataFolder(folder).split(split)
    return [
        (r["source"].tolist(), r["target"].tolist(), int(r["document"]))
        for r in map(found.__getitem__, range(len(found)))
    ]


def test_one_column_of_one_split_is_new(data: DataFolder, tmp_path: Path) -> None:
    dest = tmp_path / "new"
    assert made(data, dest) == {"lines": 8, "empty": 3, "dropped_empty": 3}
    old = rows_of(data.path)
    assert rows_of(dest) == [(old[r][0], [50 + r] * (r % 3), old[r][2]) for r in range(8) if r % 3]
    assert rows_of(dest, "valid") == rows_of(data.path, "valid")
    folder = DataFolder(dest)
    folder.verify()
    assert folder.split("train").shard_rows == [3, 2] and folder.columns == data.columns
    assert folder.fingerprint == data.fingerprint and (dest / "tokenizer/tokenizer.json").read_text() == "{}"
    assert (dest / "valid-00000.source.bin").stat().st_ino == (data.path / "valid-00000.source.bin").stat().st_ino
    manifest = read_json(dest / "manifest.json")
    assert manifest["rewritten"] == {"split": "train", "column": "target", "teacher": "here", **MADE_BY}
    assert manifest["splits"]["train"]["counts"]["empty"] == 3
    assert sorted(path.name for path in dest.glob("*") if path.is_dir()) == ["tokenizer"]


def test_empty_texts_may_stay(data: DataFolder, tmp_path: Path) -> None:
    job = Rewrite("train", "target", drop_empty=False, part_rows=3, made_by={})
    assert made(data, tmp_path / "new", job) == {"lines": 8, "empty": 3, "dropped_empty": 0}
    assert [target for _, target, _ in rows_of(tmp_path / "new")] == [[50 + r] * (r % 3) for r in range(8)]


def test_files_are_copied_where_links_cannot_be(
    data: DataFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_link(*paths: object) -> None:
        raise OSError("another disk")

    monkeypatch.setattr(module.os, "link", no_link)
    made(data, tmp_path / "new")
    assert rows_of(tmp_path / "new", "valid") == rows_of(data.path, "valid")
    assert (tmp_path / "new/valid-00000.source.bin").stat().st_nlink == 1


@pytest.mark.parametrize("stop_at", [0, 3, 4, 6])
def test_an_interrupted_call_goes_on(data: DataFolder, tmp_path: Path, stop_at: int) -> None:
    made(data, tmp_path / "whole")
    dest = tmp_path / "new"
    first = Texts(stop_at)
    with pytest.raises(KeyboardInterrupt):
        rewrite(data, dest, JOB, first, lambda rows: None)
    with pytest.raises(DataError, match="was not finished .* run the same cktk-generate --dest-dir again"):
        DataFolder(dest)
    second, skipped = Texts(), []
    rewrite(data, dest, JOB, second, skipped.append)
    asked = [row for texts in (first, second) for rows in texts.asked for row in rows]
    assert sorted(asked) == list(range(8)), "no row is generated twice"
    assert sum(skipped) == sum(map(len, first.asked))
    assert rows_of(dest) == rows_of(tmp_path / "whole")
    assert rewrite(data, dest, replace(JOB, notes={}), Texts(0), lambda rows: None) is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"made_by": {**MADE_BY, "fingerprint": "u"}}, "made with fingerprint t, not u; choose another folder"),
        ({"made_by": {**MADE_BY, "search": {"beam": 5}}}, "made with search beam 4, not 5"),
        ({"drop_empty": False}, "made with drop_empty True, not False"),
        ({"column": "source"}, "made with column target, not source"),
    ],
)
def test_other_settings_are_refused(data: DataFolder, tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    dest = tmp_path / "new"
    with pytest.raises(KeyboardInterrupt):
        made(data, dest, stop_at=6)
    with pytest.raises(DataError, match=words):
        made(data, dest, replace(JOB, **changes))


def test_what_is_there_stays(data: DataFolder, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine").write_text("")
    for dest, words in (("file", "is a file"), ("full", r"holds other data \(mine\)"), ("data", "holds other data")):
        with pytest.raises(DataError, match=words):
            made(data, tmp_path / dest)
    assert rows_of(data.path) and [path.name for path in (tmp_path / "full").iterdir()] == ["mine"]


def test_nothing_but_empty_texts_is_refused(data: DataFolder, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="all 8 texts of split train are empty"):
        rewrite(data, tmp_path / "new", JOB, lambda rows: [np.empty(0, np.int64)] * len(rows), lambda rows: None)
    with pytest.raises(DataError, match="no such split"):
        made(data, tmp_path / "other", Rewrite("gone", "target", True, 2, {}))
    assert not (tmp_path / "other").exists()
