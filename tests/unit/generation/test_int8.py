"""Searches in 8-bit integers; test_operators.py has the products."""

from __future__ import annotations

import pytest
import torch

from cktk.generation.configs import SearchConfig
from cktk.generation.decoder import int8_copy
from cktk.generation.operators.choice import choose_operators
from tests.unit.generation.models import KINDS, beam_search, random_sources, tiny


@pytest.mark.parametrize("kind", KINDS)
def test_the_encoder_copy_rounds_and_leaves_the_model_alone(kind: str) -> None:
    model = tiny(kind, 1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ids = torch.tensor([[5, 6, 7, 2]])
    exact = model.get_encoder()(input_ids=ids).last_hidden_state
    copied = int8_copy(model.get_encoder(), choose_operators(model.device, model.dtype, int8=True)).eval()
    found = copied(input_ids=ids).last_hidden_state
    assert not any(isinstance(module, torch.nn.Linear) for module in copied.modules())
    assert 0 < (found - exact).abs().max() < 0.35 * exact.abs().max()
    assert torch.equal(model.get_encoder()(input_ids=ids).last_hidden_state, exact)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_are_close_and_do_not_depend_on_the_batch(kind: str) -> None:
    model, sources = tiny(kind, 4), random_sources(3)
    exact = beam_search(model, SearchConfig(beam=3, max_len_b=12)).generate(sources)
    search = beam_search(model, SearchConfig(beam=3, max_len_b=12, quantization="int8"))
    found = search.generate(sources)
    alone = [search.generate([source])[0] for source in sources]
    assert [best[0].tokens for best in found] == [best[0].tokens for best in alone]
    scores = [abs(ours[0].score - theirs[0].score) for ours, theirs in zip(found, exact, strict=True)]
    assert 0 < max(scores) < 0.6
