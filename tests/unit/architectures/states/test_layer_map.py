from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cktk.architectures.states.layer_map import (
    layer_pairs,
    layer_table,
    spread_layers,
    truncated_layers,
    uniform_layers,
)
from cktk.errors import ConfigError
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
    matched = uniform_layers(student, teacher)
    assert matched == [math.ceil(Fraction(j * teacher, student)) for j in range(1, student + 1)]
    assert matched[-1] == teacher
    assert matched == sorted(matched)
    assert all(1 <= layer <= teacher for layer in matched)
    if student <= teacher:
        assert len(set(matched)) == student


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


def layers(student: int, teacher: int, layer_map: str) -> list[tuple[int, int]]:
    """(student, teacher) layers of an encoder."""
    pairs = layer_pairs(shape(encoder=student), shape(encoder=teacher), layer_map, embeddings=False)
    return [(pair.student, pair.teacher) for pair in pairs]


def test_counted_maps() -> None:
    assert layers(4, 12, "skip:3") == [(1, 3), (2, 6), (3, 9), (4, 12)]
    assert layers(4, 12, "skip:2") == [(1, 2), (2, 4), (3, 6), (4, 8)]
    assert layers(4, 12, "last:2") == [(3, 11), (4, 12)]
    assert layers(4, 12, "first:3") == [(1, 1), (2, 2), (3, 3)]
    assert layers(6, 3, " last : 3 ") == [(4, 1), (5, 2), (6, 3)]
    assert layers(2, 4, "uniform") == [(1, 2), (2, 4)]


@given(depths, depths, st.integers(1, 61))
def test_counted_maps_exist_or_are_refused(student: int, teacher: int, number: int) -> None:
    expected = {
        "skip": {(j, j * number) for j in range(1, student + 1)},
        "first": {(j, j) for j in range(1, number + 1)},
        "last": {(student - j, teacher - j) for j in range(number)},
    }
    for word, wanted in expected.items():
        if all(1 <= own <= student and 1 <= other <= teacher for own, other in wanted):
            assert layers(student, teacher, f"{word}:{number}") == sorted(wanted)
        else:
            with pytest.raises(ConfigError, match=f"^--layer-map '{word}:{number}': encoder: .*; use "):
                layers(student, teacher, f"{word}:{number}")


@given(depths, depths, st.data())
def test_explicit_maps(student: int, teacher: int, data: st.DataObject) -> None:
    """Any pairs, many to many too; the order in which they are written does not matter."""
    pair = st.tuples(st.integers(1, student), st.integers(1, teacher))
    wanted = data.draw(st.lists(pair, min_size=1, max_size=20, unique=True))
    assert layers(student, teacher, ",".join(f"{own}:{other}" for own, other in wanted)) == sorted(wanted)


def test_sides_have_maps_of_their_own() -> None:
    student, teacher = shape(encoder=4, decoder=2), shape(encoder=12, decoder=6)
    pairs = layer_pairs(student, teacher, "decoder=last:1; encoder = 2:8 , 1:4")
    assert pairs == (
        LayerPair("encoder", 0, 0),
        LayerPair("encoder", 1, 4),
        LayerPair("encoder", 2, 8),
        LayerPair("decoder", 0, 0),
        LayerPair("decoder", 2, 6),
    )
    assert layer_pairs(student, teacher, "decoder=uniform", embeddings=False) == (
        LayerPair("decoder", 1, 3),
        LayerPair("decoder", 2, 6),
    )
    assert {pair.side for pair in layer_pairs(student, teacher, "encoder=first:1")} == {"encoder"}  # no embeddings
    both = layer_pairs(student, teacher, "1:1,2:5", embeddings=False)
    assert [(pair.side, pair.student, pair.teacher) for pair in both] == [
        ("encoder", 1, 1),
        ("encoder", 2, 5),
        ("decoder", 1, 1),
        ("decoder", 2, 5),
    ]


@pytest.mark.parametrize(
    ("layer_map", "words"),
    [
        (
            "skip:4",
            "encoder: student layer 4 would need teacher layer 16, but the teacher has layers 1 to 12; use at most",
        ),
        ("decoder=skip:2", "decoder: student layer 1 would need teacher layer 2, .* has one layer; use at most skip:1"),
        ("last:5", "encoder: the student has layers 1 to 4; use at most last:4"),
        ("encoder=uniform;decoder=first:2", "decoder: the student has one layer; use at most first:1"),
        ("5:1", "encoder: 5:1: there is no student layer 5; the student has layers 1 to 4"),
        ("encoder=1:13", "encoder: 1:13: there is no teacher layer 13; the teacher has layers 1 to 12"),
        ("1:4,2:8", "decoder: 1:4: there is no teacher layer 4; the teacher has one layer"),
        ("0:0", "encoder: 0:0: layers count from 1; .*--match-embeddings"),
        ("1:0", "encoder: 1:0: layers count from 1"),
        ("1:1,2:2, 1:1", "encoder: the pair 1:1 is there twice"),
        ("1:1,", "encoder: '' is no pair student:teacher; write pairs as 1:4,2:8"),
        ("", "encoder: '' is no pair"),
        ("1", "encoder: '1' is no pair"),
        ("-1:2", "encoder: '-1:2' is no pair"),
        ("1:2:3", "encoder: '1:2:3' is no pair"),
        ("1-4", "encoder: '1-4' is no pair"),
        ("1:99999999999999999999", "encoder: '1:9+' is no pair"),
        ("1:²", "encoder: '1:²' is no pair"),
        ("skip", "encoder: skip needs a whole number from 1 on, such as skip:2"),
        ("last:0", "encoder: last needs a whole number from 1 on"),
        ("first:-1", "encoder: first needs a whole number from 1 on"),
        ("skip:x", "encoder: skip needs a whole number"),
        ("uniform:2", "encoder: uniform takes no number"),
        ("unifrom", "encoder: unknown map 'unifrom'; did you mean uniform. known: uniform, skip:K, .*, or pairs"),
        ("lst:3", "encoder: unknown map 'lst'; did you mean last:K"),
        ("encoder=uniform;decode=uniform", "unknown side 'decode'; did you mean decoder. known: encoder, decoder"),
        ("uniform;decoder=last:1", "'uniform' names no side; write sides as 'encoder="),
        ("encoder=uniform;", "'' names no side"),
        ("encoder=uniform;encoder=last:1", "the encoder is there twice"),
        ("encoder=", "encoder: '' is no pair"),
    ],
)
def test_impossible_maps_are_refused(layer_map: str, words: str) -> None:
    with pytest.raises(ConfigError, match=rf"^--layer-map '{layer_map}': {words}") as error:
        layer_pairs(shape(encoder=4, decoder=1), shape(encoder=12, decoder=1), layer_map)
    assert "\n" not in str(error.value)


def test_a_side_that_the_models_lack_is_refused() -> None:
    with pytest.raises(ConfigError, match="the models have no decoder; leave it out"):
        layer_pairs(shape(encoder=2), shape(encoder=4), "encoder=uniform;decoder=uniform")


@given(st.text(alphabet="uniformskplat:=;,0123456789 ²\n", max_size=12))
def test_any_text_is_a_map_or_one_line_that_names_the_flag(layer_map: str) -> None:
    message, pairs = "", ()
    try:
        pairs = layer_pairs(shape(encoder=3, decoder=2), shape(encoder=9, decoder=4), layer_map)
    except ConfigError as error:
        message = str(error)
    assert pairs or message.startswith("--layer-map ")
    assert "\n" not in message
    assert all(pair.student <= 3 and pair.teacher <= 9 for pair in pairs)


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


def test_long_tables_are_broken_into_lines_of_a_terminal() -> None:
    rows = layer_table(layer_pairs(shape(encoder=24), shape(encoder=48))).splitlines()
    assert max(len(row) for row in rows) <= 80
    assert len(rows) == 4
    assert rows[2].split() == ["encoder", "student", *map(str, range(15, 25))]
    assert rows[3].split() == ["encoder", "teacher", *map(str, range(30, 49, 2))]
    assert layer_table(()) == ""
