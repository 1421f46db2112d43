from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cktk.data.teacher_cache.cached_split import CachedSplit
from cktk.engine.cached_teacher import CachedTeacher
from cktk.errors import ConfigError, DataError
from cktk.protocols import AttentionPair, LayerPair, Needs
from tests.unit.data.teacher_cache import test_teacher_cache as written
from tests.unit.data.teacher_cache.test_teacher_cache import KEY, LENGTHS, answers, select, small

PAIRS = (LayerPair("encoder", 1, 2), LayerPair("decoder", 1, 1))
quick_disk = written.quick_disk


@pytest.fixture
def split(tmp_path):
    return CachedSplit(small(tmp_path)[1], "train")


def test_it_says_what_the_teacher_said(split):
    teacher = CachedTeacher(split, Needs(PAIRS, teacher_head=True))
    batch, expected = select(LENGTHS, [3, 1, 0]), answers([3, 1, 0], LENGTHS, KEY)
    said = teacher.states(batch)
    assert said.hidden.keys() == {("encoder", 2), ("decoder", 1)}
    for name, state in said.hidden.items():
        assert torch.equal(state, expected.hidden[name])
        assert len(state) == batch.rows(name[0]).sum()
    assert torch.equal(said.targets.ids, expected.targets.ids)
    assert torch.equal(said.targets.log_probs, expected.targets.log_probs)
    assert said.head_input is None and teacher.head is None and teacher.weight_bytes() == 0


def test_only_what_is_needed_is_read(split):
    assert CachedTeacher(split, Needs(PAIRS)).states(select(LENGTHS, [1])).targets is None
    assert CachedTeacher(split, Needs(teacher_head=True)).states(select(LENGTHS, [1])).hidden == {}


def test_a_dummy_has_no_rows(split):
    said = CachedTeacher(split, Needs(PAIRS, teacher_head=True)).states(replace(select(LENGTHS, [0, 1]), dummy=True))
    assert said.targets.ids.shape == (0, KEY.k)
    assert all(state.shape == (0, KEY.width) for state in said.hidden.values())


def test_other_rows_are_refused(split):
    teacher = CachedTeacher(split, Needs())
    batch = select(LENGTHS, [2, 0])
    batch.labels[1, 0] += 1
    with pytest.raises(DataError, match="stale: row 0 of split train is not what the teacher was shown"):
        teacher.states(batch)
    batch = select(LENGTHS, [2, 0])
    batch.ids = [2, 4]  # beyond the end of the split
    with pytest.raises(DataError, match="stale: row 4"):
        teacher.states(batch)


def test_what_the_cache_does_not_have_is_named_with_its_flags(split):
    pairs = (*PAIRS, LayerPair("decoder", 2, 3), LayerPair("decoder", 2, 2))
    words = "teacher states decoder 2, 3, but the teacher cache .* has encoder 0, 2 and decoder 1; .* --hidden-states"
    with pytest.raises(ConfigError, match=words):
        CachedTeacher(split, Needs(pairs))
    with pytest.raises(ConfigError, match="attention.*use --teacher"):
        CachedTeacher(split, Needs(attention=(AttentionPair("cross", 1, 1),)))


def test_a_cache_without_states_says_so(tmp_path):
    split = CachedSplit(small(tmp_path, states={})[1], "train")
    with pytest.raises(ConfigError, match="has none; make one"):
        CachedTeacher(split, Needs(PAIRS))
