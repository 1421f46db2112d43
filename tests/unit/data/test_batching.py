from __future__ import annotations

from itertools import chain, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cktk.config.options import options_of
from cktk.data.batch_config import BatchingConfig
from cktk.data.batching import WindowPlanner, cut_batches

LENGTHS = st.lists(st.integers(1, 30), max_size=40)
LIMIT = st.none() | st.integers(1, 80)


@given(LENGTHS, LIMIT, st.none() | st.integers(1, 6))
def test_cuts_are_within_the_limits_and_as_late_as_possible(longest, max_tokens, batch_size):
    bounds = cut_batches(longest, max_tokens, batch_size)
    assert bounds[0] == 0 and bounds[-1] == len(longest) and bounds == sorted(set(bounds))

    def fits(rows: list[int]) -> bool:
        within = max_tokens is None or len(rows) * max(rows) <= max_tokens
        return within and (batch_size is None or len(rows) <= batch_size)

    for start, stop in pairwise(bounds):
        assert stop == start + 1 or fits(longest[start:stop])
        assert stop == len(longest) or not fits(longest[start : stop + 1])


def planner(sides: np.ndarray, shard_rows: list[int], **changes) -> WindowPlanner:
    given = {"max_tokens": 60, "batch_size": None, "shuffle": True, "seed": 3, "window_rows": 50, "block_rows": 8}
    return WindowPlanner(shard_rows, lambda start, stop: sides[start:stop], **{**given, **changes})


def random_sides(rows: int) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 30, (rows, 2))


def rows_of(windows: WindowPlanner, pass_: int) -> list[list[list[int]]]:
    return [[b.tolist() for b in windows.plan(pass_, w)[0]] for w in range(windows.window_count(pass_))]


@pytest.mark.parametrize("shuffle", [True, False])
def test_the_windows_of_a_pass_hold_every_row_once(shuffle):
    windows = planner(random_sides(230), [3, 0, 100, 127], shuffle=shuffle)
    flat = [[row for batch in window for row in batch] for window in rows_of(windows, 0)]
    assert sorted(chain.from_iterable(flat)) == list(range(230))
    assert len(flat) == 5 and all(43 <= len(window) < 58 for window in flat[:-1])


def test_an_empty_split_has_no_windows():
    assert planner(random_sides(0), [0, 0]).window_count(0) == 0
    assert planner(random_sides(0), []).window_count(0) == 0


def test_a_window_takes_its_blocks_from_everywhere():
    first = rows_of(planner(random_sides(2_000), [1_000, 1_000]), 0)[0]
    rows = sorted(row for batch in first for row in batch)
    assert rows[0] < 500 and rows[-1] >= 1_500


def test_neighbours_in_length_share_a_batch():
    sides = random_sides(400)
    for window in range(2):
        batches = planner(sides, [400], window_rows=200).plan(0, window)[0]
        keys = sorted([(target, source) for source, target in sides[batch].tolist()] for batch in batches)
        assert list(chain.from_iterable(keys)) == sorted(chain.from_iterable(keys))


def test_order_follows_from_seed_and_pass_alone():
    sides = random_sides(300)
    once = planner(sides, [300])
    first, second = rows_of(once, 0), rows_of(once, 1)
    fresh = planner(sides, [300])
    assert rows_of(fresh, 1) == second and rows_of(fresh, 0) == first  # whatever was planned before
    assert first != second
    assert rows_of(planner(sides, [300], seed=4), 0) != first


def test_each_pass_forms_other_batches_and_visits_lengths_in_another_order():
    sides = np.full((400, 2), 10)
    windows = planner(sides, [400], window_rows=400)
    first, second = ({frozenset(batch) for batch in rows_of(windows, pass_)[0]} for pass_ in (0, 1))
    assert len(first & second) < 3
    sides = random_sides(400)
    batches = planner(sides, [400], window_rows=400).plan(0, 0)[0]
    starts = [int(sides[batch, 1].min()) for batch in batches]
    assert starts != sorted(starts)


def test_without_shuffle_a_pass_is_always_the_same_and_runs_in_order():
    windows = planner(random_sides(200), [100, 100], shuffle=False)
    assert rows_of(windows, 0) == rows_of(windows, 5)
    assert [min(min(batch) for batch in window) for window in rows_of(windows, 0)] == [0, 56, 100, 156]


def test_rows_beyond_the_budget_are_reported():
    sides = np.array([[5, 70], [61, 2], [60, 3], [4, 4]])
    batches, beyond = planner(sides, [4]).plan(0, 0)
    assert sorted(beyond) == [61, 70]
    assert sorted(batch.tolist() for batch in batches) == [[0], [1], [2], [3]]
    assert planner(sides, [4], max_tokens=None).plan(0, 0)[1].size == 0


def test_only_the_rows_of_one_window_are_looked_at():
    asked: list[tuple[int, int]] = []

    def lengths(start: int, stop: int) -> np.ndarray:
        asked.append((start, stop))
        return np.ones((stop - start, 2), np.int64)

    limits = {"max_tokens": 60, "batch_size": None, "shuffle": True, "seed": 3, "window_rows": 50, "block_rows": 8}
    WindowPlanner([10_000_000], lengths, **limits).plan(0, 7)
    assert sum(stop - start for start, stop in asked) < 58


def test_the_token_limit_in_force():
    assert BatchingConfig().token_budget == 4096
    assert BatchingConfig(batch_size=8).token_budget is None
    assert BatchingConfig(max_tokens=100, batch_size=8).token_budget == 100
    assert [option.name for option in options_of(BatchingConfig) if option.meta("resume") == "free"] == ["num_workers"]
