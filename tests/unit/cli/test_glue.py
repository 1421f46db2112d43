"""Rows of the table that cktk-evaluate --task glue prints."""

from __future__ import annotations

import pytest

from cktk_cli.glue import _names


@pytest.mark.parametrize(
    ("groups", "names"),
    [
        ([["runs/cka-cola", "runs/cka-rte"], ["runs/kl-cola", "runs/kl-rte"]], ["runs/cka", "runs/kl"]),
        ([["runs/cola", "runs/rte"]], ["runs"]),
        ([["runs/cola", "runs/rte"], ["runs/cola2", "runs/rte2"]], ["runs/cola, ...", "runs/cola2, ..."]),
        ([["a", "b"]], ["a, ..."]),
        ([["runs/a"], ["runs/b"]], ["runs/a", "runs/b"]),
    ],
)
def test_names_tell_rows_apart(groups: list[list[str]], names: list[str]) -> None:
    assert _names(groups) == names
