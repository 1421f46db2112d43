from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.bart.modeling_bart import shift_tokens_right as bart_shift
from transformers.models.mbart.modeling_mbart import shift_tokens_right as mbart_shift

from cktk.data.batch_config import BatchingConfig
from cktk.data.shards import DataFolder, write_manifest, write_shard
from cktk.errors import ConfigError, DataError
from cktk.protocols import IGNORED
from cktk.tasks.configs import TranslationConfig
from cktk.tasks.translation import TranslationTask
from tests.unit.data.folders import content, make

PAD, BOS, EOS, EN, FR = 1, 0, 2, 90, 91
BART = {lang: {"prefix": [BOS], "suffix": [EOS]} for lang in ("en", "fr")}
MBART_CC25 = {"en": {"prefix": [], "suffix": [EOS, EN]}, "fr": {"prefix": [], "suffix": [EOS, FR]}}
MBART_50 = {"en": {"prefix": [EN], "suffix": [EOS]}, "fr": {"prefix": [FR], "suffix": [EOS]}}
FAMILIES = {"bart": (BART, EOS), "mbart-cc25": (MBART_CC25, None), "mbart-50": (MBART_50, None)}


def random_texts(seed: int) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(4, 80, length % 10).tolist() for length in rng.permutation(40)]


PAIRS = list(zip(random_texts(1), random_texts(2), strict=True))


def pairs_folder(folder: Path, pairs: list[tuple[list[int], list[int]]], templates: dict, **changes) -> DataFolder:
    columns = {name: [np.array(pair[at], np.int64) for pair in pairs] for at, name in enumerate(("source", "target"))}
    entry = write_shard(folder, "train-00000", columns, 100)
    both = {"source": templates, "target": templates}
    write_manifest(folder, content({"train": [entry]}, templates=both, **changes))
    return DataFolder(folder)


def task_of(data: DataFolder, decoder_start: int | None = EOS, **options) -> TranslationTask:
    return TranslationTask(TranslationConfig(**options), data, pad=PAD, decoder_start=decoder_start)


def batch_of(task: TranslationTask, ids: list[int]):
    rows = task.rows("train")
    return task.collate([rows.pair(i) for i in ids], ids)


def padded(rows: list[list[int]], value: int) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value)


def around(template: dict, text: list[int], positions: int) -> list[int]:
    room = positions - len(template["prefix"]) - len(template["suffix"])
    return template["prefix"] + text[:room] + template["suffix"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, DataFolder]:
    """The same pairs with the templates of three model families."""
    found = {}
    for name, (templates, _) in FAMILIES.items():
        folder = tmp_path_factory.mktemp(name)
        found[name] = pairs_folder(folder, PAIRS, templates)
    return found


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, len(PAIRS) - 1), min_size=1, max_size=5),
    st.sampled_from(sorted(FAMILIES)),
    st.booleans(),
    st.integers(4, 12),
    st.integers(4, 12),
)
def test_batches_are_those_of_transformers(folders, ids, family, flipped, source_room, target_room):
    templates, decoder_start = FAMILIES[family]
    langs = ("fr", "en") if flipped else ("en", "fr")
    rooms = {"max_source_positions": source_room, "max_target_positions": target_room}
    task = task_of(folders[family], decoder_start, source_lang=langs[0], **rooms)
    batch = batch_of(task, ids)

    sides = [PAIRS[i][::-1] if flipped else PAIRS[i] for i in ids]
    sources = [around(templates[langs[0]], source, source_room) for source, _ in sides]
    targets = [around(templates[langs[1]], target, target_room) for _, target in sides]
    assert torch.equal(batch.inputs["input_ids"], padded(sources, PAD))
    assert torch.equal(batch.inputs["attention_mask"], padded([[1] * len(row) for row in sources], 0))
    labels = padded(targets, IGNORED)
    assert torch.equal(batch.labels, labels)
    shifted = mbart_shift(labels, PAD) if decoder_start is None else bart_shift(labels, PAD, decoder_start)
    assert torch.equal(batch.inputs["decoder_input_ids"], shifted)
    assert {tensor.dtype for tensor in (*batch.inputs.values(), batch.labels)} == {torch.int64}
    assert batch.ids == ids and not batch.dummy


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("positions", [4, 7, 20])
def test_lengths_are_those_of_the_batches(folders, positions, flipped):
    lang = "fr" if flipped else "en"
    rooms = {"max_source_positions": positions, "max_target_positions": positions + 1}
    task = task_of(folders["mbart-cc25"], None, source_lang=lang, **rooms)
    rows = task.rows("train")
    lengths = rows.lengths(0, len(PAIRS))
    cut = {"source": 0, "target": 0, "context": 0}
    for index, pair in enumerate(PAIRS):
        batch = batch_of(task, [index])
        assert lengths[index].tolist() == [batch.inputs["input_ids"].shape[1], batch.labels.shape[1]]
        source, target = pair[::-1] if flipped else pair
        cut["source"] += len(source) > positions - 2
        cut["target"] += len(target) > positions - 1
    assert rows.lengths(1, 9).tolist() == lengths[1:9].tolist()
    assert rows.truncated() == cut
    assert rows.positions() == tuple(lengths.sum(axis=0))


def test_truncated_rows_are_counted_over_all_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr("cktk.tasks.batches._CHUNK_ROWS", 2)
    data = pairs_folder(tmp_path, [([5] * n, [5] * (6 - n)) for n in range(7)], BART)
    assert task_of(data, max_source_positions=5).rows("train").truncated() == {"source": 3, "target": 0, "context": 0}


def test_padding_lies_behind_and_is_not_scored(tmp_path):
    data = pairs_folder(tmp_path, [([5], [6, 7, 8]), ([9, 10], [11])], BART)
    batch = batch_of(task_of(data), [0, 1])
    assert batch.inputs["input_ids"].tolist() == [[0, 5, 2, 1], [0, 9, 10, 2]]
    assert batch.inputs["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert batch.labels.tolist() == [[0, 6, 7, 8, 2], [0, 11, 2, IGNORED, IGNORED]]
    assert batch.inputs["decoder_input_ids"].tolist() == [[2, 0, 6, 7, 8], [2, 0, 11, 2, 1]]
    assert batch.counts() == {"target_token": 8, "source_token": 7, "sentence": 2, "microbatch": 1}


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_first_position_may_be_dropped(folders, family):
    _, decoder_start = FAMILIES[family]
    ids = list(range(12))
    whole = batch_of(task_of(folders[family], decoder_start), ids)
    dropped = batch_of(task_of(folders[family], decoder_start, drop_first_position=True), ids)
    assert torch.equal(dropped.labels[:, 1:], whole.labels[:, 1:])
    assert (dropped.labels[:, 0] == IGNORED).all() and (whole.labels[:, 0] != IGNORED).all()
    assert all(torch.equal(dropped.inputs[name], tensor) for name, tensor in whole.inputs.items())
    expected = whole.counts()
    expected["target_token"] -= len(ids)
    assert dropped.counts() == expected


def test_a_target_of_which_nothing_is_left_counts_no_tokens(tmp_path):
    bare = {lang: {"prefix": [], "suffix": [EOS]} for lang in ("en", "fr")}
    data = pairs_folder(tmp_path, [([5], []), ([6], [7])], bare)
    task = task_of(data, drop_first_position=True)
    assert batch_of(task, [0]).labels.tolist() == [[IGNORED]]
    assert batch_of(task, [0]).counts()["target_token"] == 0
    assert batch_of(task, [0, 1]).labels.tolist() == [[IGNORED, IGNORED], [IGNORED, EOS]]


def test_generation_gets_templated_sources_and_whole_references(tmp_path):
    data = pairs_folder(tmp_path, [([5, 6, 7, 8], [9, 10, 11, 12])], MBART_CC25)
    forward = task_of(data, None, max_source_positions=4, max_target_positions=4)
    assert forward.rows("train").source_ids(0).tolist() == [5, 6, EOS, EN]
    assert forward.rows("train").reference_ids(0).tolist() == [9, 10, 11, 12]
    back = task_of(data, None, target_lang="en")
    assert (back.source_lang, back.target_lang) == ("fr", "en")
    assert back.rows("train").source_ids(0).tolist() == [9, 10, 11, 12, EOS, FR]
    assert back.rows("train").reference_ids(0).tolist() == [5, 6, 7, 8]
    assert back.rows("train").source_ids(0).dtype == back.rows("train").reference_ids(0).dtype == np.int64


@pytest.mark.parametrize(
    ("templates", "decoder_start", "start", "forced"),
    [(BART, EOS, EOS, None), (MBART_CC25, None, FR, None), (MBART_50, None, EOS, FR)],
)
def test_how_decoding_begins(tmp_path, templates, decoder_start, start, forced):
    task = task_of(pairs_folder(tmp_path, [([5], [6])], templates), decoder_start)
    assert task.decoding_start == (start, forced)
    batch = batch_of(task, [0])
    assert batch.inputs["decoder_input_ids"][0, 0] == start
    assert forced is None or batch.labels[0, 0] == forced


def test_two_columns_may_be_of_one_language(tmp_path):
    data = pairs_folder(tmp_path, [([5], [6])], BART, languages={"source": "en", "target": "en"})
    assert batch_of(task_of(data), [0]).labels.tolist() == [[0, 6, 2]]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"source_lang": "de"}, "--source-lang de: .* holds en and fr"),
        ({"source_lang": "en", "target_lang": "en"}, "--source-lang en --target-lang en: .* holds en and fr"),
        ({"max_source_positions": 2}, "--max-source-positions 2 leaves no room for text beside 2 special tokens"),
        ({"max_target_positions": 1}, "--max-target-positions 1 leaves no room"),
    ],
)
def test_settings_that_do_not_fit_the_data_are_refused(tmp_path, options, words):
    data = pairs_folder(tmp_path, [([5], [6])], BART)
    with pytest.raises(ConfigError, match=words):
        task_of(data, **options)


def test_a_folder_without_pairs_or_end_token_is_refused(tmp_path):
    for name in ("bare", "alone"):
        (tmp_path / name).mkdir()
    endless = {lang: {"prefix": [BOS], "suffix": []} for lang in ("en", "fr")}
    with pytest.raises(DataError, match="no end token behind a source"):
        task_of(pairs_folder(tmp_path / "bare", [([5], [6])], endless))
    entry = write_shard(tmp_path / "alone", "train-00000", {"source": [np.array([5])]}, 100)
    write_manifest(tmp_path / "alone", content({"train": [entry]}, columns=["source"]))
    with pytest.raises(DataError, match=r"has no column target with a language \(but source\)"):
        task_of(DataFolder(tmp_path / "alone"))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_the_iterator_gives_the_batches_of_collate(tmp_path, num_workers):
    rng = np.random.default_rng(0)
    rows = [rng.integers(4, 80, rng.integers(1, 20)).tolist() for _ in range(60)]
    task = task_of(make(tmp_path, [rows[:20], rows[20:]]), max_source_positions=15)
    batching = BatchingConfig(max_tokens=80, num_workers=num_workers)
    batches = task.iterator("train", batching, True, 1)
    seen = []
    while update := batches.next_update(2):
        for batch in update:
            seen += batch.ids
            again = batch_of(task, batch.ids)
            assert all(torch.equal(batch.inputs[name], tensor) for name, tensor in again.inputs.items())
            assert torch.equal(batch.labels, again.labels)
            assert max(batch.inputs["input_ids"].numel(), batch.labels.numel()) <= 80
    assert sorted(seen) == list(range(60)) and batches.oversized == 0


def test_validation_runs_over_the_whole_split_on_all_ranks(tmp_path):
    task = task_of(make(tmp_path, [[[5] * n for n in range(1, 31)]]))
    batching = BatchingConfig(batch_size=4, samples_per_epoch=3)
    ranks = [task.iterator("train", batching, False, 1, rank, 3) for rank in range(3)]
    updates = [rank.next_update(100) for rank in ranks]
    assert [len(update) for update in updates] == [3, 3, 3]
    real = [row for update in updates for batch in update if not batch.dummy for row in batch.ids]
    assert sorted(real) == list(range(30))
    assert task.iterator("train", dataclasses.replace(batching, batch_size=1), True, 1).next_update(9)[2:] != []


def test_splits_that_are_unknown_or_empty_are_refused(tmp_path):
    task = task_of(make(tmp_path, [[]]))
    with pytest.raises(DataError, match="split train is empty"):
        task.iterator("train", BatchingConfig(), True, 1)
    with pytest.raises(DataError, match="no such split"):
        task.iterator("valid", BatchingConfig(), True, 1)
