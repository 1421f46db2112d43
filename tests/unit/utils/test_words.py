"""Words for unknown names: the one that was meant, and those that there are."""

from __future__ import annotations

import pytest

from cktk.utils.words import alternatives, nearest, unknown_name


def test_unknown_name_offers_the_nearest_and_lists_all() -> None:
    words = unknown_name("cka", ["cka_kd", "kl_kd"])
    assert words == "unknown name 'cka'; did you mean cka_kd? known: cka_kd, kl_kd"
    assert unknown_name("zzzz", iter(["cka_kd"])) == "unknown name 'zzzz'; known: cka_kd"


@pytest.mark.parametrize(
    ("name", "known", "found"),
    [
        ("fr", ["fa_IR", "fra", "fr_XX"], "fr_XX"),  # a further part, not merely the same beginning
        ("fra_Latin", ["eng_Latn", "fra_Latn"], "fra_Latn"),
        ("--num-worker", ["--num-workers", "--num"], "--num-workers"),
        ("xyz", ["abc"], None),
    ],
)
def test_nearest(name: str, known: list[str], found: str | None) -> None:
    assert nearest(name, known) == found


def test_long_lists_are_cut() -> None:
    words = alternatives("x", [f"name{number}" for number in range(300)])
    assert words.endswith(", name99, ...")
