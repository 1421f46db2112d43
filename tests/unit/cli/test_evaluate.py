"""What cktk-evaluate says beside its table."""

from __future__ import annotations

import pytest

from cktk_cli.evaluate import _warn_of_cuts


@pytest.mark.parametrize(
    ("cut", "lines"),
    [
        ({"a": 3, "b": 3}, ["warning: 3 sources were over-long and cut"]),
        ({"a": 3, "b": 5}, [f"warning: {n} sources were over-long and cut for {model}" for model, n in ("a3", "b5")]),
        ({"a": 0, "b": 5}, ["warning: 5 sources were over-long and cut for b"]),
        ({"a": 0, "b": 0}, []),
    ],
)
def test_sources_that_are_cut_are_counted_once(
    cut: dict[str, int], lines: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    _warn_of_cuts(cut)
    assert capsys.readouterr().err.splitlines() == lines
