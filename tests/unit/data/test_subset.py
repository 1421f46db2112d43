"""Subsets of training rows: exact, nested, the same on all ranks, and continued exactly."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cktk.data import subset as module
from cktk.data.batch_config import BatchingConfig
from cktk.data.iterators import MicroBatches
from cktk.data.subset import RowSubset, SubsetCorpus, chosen_rows
from cktk.errors import CheckpointError, ConfigError
from cktk.protocols import Batch
from cktk.tasks.batches import refuse_subset, split_batches


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHUNK_ROWS", 16)


class Rows:
    """Rows of several shards; the length of row i says which one it is."""

    def __init__(self, shard_rows: Sequence[int]) -> None:
        self.shard_rows = shard_rows

    def lengths(self, start: int, stop: int) -> np.ndarray:
        numbers = np.arange(start, stop)
        return np.stack([numbers + 1, 1000 - numbers], axis=1)


def load(ids: Sequence[int]) -> Batch:
    return Batch({"attention_mask": torch.ones(len(ids), 1)}, torch.zeros(len(ids), 1), list(ids))


def batches(shard_rows: Sequence[int], size: int | None, *, shuffle: bool = True, **options: int) -> MicroBatches:
    config = BatchingConfig(batch_size=4, train_subset=size, samples_per_epoch=options.pop("samples", None))
    return split_batches(Rows(shard_rows), load, config, shuffle=shuffle, **{"seed": 1, **options})


def epoch(source: MicroBatches, n: int = 2) -> list[int]:
    ids: list[int] = []
    while update := source.next_update(n):
        ids += [number for batch in update if not batch.dummy for number in batch.ids]
    return ids


SHARDS = st.lists(st.integers(0, 40), min_size=1, max_size=4).filter(lambda rows: sum(rows) > 1)


@given(st.integers(1, 120), st.data(), st.integers(0, 2**40))
def test_nested_exact_and_deterministic(rows: int, data: st.DataObject, seed: int) -> None:
    more = data.draw(st.integers(1, rows))
    fewer = data.draw(st.integers(1, more))
    large, small = chosen_rows(rows, more, seed), chosen_rows(rows, fewer, seed)
    for found, size in ((large, more), (small, fewer)):
        assert len(found) == size
        assert (np.diff(found) > 0).all() and found[0] >= 0 and found[-1] < rows
    assert np.isin(small, large).all()
    assert (chosen_rows(rows, more, seed) == large).all()


def test_every_row_is_drawn_equally_often_and_by_the_seed() -> None:
    counts = np.zeros(50)
    for seed in range(800):
        counts[chosen_rows(50, 10, seed)] += 1
    assert counts.min() > 110 and counts.max() < 215  # 160 each, standard deviation 11
    assert len({tuple(chosen_rows(50, 10, seed)) for seed in range(20)}) == 20


@settings(max_examples=40)
@given(SHARDS, st.data())
def test_rows_of_a_subset_are_those_of_the_split(shard_rows: list[int], data: st.DataObject) -> None:
    rows = Rows(shard_rows)
    subset = RowSubset(shard_rows, rows.lengths, data.draw(st.integers(1, sum(shard_rows))), 3)
    found = [subset.original(number) for number in range(sum(subset.shard_rows))]
    assert found == chosen_rows(sum(shard_rows), len(found), 3).tolist()
    shard_of = np.repeat(np.arange(len(shard_rows)), shard_rows)[found]
    assert [int((shard_of == shard).sum()) for shard in range(len(shard_rows))] == subset.shard_rows
    start = data.draw(st.integers(0, len(found)))
    stop = data.draw(st.integers(start, len(found)))
    assert subset.lengths(start, stop)[:, 0].tolist() == [number + 1 for number in found[start:stop]]


@settings(max_examples=25)
@given(SHARDS, st.data(), st.integers(1, 3))
def test_training_sees_the_subset_and_nothing_else(shard_rows: list[int], data: st.DataObject, world: int) -> None:
    size = data.draw(st.integers(1, sum(shard_rows)))
    expected = chosen_rows(sum(shard_rows), size, 1).tolist()
    ranks = [batches(shard_rows, size, rank=rank, world=world) for rank in range(world)]
    for _ in range(2):
        assert sorted(number for rank in ranks for number in epoch(rank)) == expected
    assert sorted(epoch(batches(shard_rows, size, shuffle=False))) == list(range(sum(shard_rows)))


@settings(max_examples=25)
@given(st.integers(1, 30), st.integers(1, 3), st.none() | st.integers(1, 40))
def test_continued_exactly_by_any_number_of_ranks(taken: int, world: int, samples: int | None) -> None:
    source = batches([30, 40], 33, samples=samples)
    for _ in range(taken):
        source.next_update(1)
    state = json.loads(json.dumps(source.state_dict()))
    ranks = [batches([30, 40], 33, samples=samples, rank=rank, world=world) for rank in range(world)]
    for rank in ranks:
        rank.load_state_dict(state)
    assert sorted(number for rank in ranks for number in epoch(rank, 1)) == sorted(epoch(source, 1))


@pytest.mark.parametrize(("rows", "size"), [([30, 41], 33), ([30, 40], 34), ([30, 40], None)])
def test_a_position_in_another_subset_is_refused(rows: list[int], size: int | None) -> None:
    source = batches(rows, size)
    state = batches([30, 40], 33).state_dict()
    if size is None:  # another number of rows says so already
        state["plan"]["rows"] = 70
        assert "drawn_from" not in source.state_dict()["plan"]
        return
    with pytest.raises(CheckpointError, match="drawn_from was 70 and is 71" if size == 33 else "rows was 33 and is 34"):
        source.load_state_dict(state)


def test_more_rows_than_there_are() -> None:
    with pytest.raises(ConfigError, match="--train-subset 71: the training split has 70 rows"):
        batches([30, 40], 71)
    assert sorted(epoch(batches([30, 40], 70))) == list(range(70))


def test_several_corpora_and_streams_are_refused() -> None:
    config = BatchingConfig(train_subset=5)
    with pytest.raises(ConfigError, match=r"one corpus in one direction, not 2 \(en, fr\)"):
        refuse_subset(config, ["en", "fr"])
    with pytest.raises(ConfigError, match="the stream web"):
        refuse_subset(config, ["web"], ["web"])
    refuse_subset(config, ["en"])
    refuse_subset(BatchingConfig(), ["en", "fr"], ["web"])


def test_a_corpus_names_rows_of_the_split() -> None:
    rows = Rows([30, 40])
    corpus = SubsetCorpus("en", RowSubset(rows.shard_rows, rows.lengths, 20, 1), seed=2)
    numbers, lengths = corpus.take(10, 50)
    places = [corpus.place(number) for number in numbers.tolist()]
    assert [place.row + 1 for place in places] == lengths[:, 0].tolist()
    assert {place.row for place in places} == set(chosen_rows(70, 20, 1).tolist())
    assert {place.pass_ for place in places} == {0, 1, 2}
    assert corpus.settings == {"rows": 20, "block_rows": 1024, "drawn_from": 70}
