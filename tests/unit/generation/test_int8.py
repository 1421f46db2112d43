"""Products in 8-bit integers against the same ones with rounded numbers in fp64, and a search with them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cktk.errors import ConfigError
from cktk.generation.configs import SearchConfig
from cktk.generation.decoder import int8_copy
from cktk.generation.linear import DenseLinear, Int8Linear, check_int8, quantised
from tests.unit.generation.models import KINDS, beam_search, random_sources, tiny


def rounded(x: Tensor) -> Tensor:
    """Rows on a grid of 127 steps up to their largest value."""
    step = x.double().abs().amax(dim=1, keepdim=True).float().double() / 127
    return torch.where(step > 0, (x.double() / step).round() * step, 0.0)


@pytest.mark.parametrize("rows", [1, 2, 5, 64])
@pytest.mark.parametrize("bias", [False, True])
def test_product_of_rounded_numbers(rows: int, bias: bool) -> None:
    draw = torch.Generator().manual_seed(1)
    weight, x = torch.randn(24, 40, generator=draw), 3 * torch.randn(rows, 40, generator=draw)
    weight[3], x[1:2] = 0.0, 0.0
    added = torch.randn(24, generator=draw) if bias else None
    expected = rounded(x) @ rounded(weight).t() + (0.0 if added is None else added.double())
    linear = Int8Linear(weight, added)
    assert linear.features == (40, 24)
    torch.testing.assert_close(linear(x).double(), expected, rtol=1e-5, atol=1e-5)
    exact = DenseLinear(weight, added)(x)
    assert 0 < (linear(x) - exact).abs().max() < 0.03 * exact.abs().max()


def test_a_row_does_not_depend_on_the_rows_beside_it() -> None:
    draw = torch.Generator().manual_seed(2)
    x = torch.randn(9, 32, generator=draw) * torch.logspace(-3, 3, 9)[:, None]
    product = Int8Linear(torch.randn(16, 32, generator=draw), None)
    assert torch.equal(torch.cat([product(row[None]) for row in x]), product(x))
    assert torch.equal(product(x[[4, 1]]), product(x)[[4, 1]])


def test_integers_fill_their_range() -> None:
    whole, scales = quantised(torch.tensor([[0.5, -1.0, 0.25], [0.0, 0.0, 0.0]]))
    assert whole.tolist() == [[64, -127, 32], [0, 0, 0]]
    assert scales[0].item() == pytest.approx(1 / 127)


@pytest.mark.parametrize("kind", KINDS)
def test_the_encoder_copy_rounds_and_leaves_the_model_alone(kind: str) -> None:
    model = tiny(kind, 1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ids = torch.tensor([[5, 6, 7, 2]])
    exact = model.get_encoder()(input_ids=ids).last_hidden_state
    found = int8_copy(model.get_encoder()).eval()(input_ids=ids).last_hidden_state
    assert not any(isinstance(module, torch.nn.Linear) for module in int8_copy(model.get_encoder()).modules())
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


def test_other_devices_are_refused() -> None:
    with pytest.raises(ConfigError, match="--quantization int8 works on a CPU, and the device is meta"):
        check_int8(torch.device("meta"))
