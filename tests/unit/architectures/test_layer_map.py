from __future__ import annotations

import math
from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from cktk.architectures.layer_map import layer_pairs, layer_table, spread_layers, truncated_layers, uniform_layers
from cktk.protocols import LayerPair, ModelShape, SideShape

depths = st.integers(1, 60)


def shape(**layers: int) -> ModelShape:
    """A model with so many layers on the sides named."""
    return ModelShape(8, {side: SideShape(depth, 8, 1) for side, depth in layers.items()}, None)  # type: ignore[misc]


def test_figures_of_the_papers() -> None:
    assert uniform_layers(8, 12) == [2, 3, 5, 6, 8, 9, 11, 12]
    assert uniform_layers(3, 12) == [4, 8, 12]
    assert spread_layers(6, 12) == [0, 2, 4, 7, 9, 11]  # DistilBERT and distilBART
    assert spread_layers(3, 12) == [0, 6, 11]
    assert truncated_layers(6, 12) == [0, 2, 4, 6, 8, 10]
    assert spread_layers(6, 3) == [0, 0, 1, 1, 2, 2]


@given(depths, depths)
def test_uniform_map(student: int, teacher: int) -> None:
    layers = uniform_layers(student, teacher)
    assert layers == [math.ceil(Fraction(j * teacher, student)) for j in range(1, student + 1)]
    assert layers[-1] == teacher
    assert layers == sorted(layers)
    assert all(1 <= layer <= teacher for layer in layers)
    if student <= teacher:
        assert len(set(layers)) == student


@given(depths, depths)
def test_maps_of_weights(student: int, teacher: int) -> None:
    assert truncated_layers(student, teacher) == [math.floor(Fraction(i * teacher, student)) for i in range(student)]
    spread = spread_layers(student, teacher)
    assert len(spread) == student
    assert spread == sorted(spread)
    assert spread[0] == 0
    if student > 1:
        assert spread[-1] == teacher - 1
        exact = [Fraction(i * (teacher - 1), student - 1) for i in range(student)]
        assert all(abs(found - wanted) <= Fraction(1, 2) for found, wanted in zip(spread, exact, strict=True))
    if student <= teacher:
        assert len(set(spread)) == student


@given(st.tuples(depths, depths), st.tuples(depths, depths), st.booleans())
def test_pairs_of_both_sides(student: tuple[int, int], teacher: tuple[int, int], embeddings: bool) -> None:
    pairs = layer_pairs(
        shape(encoder=student[0], decoder=student[1]),
        shape(encoder=teacher[0], decoder=teacher[1]),
        embeddings=embeddings,
    )
    assert len(set(pairs)) == len(pairs) == sum(student) + 2 * embeddings
    assert (LayerPair("encoder", 0, 0) in pairs) == (LayerPair("decoder", 0, 0) in pairs) == embeddings
    assert LayerPair("encoder", student[0], teacher[0]) in pairs
    assert LayerPair("decoder", student[1], teacher[1]) in pairs


def test_a_model_with_one_side_has_pairs_of_that_side() -> None:
    pairs = layer_pairs(shape(encoder=1), shape(encoder=6))
    assert pairs == (LayerPair("encoder", 0, 0), LayerPair("encoder", 1, 6))


def test_table() -> None:
    pairs = layer_pairs(shape(encoder=2, decoder=1), shape(encoder=12, decoder=3))
    assert layer_table(pairs).splitlines() == [
        "encoder  student  emb   1   2",
        "encoder  teacher  emb   6  12",
        "decoder  student  emb   1",
        "decoder  teacher  emb   3",
    ]
    assert layer_table([LayerPair("decoder", 1, 2)]).splitlines() == [
        "decoder  student    1",
        "decoder  teacher    2",
    ]
