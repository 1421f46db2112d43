from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cktk.data.iterators import MicroBatches
from cktk.errors import CheckpointError, DataError
from cktk.protocols import Batch


def load(sides: np.ndarray, rows: Sequence[int]) -> Batch:
    """A batch that tells which rows it was made of, and by which process."""
    longest = sides[list(rows)].max(axis=0)
    return Batch(
        inputs={"attention_mask": torch.ones(len(rows), longest[0]), "made_by": torch.tensor([os.getpid()])},
        labels=torch.tensor(rows)[:, None].expand(-1, longest[1]).contiguous(),
        ids=list(rows),
    )


def make(case: dict, **changes) -> MicroBatches:
    settings = {name: value for name, value in case.items() if name not in ("sides", "shard_rows")}
    sides = case["sides"]
    return MicroBatches(
        case["shard_rows"], lambda start, stop: sides[start:stop], partial(load, sides), **{**settings, **changes}
    )


def small_case(rows: int = 300, **changes) -> dict:
    sides = np.random.default_rng(1).integers(1, 20, (rows, 2))
    limits = {"max_tokens": 60, "batch_size": None, "shuffle": True, "seed": 5, "window_rows": 70, "block_rows": 9}
    return {"sides": sides, "shard_rows": [rows // 3, 0, rows - rows // 3], **limits, **changes}


@st.composite
def cases(draw, samples: bool = False) -> dict:
    shard_rows = draw(st.lists(st.integers(0, 15), min_size=1, max_size=4))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    return {
        "sides": rng.integers(1, 12, (sum(shard_rows), 2)),
        "shard_rows": shard_rows,
        "max_tokens": draw(st.none() | st.integers(1, 40)),
        "batch_size": draw(st.none() | st.integers(1, 5)),
        "shuffle": draw(st.booleans()),
        "seed": draw(st.integers(0, 2**40)),
        "window_rows": draw(st.integers(1, 30)),
        "block_rows": draw(st.integers(1, 10)),
        "samples_per_epoch": draw(st.none() | st.integers(1, 40)) if samples else None,
    }


def next_round(ranks: list[MicroBatches], n: int) -> list[list[Batch]] | None:
    """One update on every rank, checked for what must hold of each."""
    updates = [rank.next_update(n) for rank in ranks]
    assert len({json.dumps(rank.state_dict()) for rank in ranks}) == 1
    assert len({rank.epoch for rank in ranks}) == 1
    if updates[0] is None:
        assert all(update is None for update in updates)
        return None
    assert 0 < len({len(update) for update in updates}) == 1 and len(updates[0]) <= n
    return updates


def in_global_order(updates: list[list[Batch]]) -> list[list[int]]:
    """The rows of an update's real micro-batches, dealt back from the ranks."""
    return [batch.ids for round_ in zip(*updates, strict=True) for batch in round_ if not batch.dummy]


def play(ranks: list[MicroBatches], n: int, stop_after: int = 10**9, epochs: int = 3) -> list[list[int] | None]:
    """The micro-batches of some updates in global order, None at the end of each epoch."""
    seen: list[list[int] | None] = []
    for _ in range(stop_after):
        if ranks[0].epoch > epochs:
            break
        updates = next_round(ranks, n)
        seen.extend([None] if updates is None else in_global_order(updates))
    return seen


WORLD = st.integers(1, 4)
UPDATE = st.integers(1, 4)


@settings(max_examples=50, deadline=None)
@given(cases(), WORLD, UPDATE)
def test_each_epoch_holds_every_row_once_over_the_ranks(case, world, n):
    ranks = [make(case, rank=rank, world=world) for rank in range(world)]
    for epoch in (1, 2):
        assert ranks[0].epoch == epoch
        seen = []
        while updates := next_round(ranks, n):
            seen += [row for rows in in_global_order(updates) for row in rows]
        assert sorted(seen) == list(range(len(case["sides"])))


@settings(max_examples=50, deadline=None)
@given(cases(samples=True), WORLD, UPDATE)
def test_limits_hold_unless_a_single_row_exceeds_them(case, world, n):
    ranks = [make(case, rank=rank, world=world) for rank in range(world)]
    for rows in play(ranks, n):
        if rows is not None and len(rows) > 1:
            assert case["batch_size"] is None or len(rows) <= case["batch_size"]
            assert case["max_tokens"] is None or len(rows) * case["sides"][rows].max() <= case["max_tokens"]


@settings(max_examples=50, deadline=None)
@given(cases(samples=True), WORLD, WORLD, UPDATE, UPDATE, st.integers(0, 25))
def test_continuing_from_any_point_gives_what_an_uninterrupted_run_gives(case, world, other_world, n, other_n, point):
    whole = play([make(case)], 1)
    ranks = [make(case, rank=rank, world=world) for rank in range(world)]
    before = play(ranks, n, stop_after=point)
    state = json.loads(json.dumps(ranks[0].state_dict()))
    continued = [make(case, rank=rank, world=other_world) for rank in range(other_world)]
    for rank in continued:
        rank.load_state_dict(state)
    assert continued[0].epoch == ranks[0].epoch and continued[0].epoch_fraction() == ranks[0].epoch_fraction()
    assert before + play(continued, other_n) == whole


@settings(max_examples=50, deadline=None)
@given(cases(), WORLD, UPDATE)
def test_dummies_stand_only_at_the_end_of_an_epoch_and_copy_a_real_batch(case, world, n):
    ranks = [make(case, rank=rank, world=world) for rank in range(world)]
    updates, last = [], None
    while last := next_round(ranks, n):
        updates.append(last)
    rounds = [round_ for update in updates for round_ in zip(*update, strict=True)]
    assert not any(batch.dummy for round_ in rounds[:-1] for batch in round_)
    for batch in rounds[-1] if rounds else []:
        if batch.dummy:
            assert batch.ids == rounds[-1][0].ids and torch.equal(batch.labels, rounds[-1][0].labels)
            assert not any(batch.counts().values())
    assert not rounds or not rounds[-1][0].dummy


@settings(max_examples=50, deadline=None)
@given(cases(samples=True))
def test_an_epoch_of_given_size_ends_with_the_batch_that_reaches_it(case):
    per_epoch = case["samples_per_epoch"] or len(case["sides"])
    epochs: list[list[list[int]]] = [[]]
    for batch in play([make(case)], 3):
        if batch is None:
            epochs.append([])
        else:
            epochs[-1].append(batch)
    for epoch in epochs[:-1] if len(case["sides"]) else []:
        assert sum(map(len, epoch)) >= per_epoch > sum(map(len, epoch[:-1]))
    joined = [batch for epoch in epochs for batch in epoch]
    whole_passes = make(case, samples_per_epoch=None)
    for batch in joined:
        (expected,) = whole_passes.next_update(1) or whole_passes.next_update(1)
        assert batch == expected.ids


def test_epoch_fraction_runs_from_nought_to_one():
    batches = make(small_case())
    fractions = [batches.epoch_fraction()]
    while batches.next_update(5):
        fractions.append(batches.epoch_fraction())
    assert fractions[0] == 0 and fractions[-1] == 1 and fractions == sorted(set(fractions))
    assert batches.epoch_fraction() == 0
    part = make(small_case(samples_per_epoch=100))
    part.next_update(1)
    assert part.epoch_fraction() == part.state_dict()["samples"] / 100


def test_the_state_counts_micro_batches_of_all_ranks():
    batches = make(small_case(), world=3, rank=1)
    batches.next_update(4)
    assert batches.state_dict()["micro_batches"] == 12


def test_seed_and_pass_change_the_order():
    first, again, other = (play([make(small_case(seed=seed))], 1, epochs=2) for seed in (5, 5, 6))
    assert first == again != other
    end = first.index(None)
    assert first[:end] != first[end + 1 : -1]


@pytest.mark.parametrize(
    "change", [{"max_tokens": 61}, {"batch_size": 3}, {"seed": 6}, {"shuffle": False}, {"samples_per_epoch": 9}]
)
def test_a_state_of_other_settings_is_refused(change):
    state = make(small_case()).state_dict()
    (name, value), old = next(iter(change.items())), small_case().get(next(iter(change)))
    with pytest.raises(CheckpointError, match=f"{name} was {old} and is {value} now"):
        make(small_case(**change)).load_state_dict(state)


def test_a_state_of_other_data_is_refused():
    with pytest.raises(CheckpointError, match="rows was 300 and is 299 now"):
        make(small_case(299)).load_state_dict(make(small_case()).state_dict())


def test_rows_beyond_the_budget_are_counted_and_warned_of_once(caplog):
    case = small_case()
    case["sides"][[4, 40]] = [[99, 3], [2, 77]]
    batches = make(case, max_tokens=60)
    with caplog.at_level(logging.WARNING):
        seen = play([batches], 1, epochs=1)
    assert [4] in seen and [40] in seen and batches.oversized == 2
    assert len(caplog.records) == 1 and "longer than --max-tokens 60" in caplog.text


def test_a_failed_load_leaves_the_position_where_it_was():
    case, broken = small_case(), [False]

    def fragile(rows: Sequence[int]) -> Batch:
        if broken[0]:
            raise DataError("train-00000.source: damaged")
        return load(case["sides"], rows)

    whole = play([make(case)], 2, epochs=1)
    batches = make(case)
    batches._load = fragile
    seen = in_global_order([batches.next_update(2)])
    broken[0] = True
    with pytest.raises(DataError):
        batches.next_update(2)
    broken[0] = False
    assert seen + play([batches], 2, epochs=1) == whole


@pytest.mark.parametrize("world", [1, 3])
def test_workers_change_neither_batches_nor_states(world):
    case = small_case(samples_per_epoch=170)
    plain = [make(case, rank=rank, world=world) for rank in range(world)]
    worked = [make(case, rank=rank, world=world, num_workers=2) for rank in range(world)]
    while plain[0].epoch < 3:
        expected, found = next_round(plain, 2), next_round(worked, 2)
        assert plain[0].state_dict() == worked[0].state_dict()
        if expected is None or found is None:
            assert expected == found
            continue
        assert in_global_order(expected) == in_global_order(found)
        for ours, theirs in zip(expected[-1], found[-1], strict=True):
            assert torch.equal(ours.labels, theirs.labels) and ours.dummy == theirs.dummy
            assert int(ours.inputs["made_by"]) == os.getpid() != int(theirs.inputs["made_by"])


def test_a_run_with_workers_continues_exactly_in_another_world():
    case = small_case()
    whole = play([make(case)], 1, epochs=2)
    batches = make(case, num_workers=2)
    before = play([batches], 2, stop_after=5)  # workers hold further batches ready by now
    continued = [make(case, rank=rank, world=2, num_workers=1) for rank in range(2)]
    for rank in continued:
        rank.load_state_dict(json.loads(json.dumps(batches.state_dict())))
    assert before + play(continued, 3, epochs=2) == whole


def test_a_loaded_state_discards_what_workers_had_ready():
    batches = make(small_case(), num_workers=1)
    state = batches.state_dict()
    first = batches.next_update(3)
    batches.load_state_dict(state)
    assert [batch.ids for batch in batches.next_update(3)] == [batch.ids for batch in first]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_global_random_state_is_left_alone(num_workers):
    batches = make(small_case(), num_workers=num_workers)
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    batches.next_update(3)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()


def _refuse(rows: Sequence[int]) -> Batch:
    raise DataError(f"train-00000.source: damaged shard, row {min(rows) * 0}")


def test_an_error_in_a_worker_stays_one_line():
    case = small_case()
    batches = make(case, num_workers=1)
    batches._load = _refuse
    with pytest.raises(DataError) as caught:
        batches.next_update(1)
    assert str(caught.value) == "train-00000.source: damaged shard, row 0"
