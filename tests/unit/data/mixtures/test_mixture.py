from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cktk.data.batch_config import BatchingConfig
from cktk.data.iterators import PlannedBatches
from cktk.data.mixtures.mixture import MixturePlanner, Place, StoredCorpus, mixed_batches
from cktk.data.mixtures.mixture_config import MixtureConfig
from cktk.errors import CheckpointError, ConfigError, DataError
from cktk.protocols import Batch


def load(places: Sequence[Place]) -> Batch:
    """A batch that tells which samples it was made of."""
    told = [[hash(place.corpus) % 997, place.pass_, place.row] for place in places]
    return Batch(
        {"attention_mask": torch.ones(len(places), 1), "pid": torch.tensor([os.getpid()])}, torch.tensor(told), []
    )


def stored(name: str, shard_rows: list[int], seed: int = 3, block_rows: int = 4) -> StoredCorpus:
    lengths = np.random.default_rng([seed, *shard_rows]).integers(1, 9, (sum(shard_rows), 2))
    return StoredCorpus(name, shard_rows, lambda start, stop: lengths[start:stop], seed, block_rows)


@st.composite
def cases(draw) -> dict:
    shards = draw(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=3).filter(any), min_size=1, max_size=4))
    weights = draw(st.lists(st.integers(1, 50), min_size=len(shards), max_size=len(shards)))
    return {
        "shards": {f"c{number}": rows for number, rows in enumerate(shards)},
        "shares": {f"c{number}": weight / sum(weights) for number, weight in enumerate(weights)},
        "samples_per_epoch": draw(st.integers(5, 60)),
        "window_rows": draw(st.integers(1, 25)),
        "max_tokens": draw(st.none() | st.integers(1, 30)),
        "batch_size": draw(st.none() | st.integers(1, 5)),
        "seed": draw(st.integers(0, 2**33)),
    }


def planner(case: dict) -> MixturePlanner:
    others = {name: value for name, value in case.items() if name not in ("shards", "shares")}
    corpora = [stored(name, rows, case["seed"]) for name, rows in case["shards"].items()]
    return MixturePlanner(corpora, case["shares"], **others)


def batches(case: dict, **dealing) -> PlannedBatches:
    return PlannedBatches(planner(case), load, **dealing)


def windows(case: dict, epochs: int) -> list[list[Place]]:
    one, found = planner(case), []
    for epoch in range(epochs):
        for window in range(one.window_count(epoch)):
            rows = one.plan(epoch, window).batches
            found.append([place for batch in rows for place in one.items(batch)])
    return found


@settings(max_examples=40, deadline=None)
@given(cases())
def test_at_the_end_of_every_window_each_corpus_has_its_share_within_a_row(case):
    seen, position = Counter(), 0
    ends = planner(case).window_count(0)
    for number, places in enumerate(windows(case, 3)):
        seen.update(place.corpus for place in places)
        epoch, window = divmod(number, ends)
        position = epoch * case["samples_per_epoch"] + (window + 1) * case["samples_per_epoch"] // ends
        assert 0 < len(places) < 2 * max(case["window_rows"], 5) + len(case["shards"])
        for name, share in case["shares"].items():
            assert abs(seen[name] - share * position) <= 0.5 + 1e-9


@settings(max_examples=40, deadline=None)
@given(cases())
def test_each_pass_over_a_corpus_has_each_row_once(case):
    passes: dict[tuple[str, int], list[int]] = {}
    for places in windows(case, 4):
        for place in places:
            passes.setdefault((place.corpus, place.pass_), []).append(place.row)
    last = {name: max(pass_ for corpus, pass_ in passes if corpus == name) for name in {name for name, _ in passes}}
    for (name, pass_), rows in passes.items():
        assert len(rows) == len(set(rows)) and max(rows) < sum(case["shards"][name])
        if pass_ < last[name]:
            assert len(rows) == sum(case["shards"][name])


def play(ranks: list[PlannedBatches], n: int, updates: int) -> list[list[list[int]] | None]:
    """The micro-batches of some updates in global order, None at the end of each epoch."""
    seen: list[list[list[int]] | None] = []
    for _ in range(updates):
        found = [rank.next_update(n) for rank in ranks]
        assert len({json.dumps(rank.state_dict()) for rank in ranks}) == 1
        if found[0] is None:
            seen.append(None)
            continue
        rounds = zip(*found, strict=True)
        seen += [batch.labels.tolist() for round_ in rounds for batch in round_ if not batch.dummy]
    return seen


@settings(max_examples=40, deadline=None)
@given(cases(), st.integers(1, 4), st.integers(1, 3), st.integers(0, 12))
def test_any_position_goes_on_as_if_nothing_had_happened_in_any_world(case, world, other, point):
    ranks = [batches(case, rank=rank, world=world) for rank in range(world)]
    before = play(ranks, 2, point)
    continued = [batches(case, rank=rank, world=other) for rank in range(other)]
    for rank in continued:
        rank.load_state_dict(json.loads(json.dumps(ranks[0].state_dict())))
    after = before + play(continued, 3, 8)
    assert after == play([batches(case)], 1, len(after))


def test_data_workers_change_nothing():
    case = {
        "shards": {"en": [40, 30], "fr": [25]}, "shares": {"en": 0.3, "fr": 0.7}, "samples_per_epoch": 90,
        "window_rows": 31, "max_tokens": 40, "batch_size": None, "seed": 4,
    }  # fmt: skip
    whole = play([batches(case)], 2, 40)
    worked = batches(case, num_workers=2)
    before = play([worked], 2, 7)
    again = batches(case, num_workers=1)
    again.load_state_dict(json.loads(json.dumps(worked.state_dict())))
    assert before + play([again], 2, 33) == whole and None in whole
    first = batches(case, num_workers=1).next_update(1)
    assert int(first[0].inputs["pid"]) != os.getpid()


def test_a_proportional_mixture_has_each_row_once_an_epoch_and_mixes_the_corpora():
    corpora = [stored("en", [50, 20]), stored("fr", [33])]
    one = mixed_batches(corpora, load, MixtureConfig(), BatchingConfig(batch_size=4), seed=1)
    for _ in range(2):
        rows = []
        while found := one.next_update(1):
            rows += [tuple(row[::2]) for row in found[0].labels.tolist()]
        assert len(rows) == len(set(rows)) == 103
    assert one.epoch == 3 and one.state_dict()["passes"] == 2


def test_seed_and_pass_change_the_order_and_another_corpus_does_not():
    def rows(seed: int, start: int, name: str = "en") -> list[int]:
        return (stored(name, [40], seed, 2).take(start, start + 40)[0] % 40).tolist()

    assert rows(1, 0) == rows(1, 0) != rows(1, 40)
    assert rows(1, 0) != rows(2, 0) and rows(1, 0) != rows(1, 0, "fr")


def test_a_state_of_another_mixture_is_refused():
    corpora = [stored("en", [50]), stored("fr", [33])]
    batching = BatchingConfig(batch_size=4, samples_per_epoch=50)
    state = mixed_batches(corpora, load, MixtureConfig(), batching, seed=1).state_dict()
    with pytest.raises(CheckpointError, match=r"corpora: en: share was 0.6\d+ and is 0.5 now;"):
        mixed_batches(corpora, load, MixtureConfig(mixture="equal"), batching, seed=1).load_state_dict(state)


def test_a_corpus_without_share_is_left_out():
    config = MixtureConfig(mixture="weights", mixture_weights=("en=1", "fr=0"))
    one = mixed_batches([stored("en", [9]), stored("fr", [5])], load, config, BatchingConfig(batch_size=50), seed=1)
    (batch,) = one.next_update(1)
    assert {row[0] for row in batch.labels.tolist()} == {hash("en") % 997} and len(batch.labels) == 14


def test_an_epoch_needs_more_samples_than_there_are_corpora():
    corpora = [stored(f"c{n}", [3]) for n in range(10)]
    with pytest.raises(ConfigError, match="--samples-per-epoch 10: there are 10 corpora"):
        mixed_batches(corpora, load, MixtureConfig(), BatchingConfig(samples_per_epoch=10), seed=0)


def test_an_empty_corpus_is_refused():
    with pytest.raises(DataError, match="the corpus en has no rows"):
        stored("en", [0])


ROWS = {"en": 900, "fr": 100}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"en": 0.9, "fr": 0.1}),
        ({"mixture": "equal"}, {"en": 0.5, "fr": 0.5}),
        ({"mixture": "temperature", "mixture_temperature": 2.0}, {"en": 0.75, "fr": 0.25}),
        ({"mixture": "temperature", "mixture_temperature": 1.0}, {"en": 0.9, "fr": 0.1}),
        ({"mixture": "temperature"}, {"en": 9**0.2 / (9**0.2 + 1), "fr": 1 / (9**0.2 + 1)}),
        ({"mixture": "weights", "mixture_weights": ("fr=0.4", "en=0.6")}, {"en": 0.6, "fr": 0.4}),
    ],
)
def test_shares(options, expected):
    assert MixtureConfig(**options).shares(ROWS) == pytest.approx(expected)


def test_weights_that_sum_up_to_rounding_are_made_to_sum():
    found = MixtureConfig(mixture="weights", mixture_weights=("en=0.3333333", "fr=0.6666666")).shares(ROWS)
    assert math.fsum(found.values()) == pytest.approx(1, abs=1e-15)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (("en=0.5", "fr=0.4"), "sum to 0.9, not to 1"),
        (("en=0.5", "de=0.5"), "de=0.5: no corpus 'de'; known: en, fr"),
        (("en=1",), "none for fr; give fr=0"),
        (("en=0.5", "en=0.5", "fr=0"), "en is given twice"),
        (("en=x", "fr=1"), "en=x: give NAME=W"),
        (("en=-1", "fr=2"), "en=-1: give NAME=W"),
        (("en=nan", "fr=1"), "en=nan: give NAME=W"),
        (("en0.5", "fr=1"), "en0.5: give NAME=W"),
    ],
)
def test_bad_weights_are_one_clear_line(weights, message):
    with pytest.raises(ConfigError, match=message):
        MixtureConfig(mixture="weights", mixture_weights=weights).shares(ROWS)


def test_options_that_do_not_go_together_are_refused():
    with pytest.raises(ConfigError, match="--mixture-weights goes with --mixture weights"):
        MixtureConfig(mixture_weights=("en=1",))
    with pytest.raises(ConfigError, match="--mixture weights goes with --mixture-weights"):
        MixtureConfig(mixture="weights")
    with pytest.raises(ConfigError, match="--mixture-temperature goes with --mixture temperature; leave it out"):
        MixtureConfig(mixture="equal", mixture_temperature=5.0)
    with pytest.raises(ConfigError, match="that of the stream fr is not known"):
        MixtureConfig().shares({"en": 5, "fr": None})
