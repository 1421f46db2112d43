from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cktk.data.shards import DataFolder, write_manifest, write_shard
from cktk.data.texts import Texts, cut_samples
from cktk.errors import DataError
from tests.unit.data.folders import content

SHARDS = st.lists(st.lists(st.lists(st.integers(4, 90), max_size=7), max_size=6), min_size=1, max_size=3)


def folder_of(path: Path, shards: list[list[list[int]]]) -> DataFolder:
    path.mkdir(exist_ok=True)
    arrays = [[np.array(row, np.int64) for row in shard] for shard in shards]
    entries = [write_shard(path, f"train-{n:05d}", {"text": rows}, 100) for n, rows in enumerate(arrays)]
    write_manifest(path, content({"train": entries}, columns=["text"], languages={"text": "en"}, task="pretraining"))
    return DataFolder(path)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(SHARDS, st.integers(1, 9))
def test_blocks_are_the_texts_with_separators_cut_shard_by_shard(tmp_path, shards, room):
    texts = Texts(folder_of(tmp_path / "data", shards), "train", "text", room, separator=2)
    expected, per_shard = [], []
    for shard in shards:
        stream = [token for row in shard for token in (*row, 2)]
        blocks = [stream[at : at + room] for at in range(0, len(stream), room)]
        expected += blocks
        per_shard.append(len(blocks))
    assert [texts[index].tolist() for index in range(len(texts))] == expected
    assert list(texts.shard_rows) == per_shard and texts.truncated() == 0
    for start in range(len(expected) + 1):
        assert texts.lengths(start, len(expected)).tolist() == [len(block) for block in expected[start:]]
        assert texts.lengths(0, start).tolist() == [len(block) for block in expected[:start]]


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(SHARDS, st.integers(1, 9))
def test_without_blocks_samples_are_the_texts_cut(tmp_path, shards, room):
    texts = Texts(folder_of(tmp_path / "data", shards), "train", "text", room, separator=None)
    rows = [row for shard in shards for row in shard]
    assert [texts[index].tolist() for index in range(len(texts))] == [row[:room] for row in rows]
    assert texts.lengths(0, len(rows)).tolist() == [min(len(row), room) for row in rows]
    assert texts.truncated() == sum(len(row) > room for row in rows)


def test_streamed_samples_are_cut_alike(tmp_path):
    rows = [[5, 6, 7], [], [8], [9, 10, 11, 12, 13]]
    arrays = [np.array(row) for row in rows]
    stored = Texts(folder_of(tmp_path, [[row for row in rows if row]]), "train", "text", 4, 2)
    assert [ids.tolist() for ids in cut_samples(arrays, 4, 2)] == [stored[i].tolist() for i in range(len(stored))]
    assert [ids.tolist() for ids in cut_samples(arrays, 2, None)] == [[5, 6], [8], [9, 10]]
    assert cut_samples(arrays[1:2], 4, 2) == []


def test_a_column_that_is_not_there_is_named_with_those_that_are(tmp_path):
    with pytest.raises(DataError, match="has no column source of texts .but text.; .*--text-column"):
        Texts(folder_of(tmp_path, [[[5]]]), "train", "source", 4, None)
