from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cktk.data import shards
from cktk.data.shards import DataFolder, finished_shard, write_manifest, write_shard
from cktk.errors import DataError
from cktk.protocols import PairTemplate, Template
from tests.unit.data.folders import content, make


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch):
    """Waiting for the disk is not what these tests are about, and some make many files."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.lists(st.lists(st.lists(st.integers(0, 69_999), max_size=5), max_size=6), min_size=1, max_size=4),
    st.sampled_from([65_536, 65_537, 70_000]),
)
def test_rows_and_lengths_come_back(tmp_path_factory, tables, vocab_size):
    tables = [[[token % vocab_size for token in row] for row in rows] for rows in tables]
    data = make(tmp_path_factory.mktemp("data"), tables, vocab_size)
    split, flat = data.split("train"), [row for rows in tables for row in rows]
    assert len(split) == len(flat) and split.shard_rows == [len(rows) for rows in tables]
    assert [split[i]["source"].tolist() for i in range(len(split))] == flat
    assert [split[i]["target"].tolist() for i in range(len(split))] == [row[::-1] for row in flat]
    for start in range(len(flat) + 1):
        for stop in range(start, len(flat) + 1):
            lengths = split.lengths("source", start, stop)
            assert lengths.dtype == np.int64 and lengths.tolist() == [len(row) for row in flat[start:stop]]
    data.verify()


@pytest.mark.parametrize(("vocab_size", "width"), [(65_536, 2), (65_537, 4)])
def test_small_vocabularies_take_two_bytes_a_token(tmp_path, vocab_size, width):
    make(tmp_path, [[[vocab_size - 1, 5]]], vocab_size)
    assert (tmp_path / "train-00000.source.bin").stat().st_size == 2 * width


def test_attributes_are_those_of_the_manifest(tmp_path):
    data = make(tmp_path, [[[4, 5]]])
    assert data.languages == {"source": "en", "target": "fr"} and data.splits == ["train"]
    assert (data.vocab_size, data.pad, data.bos, data.eos, data.unk) == (100, 1, 0, 2, 3)
    assert data.fingerprint == "f" * 64 and data.tokenizer_path == tmp_path / "tokenizer"
    assert data.template("target", "fr") == Template((0,), (2, 7))
    with pytest.raises(DataError, match="no source language 'de'; present: en, fr"):
        data.template("source", "de")


def test_one_column_is_enough(tmp_path):
    entry = write_shard(tmp_path, "train-00000", {"text": [np.array([5, 6])]}, 100)
    write_manifest(tmp_path, content({"train": [entry]}, columns=["text"]))
    assert DataFolder(tmp_path).split("train")[0]["text"].tolist() == [5, 6]


def glue_like(folder: Path, shard_values: list[np.ndarray], kind: str = "integer", **changes: object) -> DataFolder:
    """Shards of one text column and one column of values."""
    folder.mkdir(exist_ok=True)
    entries = []
    for number, values in enumerate(shard_values):
        texts = [np.arange(4, 5 + row) for row in range(len(values))]
        entries.append(write_shard(folder, f"train-{number:05d}", {"text_a": texts, "label": values}, 100))
    made = {"task": "glue", "columns": ["text_a", "label"], "kinds": {"text_a": "tokens", "label": kind}, **changes}
    write_manifest(folder, content({"train": entries}, **made))
    return DataFolder(folder)


@pytest.mark.parametrize(
    ("kind", "labels"), [("integer", [[0, 2, -1], [], [1, 2**40]]), ("number", [[0.5, float("nan")], [-3e300]])]
)
def test_values_come_back_as_numbers(tmp_path, kind, labels):
    dtype = np.int64 if kind == "integer" else np.float64
    data = glue_like(tmp_path, [np.array(values, dtype) for values in labels], kind)
    split, flat = data.split("train"), np.array([value for values in labels for value in values], dtype)
    assert data.kinds == {"text_a": "tokens", "label": kind} and split.columns == ("text_a", "label")
    assert all(split[i]["label"].dtype == dtype and split[i]["label"].ndim == 0 for i in range(len(split)))
    np.testing.assert_array_equal([split[i]["label"] for i in range(len(split))], flat)
    for start in range(len(flat) + 1):
        for stop in range(start, len(flat) + 1):
            found = split.values("label", start, stop)
            assert found.dtype == dtype
            np.testing.assert_array_equal(found, flat[start:stop])
    assert split[1]["text_a"].tolist() == [4, 5] and split.lengths("text_a", 0, 2).tolist() == [1, 2]
    assert sorted(path.name for path in tmp_path.glob("train-00000.*")) == [
        "train-00000.json", "train-00000.label.bin", "train-00000.text_a.bin", "train-00000.text_a.idx",
    ]  # fmt: skip
    data.verify()


def test_labels_languages_and_pair_template_are_those_of_the_manifest(tmp_path):
    pair = {"prefix": [0], "middle": [2, 2], "suffix": [2], "token_types": True}
    rows = [np.array([1, 0])]
    data = glue_like(tmp_path / "a", rows, labels=["no", "yes"], pair_template=pair, languages={})
    assert (data.task, data.labels, data.languages) == ("glue", ("no", "yes"), {"text_a": ""})
    assert data.pair_template == PairTemplate((0,), (2, 2), (2,), token_types=True)
    unknown = {"source": {"": {"prefix": [0], "suffix": [2]}}, "target": {}}
    data = glue_like(tmp_path / "b", rows, templates=unknown)
    assert (data.labels, data.pair_template) == (None, None)
    assert data.template("source") == Template((0,), (2,))
    with pytest.raises(DataError, match=r"no target language ''; present: \(none\)"):
        data.template("target")


def test_a_folder_of_earlier_versions_is_one_of_translation(tmp_path):
    data = make(tmp_path, [[[4]]])
    assert not {"task", "kinds", "labels"} & set(json.loads((tmp_path / "manifest.json").read_text()))
    assert (data.task, data.labels) == ("translation", None)
    assert data.kinds == {"source": "tokens", "target": "tokens"}


def test_a_manifest_that_does_not_fit_its_columns_is_refused(tmp_path):
    with pytest.raises(DataError, match="shard train-00000 holds integer label, not number"):
        glue_like(tmp_path, [np.array([1])], "number")
    with pytest.raises(DataError, match="column label of kind float"):
        glue_like(tmp_path, [np.array([1])], "float")
    with pytest.raises(DataError, match="shard train-00000 holds no text_b, not tokens"):
        glue_like(tmp_path, [np.array([1])], columns=["text_a", "text_b"])
    glue_like(tmp_path, [np.array([1, 2])])
    (tmp_path / "train-00000.label.bin").write_bytes(b"\0" * 8)
    with pytest.raises(DataError, match=r"train-00000\.label\.bin: shard file has 8 bytes instead of 16"):
        DataFolder(tmp_path)


def test_a_pickled_split_reads_the_same_and_carries_no_data(tmp_path):
    split = make(tmp_path, [[[4, 5] * 5_000], [[6]]]).split("train")
    assert split[0]["source"].tolist() == [4, 5] * 5_000
    sent = pickle.dumps(split)
    assert len(sent) < 2_000
    assert pickle.loads(sent)[1]["source"].tolist() == [6]  # noqa: S301


def test_only_few_shards_are_open(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "_OPEN_SHARDS", 2)
    split = make(tmp_path, [[[n]] for n in range(5)]).split("train")
    assert [split[i]["source"].item() for i in (0, 1, 2, 3, 4, 0)] == [0, 1, 2, 3, 4, 0]
    assert len(split._open) == 2
    with pytest.raises(IndexError):
        split[5]


def test_bad_rows_are_not_written(tmp_path):
    with pytest.raises(DataError, match="column source holds token ids from 3 to 100, outside of the vocab"):
        write_shard(tmp_path, "train-00000", {"source": [np.array([3, 100])]}, 100)
    with pytest.raises(DataError, match="equally many rows"):
        write_shard(tmp_path, "train-00000", {"source": [np.array([3])], "target": []}, 100)
    assert list(tmp_path.iterdir()) == []


def test_a_shard_is_finished_when_its_files_are_whole(tmp_path):
    assert finished_shard(tmp_path, "train-00000") is None
    entry = write_shard(tmp_path, "train-00000", {"source": [np.array([3])]}, 100, {"text": "abc"})
    assert entry["text"] == "abc"
    assert finished_shard(tmp_path, "train-00000") == entry
    (tmp_path / "train-00000.source.bin").write_bytes(b"\0")
    assert finished_shard(tmp_path, "train-00000") is None
    (tmp_path / "train-00000.json").write_text("[1]")
    assert finished_shard(tmp_path, "train-00000") is None


def test_missing_and_unfinished_folders_say_what_to_do(tmp_path):
    with pytest.raises(DataError, match="no such data folder; make it with cktk-preprocess"):
        DataFolder(tmp_path / "nowhere")
    with pytest.raises(DataError, match="not a data folder"):
        DataFolder(tmp_path)
    write_shard(tmp_path, "train-00000", {"source": [np.array([3])]}, 100)
    with pytest.raises(DataError, match="preprocessing was not finished"):
        DataFolder(tmp_path)


def test_an_unknown_split_names_the_nearest(tmp_path):
    with pytest.raises(DataError, match="did you mean train"):
        make(tmp_path, [[[4]]]).split("trian")


def _truncate(folder: Path) -> str:
    (folder / "train-00000.target.bin").write_bytes(b"\0\0")
    return "train-00000.target.bin: shard file has 2 bytes instead of 4"


def _remove(folder: Path) -> str:
    (folder / "train-00000.source.idx").unlink()
    return "train-00000.source.idx: shard file is missing"


def _other_schema(folder: Path) -> str:
    return _edit(folder, "schema", 9) or "data schema 9, but this version of cktk reads schema 1"


def _no_templates(folder: Path) -> str:
    return _edit(folder, "templates", None) or "not a manifest of cktk-preprocess"


def _wrong_rows(folder: Path) -> str:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["splits"]["train"]["rows"] = 7
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return "rows of split train are not those of its shards"


def _not_json(folder: Path) -> str:
    (folder / "manifest.json").write_text("{")
    return "cannot be read as JSON"


def _edit(folder: Path, key: str, value: object) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, key: value}))


@pytest.mark.parametrize("damage", [_truncate, _remove, _other_schema, _no_templates, _wrong_rows, _not_json])
def test_damage_is_refused_at_opening(tmp_path, damage):
    make(tmp_path, [[[4, 5]]])
    words = damage(tmp_path)
    with pytest.raises(DataError, match=words) as caught:
        DataFolder(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_damage_of_equal_size_is_found_by_reading_and_by_verify(tmp_path):
    data = make(tmp_path, [[[4, 5], [6]]])
    np.array([4, 5, 999], "<u2").tofile(tmp_path / "train-00000.source.bin")
    split = DataFolder(tmp_path).split("train")
    assert split[0]["source"].tolist() == [4, 5]
    with pytest.raises(DataError, match=r"train-00000\.source: damaged shard \(row 1 does not hold token ids"):
        split[1]
    with pytest.raises(DataError, match=r"train-00000\.source\.bin: checksum differs"):
        data.verify()


@pytest.mark.parametrize(("offsets", "words"), [([0, 5, 3], "offsets decrease"), ([0, 1, 9], "do not run from 0 to 3")])
def test_damaged_offsets_are_found(tmp_path, offsets, words):
    make(tmp_path, [[[4, 5], [6]]])
    np.array(offsets, "<i8").tofile(tmp_path / "train-00000.source.idx")
    split = DataFolder(tmp_path).split("train")
    with pytest.raises(DataError, match=words):
        split.lengths("source", 0, 2)
    with pytest.raises(DataError, match="damaged shard"):
        split[0]


def test_a_manifest_that_could_not_be_opened_is_not_written(tmp_path):
    with pytest.raises(DataError, match="not a manifest"):
        write_manifest(tmp_path, {"languages": {"source": "en", "target": "fr"}})
    assert not (tmp_path / "manifest.json").exists()
