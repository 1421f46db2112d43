"""The schedule as a state machine: driven at random beside a model of it that is written from the rule."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cktk.criteria.internal.stages import StageSchedule
from cktk.errors import CheckpointError

LIMITS = st.lists(st.one_of(st.none(), st.integers(1, 4)), max_size=6)
LOSSES = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 9)), max_size=3)
EPOCHS = st.lists(LOSSES, max_size=25)
THRESHOLDS = st.sampled_from([0.0, 0.2, 0.5, 1.0])


def play(schedule: StageSchedule, epochs: list) -> list[tuple[int, int, float | None, bool]]:
    """Stage and epochs in it after each epoch, the epoch's loss, and whether the stage changed."""
    found = []
    for losses in epochs:
        for loss, weight in losses:
            schedule.observe(loss, weight)
        changed = schedule.end_epoch()
        found.append((schedule.stage, schedule.epochs, schedule.loss, changed))
    return found


@given(LIMITS, THRESHOLDS, EPOCHS)
def test_a_stage_is_left_at_its_limit_or_below_the_threshold_whichever_is_first(limits, threshold, epochs) -> None:
    stage = spent = 0
    for (found, inside, loss, changed), losses in zip(
        play(StageSchedule(limits, threshold), epochs), epochs, strict=True
    ):
        weight = sum(weight for _, weight in losses)
        mean = sum(loss * weight for loss, weight in losses) / weight if weight else None
        assert loss == (None if mean is None else pytest.approx(mean))
        spent += 1
        leaves = stage < len(limits) and (spent == limits[stage] or (loss is not None and loss < threshold))
        if leaves:
            stage, spent = stage + 1, 0
        assert (found, inside, changed) == (stage, spent, leaves)


@given(LIMITS, THRESHOLDS, EPOCHS)
def test_stages_come_in_order_and_the_last_stays(limits, threshold, epochs) -> None:
    schedule = StageSchedule(limits, threshold)
    assert schedule.stages == len(limits) + 1
    stages = [0, *(stage for stage, *_ in play(schedule, epochs))]
    assert all(later - earlier in (0, 1) for earlier, later in pairwise(stages))
    assert max(stages) <= len(limits) and schedule.last == (stages[-1] == len(limits))
    for number, limit in enumerate(limits[: stages[-1]]):
        assert limit is None or stages.count(number) - (number == 0) <= limit


@given(LIMITS, THRESHOLDS, EPOCHS, st.data())
def test_continued_is_uninterrupted_wherever_it_stopped(limits, threshold, epochs, data) -> None:
    """Within an epoch, too: the state goes through JSON between any two events."""
    events = [event for losses in epochs for event in (*losses, None)]
    stop = data.draw(st.integers(0, len(events)))
    whole, first, second = (StageSchedule(limits, threshold) for _ in range(3))
    for number, event in enumerate(events):
        if number == stop:
            second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        for schedule in (whole, first if number < stop else second):
            if event is None:
                schedule.end_epoch()
            else:
                schedule.observe(*event)
    assert (first if stop == len(events) else second).state_dict() == whole.state_dict()


@given(st.lists(st.one_of(st.none(), st.integers(1, 4)), max_size=4), THRESHOLDS)
def test_the_last_stage_begins_when_it_was_said_to(limits, threshold) -> None:
    schedule = StageSchedule(limits, threshold)
    said = schedule.epochs_before_last
    assert (said is None) == (bool(threshold) or None in limits)
    if said is not None:
        lasts = [schedule.last] + [play(schedule, [[]]) and schedule.last for _ in range(said)]
        assert lasts == [False] * said + [True]


def test_a_stage_can_be_passed_over() -> None:
    schedule = StageSchedule([None, 3])
    found = [schedule.stage]
    for _ in range(3):
        schedule.advance()
        found.append(schedule.stage)
    assert found == [0, 1, 2, 2]


def test_what_is_not_finite_counts_for_nothing() -> None:
    schedule = StageSchedule([None], 0.5)
    for loss in (float("nan"), float("inf"), 0.4):
        schedule.observe(loss, 1)
    assert schedule.end_epoch() and schedule.loss == 0.4


def test_a_loss_of_zero_is_not_below_no_threshold() -> None:
    schedule = StageSchedule([None])
    schedule.observe(0.0, 5)
    assert not schedule.end_epoch()


def test_other_stages_are_refused() -> None:
    with pytest.raises(CheckpointError, match="in 3 stages, not 2"):
        StageSchedule([1]).load_state_dict(StageSchedule([1, 1]).state_dict())
