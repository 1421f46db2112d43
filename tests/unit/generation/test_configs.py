"""Options of a search that exclude each other, or ask for too much."""

from __future__ import annotations

from typing import Any

import pytest

from cktk.errors import ConfigError
from cktk.generation.configs import SearchConfig

REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({"beam": 2, "nbest": 3}, "--nbest 3 is more than --beam 2; raise the beam"),
    ({"min_len": 9, "max_len_b": 8}, "--min-len 9 is more than --max-len-b 8; lower one"),
    ({"sampling": True}, "--sampling and --beam 5 exclude each other: add --beam 1 (and --nbest N for N samples)"),
    (
        {"sampling": True, "beam": 1, "diverse_beam_groups": 2},
        "--sampling and --diverse-beam-groups exclude each other; give one",
    ),
    ({"beam": 1, "sampling_topk": 5}, "--sampling-topk is only looked at with --sampling; add it"),
    ({"sampling_topp": 0.5}, "--sampling-topp is only looked at with --sampling; add it"),
    ({"seed": 2}, "--seed is only looked at with --sampling; add it"),
    ({"diverse_beam_strength": 3.0}, "--diverse-beam-strength is only looked at with --diverse-beam-groups; add it"),
    (
        {"sampling": True, "beam": 1, "early_stopping": "true"},
        "--sampling and --early-stopping exclude each other; give one",
    ),
    ({"temperature": 0.5}, "--temperature is only looked at with --sampling; add it"),
    ({"sampling": True, "beam": 1, "sampling_topk": 0}, "--sampling-topk 0 leaves no token; give -1 to draw from all"),
    ({"sampling": True, "beam": 1, "sampling_topp": 0}, "--sampling-topp 0 leaves no token; give -1 to draw from all"),
    ({"diverse_beam_groups": 2}, "--beam 5 does not part into --diverse-beam-groups 2 equal groups"),
    ({"beam": 2, "diverse_beam_groups": 3}, "--beam 2 does not part into --diverse-beam-groups 3 equal groups"),
]


@pytest.mark.parametrize(("settings", "line"), REFUSALS)
def test_refusals(settings: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        SearchConfig(**settings)
    assert str(caught.value) == line


def test_what_is_allowed() -> None:
    assert SearchConfig(sampling=True, beam=1, nbest=9, sampling_topk=3, sampling_topp=0.4, temperature=2.0).nbest == 9
    assert SearchConfig(diverse_beam_groups=-1).groups == SearchConfig(diverse_beam_groups=0).groups == 1
    assert SearchConfig(beam=6, diverse_beam_groups=3).groups == 3


def test_more_than_the_vocabulary() -> None:
    with pytest.raises(ConfigError, match="--beam 9 is more than the 8 tokens of the vocabulary; lower it"):
        SearchConfig(beam=9).check_vocabulary(8)
    with pytest.raises(ConfigError, match="--sampling-topk 9 is more than the 8 tokens of the vocabulary"):
        SearchConfig(sampling=True, beam=1, sampling_topk=9).check_vocabulary(8)
    SearchConfig(beam=8).check_vocabulary(8)
