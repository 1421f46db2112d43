"""Declared options: every spelling of a value becomes the same typed value, or one clear reason why not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cktk.config.options import Option, options_of
from cktk.config.options import option as opt


@dataclass(frozen=True)
class Sample:
    """Sample options."""

    name: str = opt(help="needed")
    rows: int = opt(8, help="rows", minimum=1, maximum=100)
    rate: float = opt(0.1, help="rate", above=0)
    fast: bool = opt(False, help="fast")
    limit: int | None = opt(None, help="limit", minimum=0)
    betas: tuple[float, ...] = opt((0.9, 0.98), help="betas", minimum=0, maximum=1)
    pair: tuple[int, int] = opt((1, 2), help="pair")
    paths: tuple[str, ...] = opt((), help="paths")
    mode: Literal["low", "high"] = opt("low", help="mode")
    modes: tuple[Literal["low", "high"], ...] = opt((), help="modes")
    kind: str = opt("plain", help="kind", choices=("plain", "fancy"))
    workers: int = opt(0, help="workers", resume="free")


TABLE: dict[str, Option] = {option.name: option for option in options_of(Sample)}


@pytest.mark.parametrize(
    ("name", "raw", "value"),
    [
        ("name", "no", "no"),
        ("name", "1e-4", "1e-4"),
        ("rows", "12", 12),
        ("rows", "4e1", 40),
        ("rate", "1e-4", 1e-4),
        ("rate", "3", 3.0),
        ("fast", "yes", True),
        ("fast", "False", False),
        ("fast", "off", False),
        ("limit", None, None),
        ("limit", "none", None),
        ("limit", "7", 7),
        ("betas", "0.9,0.999", (0.9, 0.999)),
        ("betas", "(0.9, 0.999)", (0.9, 0.999)),
        ("betas", ["0.9", "0.999"], (0.9, 0.999)),
        ("betas", "0.9 0.999", (0.9, 0.999)),
        ("pair", "3,4", (3, 4)),
        ("paths", "my student", ("my student",)),
        ("paths", "runs (old)/[1] , b,", ("runs (old)/[1]", "b")),
        ("paths", ["a, b", "c"], ("a, b", "c")),
        ("paths", " ", ()),
        ("mode", "high", "high"),
        ("modes", "high,low", ("high", "low")),
        ("modes", ["low"], ("low",)),
        ("modes", [], ()),
        ("kind", "fancy", "fancy"),
    ],
)
def test_text_becomes_a_typed_value(name: str, raw: str | list[str] | None, value: object) -> None:
    converted = TABLE[name].convert(raw)
    assert converted == value
    assert type(converted) is type(value)


@pytest.mark.parametrize(
    ("name", "raw", "words"),
    [
        ("rows", "many", "'many' is not a number"),
        ("rows", "1.5", "not a whole number"),
        ("rows", "0", "must be at least 1"),
        ("rows", "101", "must be at most 100"),
        ("rows", None, "needs a value"),
        ("rows", ["1", "2"], "takes one value"),
        ("rate", "0", "must be above 0"),
        ("rate", "nan", "not a finite number"),
        ("rate", "inf", "not a finite number"),
        ("fast", "maybe", "neither true nor false"),
        ("limit", "-1", "must be at least 0"),
        ("betas", "0.9,2", "2 is out of range"),
        ("pair", "3", "takes 2 values, not 1"),
        ("pair", ["3", "4", "5"], "takes 2 values, not 3"),
        ("mode", "hihg", "did you mean high"),
        ("modes", "low,hihg", "did you mean high"),
        ("kind", "fanci", "did you mean fancy"),
    ],
)
def test_a_bad_value_says_why(name: str, raw: str | list[str] | None, words: str) -> None:
    with pytest.raises(ValueError, match=words.replace("(", r"\(")):
        TABLE[name].convert(raw)


def test_fields_describe_themselves() -> None:
    assert [option.flag for option in options_of(Sample)][:2] == ["--name", "--rows"]
    assert TABLE["name"].required and not TABLE["rows"].required
    assert TABLE["limit"].optional and TABLE["limit"].kind is int
    assert TABLE["betas"].is_list and not TABLE["rows"].is_list
    assert TABLE["mode"].choices == TABLE["modes"].choices == ("low", "high")
    assert TABLE["kind"].choices == ("plain", "fancy") and TABLE["paths"].choices is None
    assert TABLE["workers"].meta("resume") == "free" and TABLE["rows"].meta("resume") == "same"


@given(st.integers(min_value=1, max_value=100))
def test_whole_numbers_survive_the_round_trip(number: int) -> None:
    assert TABLE["rows"].convert(str(number)) == number


@given(st.floats(min_value=1e-300, max_value=1e300))
def test_floats_survive_the_round_trip(number: float) -> None:
    assert TABLE["rate"].convert(repr(number)) == number


@given(st.lists(st.floats(min_value=0, max_value=1), min_size=1, max_size=5))
def test_lists_read_the_same_in_every_spelling(numbers: list[float]) -> None:
    texts = [repr(number) for number in numbers]
    spellings = [texts, ",".join(texts), " ".join(texts), f"[{', '.join(texts)}]"]
    assert {TABLE["betas"].convert(raw) for raw in spellings} == {tuple(numbers)}


@dataclass(frozen=True)
class Lists:
    """lists"""

    update_freq: tuple[int, ...] = opt((1,), help="frequency")


def test_an_empty_list_is_refused() -> None:
    (frequency,) = options_of(Lists)
    for raw in ("", [], " , "):
        with pytest.raises(ValueError, match="at least one value"):
            frequency.convert(raw)
