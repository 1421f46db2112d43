"""Decoder steps that torch.compile has traced: whole graphs, few of them, and the same output."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch._dynamo.utils import counters

from cktk.errors import ConfigError
from cktk.generation.configs import SearchConfig
from tests.unit.generation.models import beam_search, random_sources, tiny


def test_steps_are_whole_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph is run as it is: generating code from it is PyTorch's affair, and takes a minute."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager", fullgraph=True))
    torch._dynamo.reset()
    counters.clear()
    model = tiny("flan", 1)
    compiled = beam_search(model, SearchConfig(beam=3, max_len_b=30, compile=True))
    plain = beam_search(model, SearchConfig(beam=3, max_len_b=30))
    for batch, seed in ((5, 1), (4, 2)):
        sources = random_sources(seed)
        found, expected = (search.generate(sources, batch_size=batch) for search in (compiled, plain))
        assert [[one.tokens for one in hypotheses] for hypotheses in found] == [
            [one.tokens for one in hypotheses] for hypotheses in expected
        ]
    assert 0 < counters["stats"]["unique_graphs"] <= 8


def test_compile_excludes_int8() -> None:
    with pytest.raises(ConfigError, match="--compile does nothing for --quantization int8"):
        SearchConfig(compile=True, quantization="int8")
