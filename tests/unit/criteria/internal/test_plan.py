"""Which layers every stage matches: drawn at random beside the rule of each procedure."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from cktk.criteria.configs import InternalKdConfig
from cktk.criteria.internal.criterion import plan_stages
from cktk.protocols import LayerPair

PAIRS = st.lists(
    st.builds(LayerPair, st.sampled_from(["encoder", "decoder"]), st.integers(1, 4), st.integers(1, 6)),
    min_size=1,
    max_size=8,
    unique=True,
).map(tuple)


def layer(pair: LayerPair) -> tuple[bool, int]:
    """Where a student's layer stands: the encoder's first, from the bottom up."""
    return pair.side != "encoder", pair.student


@given(PAIRS, st.sampled_from(["progressive", "stacked"]), st.booleans())
def test_layers_come_from_the_bottom_up_and_the_head_last(pairs, procedure, keep) -> None:
    config = InternalKdConfig(procedure=procedure, stage_epochs=(1,), keep_internal_at_end=keep)
    *stages, head = plan_stages(config, pairs)
    assert head.head and not any(stage.head for stage in stages)
    assert set(head.pairs) == (set(pairs) if keep else set())
    assert [stage.deciding for stage in stages] != [] and not head.deciding
    places = [{layer(pair) for pair in stage.deciding} for stage in stages]
    assert all(len(place) == 1 for place in places)
    order = [place.pop() for place in places]
    assert all(lower < upper for lower, upper in pairwise(order))
    assert sorted(map(str, pairs)) == sorted(str(pair) for stage in stages for pair in stage.deciding)
    for number, stage in enumerate(stages):
        before = [pair for earlier in stages[:number] for pair in earlier.deciding]
        kept = before if procedure == "stacked" else []
        assert set(stage.pairs) == {*kept, *stage.deciding}


@given(PAIRS, st.booleans(), st.sampled_from([(), (2,)]))
def test_all_is_everything_at_once(pairs, keep, epochs) -> None:
    if keep and epochs:
        return
    config = InternalKdConfig(procedure="all", stage_epochs=epochs, keep_internal_at_end=keep)
    first, *rest = plan_stages(config, pairs)
    assert set(first.pairs) == set(first.deciding) == set(pairs) and first.head
    assert [(stage.pairs, stage.head) for stage in rest] == ([((), True)] if epochs else [])
