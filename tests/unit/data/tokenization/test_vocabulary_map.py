"""Ids of a trimmed vocabulary, there and back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cktk.data.tokenization.vocabulary_map import MAP, VocabularyMap
from cktk.errors import DataError


@st.composite
def maps(draw: st.DrawFn) -> VocabularyMap:
    size = draw(st.integers(1, 60))
    return VocabularyMap(sorted(draw(st.sets(st.integers(0, size - 1), min_size=1))), size)


@given(maps(), st.data())
def test_there_and_back(vocabulary: VocabularyMap, data: st.DataObject) -> None:
    new = data.draw(st.lists(st.integers(0, vocabulary.new_size - 1)))
    old = vocabulary.to_old(new)
    assert vocabulary.to_new(old).tolist() == new
    assert all(index in vocabulary for index in old.tolist())
    everything = [index for index in range(-2, vocabulary.old_size + 2) if index in vocabulary]
    assert everything == vocabulary.kept.tolist() == vocabulary.to_old(range(vocabulary.new_size)).tolist()


def test_any_shape() -> None:
    vocabulary = VocabularyMap([1, 4, 6], 9)
    assert vocabulary.to_new([[6, 1], [4, 4]]).tolist() == [[2, 0], [1, 1]]
    assert vocabulary.to_old(2).tolist() == 6
    assert vocabulary.to_new([]).tolist() == []


def test_what_is_not_there() -> None:
    vocabulary = VocabularyMap([1, 4, 6], 9)
    with pytest.raises(DataError, match="id 5 is not in the trimmed vocabulary"):
        vocabulary.to_new([4, 5])
    for ids in ([9], [-1]):
        with pytest.raises(DataError, match="outside of the vocabulary of 9"):
            vocabulary.to_new(ids)
    for ids in ([3], [-1]):
        with pytest.raises(DataError, match="outside of the vocabulary of 3"):
            vocabulary.to_old(ids)
    for kept in ([], [2, 2], [3, 1]):
        with pytest.raises(DataError, match="ascending order"):
            VocabularyMap(kept, 9)
    for kept in ([-1, 2], [2, 9]):
        with pytest.raises(DataError, match="outside of the vocabulary"):
            VocabularyMap(kept, 9)


def test_file(tmp_path: Path) -> None:
    VocabularyMap([0, 2, 5], 7).write(tmp_path)
    read = VocabularyMap.read(tmp_path)
    assert (read.kept.tolist(), read.old_size) == ([0, 2, 5], 7)
    content = json.loads((tmp_path / MAP).read_text())
    assert content == {"schema": 1, "old_size": 7, "kept": [0, 2, 5]}
    for wrong in ({}, {"schema": 2}, {**content, "kept": "many"}, {**content, "kept": [7]}, []):
        (tmp_path / MAP).write_text(json.dumps(wrong))
        with pytest.raises(DataError, match=f"{MAP}|outside"):
            VocabularyMap.read(tmp_path)


def test_between_two_vocabularies() -> None:
    old = {"a": 0, "b": 1, "c": 2, "d": 5}
    assert VocabularyMap.between(old, {"a": 0, "d": 2, "c": 1}, 8).kept.tolist() == [0, 2, 5]
    for other in ({"a": 0, "z": 1}, {"a": 0, "c": 2}, {"c": 0, "a": 1}):
        with pytest.raises(DataError, match="was not cut from the other"):
            VocabularyMap.between(old, other, 8)


def test_numpy_and_lists_are_alike() -> None:
    assert VocabularyMap(np.array([1, 2]), 3).to_new(np.array([[2]], np.uint16)).tolist() == [[1]]
