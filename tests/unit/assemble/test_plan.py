"""Students that fit a budget, by plain search; operations and memory against what PyTorch counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode
from transformers import BartConfig, BertConfig, T5Config

from cktk.architectures.families.family import family_of
from cktk.architectures.parameters import ParameterCounts
from cktk.architectures.sizing import ModelSize, StudentSizes
from cktk.assemble.plan import candidates, cost, depths, flops_per_token, parse_count, training_bytes, widest, widths
from cktk.errors import ConfigError
from cktk.protocols import ModelShape, Side, SideShape


def size_of(width: int, layers: Mapping[Side, int]) -> ModelSize:
    """A model of a simple kind: 1,000 tokens, heads of 16, and 12 width ** 2 parameters a layer."""
    sides = {side: SideShape(number, 4 * width, max(1, width // 16)) for side, number in layers.items()}
    body = 12 * width**2 * sum(layers.values())
    return ModelSize(ModelShape(width, sides, 128), ParameterCounts(1000 * width, body), 2, 1000)


@st.composite
def teachers(draw: st.DrawFn) -> ModelSize:
    sides: tuple[Side, ...] = draw(st.sampled_from([("encoder",), ("encoder", "decoder")]))
    return size_of(16 * draw(st.integers(1, 20)), {side: draw(st.integers(1, 9)) for side in sides})


@given(teachers(), st.integers(1, 10**8))
def test_the_widest_of_each_depth(teacher: ModelSize, most: int) -> None:
    found = list(candidates(teacher, size_of, lambda size: size.parameters.total <= most))
    limit = min(most, teacher.parameters.total - 1)
    expected = []
    for layers in depths(teacher.shape):
        fitting = [width for width in widths(teacher.shape) if size_of(width, layers).parameters.total <= limit]
        expected += [size_of(max(fitting), layers)] if fitting else []
    assert found == expected
    totals = [sum(side.layers for side in size.shape.sides.values()) for size in found]
    assert totals == sorted(totals, reverse=True)


@given(teachers())
def test_depths(teacher: ModelSize) -> None:
    found = depths(teacher.shape)
    own = {side: sizes.layers for side, sizes in teacher.shape.sides.items()}
    assert found[0] == own
    assert found[-1] == dict.fromkeys(own, 1)
    assert len(found) == max(own.values()) == len({tuple(layers.values()) for layers in found})
    for layers in found:
        assert all(1 <= layers[side] <= own[side] for side in own)


@given(st.integers(1, 3000), st.integers(1, 64))
def test_widths(width: int, heads: int) -> None:
    found = widths(ModelShape(width * heads, {"encoder": SideShape(1, 1, heads)}, None))
    assert found[-1] == width * heads
    assert found == sorted(set(found)) and found[0] >= 1
    assert len(found) >= 8 or found[0] % 2


@given(st.lists(st.integers(0, 100), min_size=1, unique=True).map(sorted), st.integers(-1, 101))
def test_widest(choices: list[int], limit: int) -> None:
    assert widest(choices, lambda width: width <= limit) == max((c for c in choices if c <= limit), default=None)


def test_counts_in_words() -> None:
    assert [parse_count(text, "--n") for text in ("80M", "1.5b", "80_000", "8e7", "64k", " 7 ")] == [
        80_000_000, 1_500_000_000, 80_000, 80_000_000, 64_000, 7,
    ]  # fmt: skip
    for text in ("", "M", "80 MB", "-3", "many"):
        with pytest.raises(ConfigError, match="--max-params .*: not a number such as 80M"):
            parse_count(text, "--max-params")
    with pytest.raises(ConfigError, match="--max-params 1e400: too large"):
        parse_count("1e400", "--max-params")


CONFIGS: dict[str, Any] = {
    "bart": BartConfig(
        vocab_size=97, d_model=32, encoder_layers=3, decoder_layers=2, encoder_ffn_dim=48, decoder_ffn_dim=48,
        encoder_attention_heads=2, decoder_attention_heads=2, max_position_embeddings=64, dropout=0.1,
    ),
    "t5": T5Config(
        vocab_size=97, d_model=32, num_layers=3, num_decoder_layers=2, d_ff=40, num_heads=3, d_kv=8,
        feed_forward_proj="gated-gelu",
    ),
    "bert": BertConfig(
        vocab_size=97, hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=48,
        max_position_embeddings=64, architectures=["BertForMaskedLM"],
    ),
}  # fmt: skip


def built(kind: str, implementation: str) -> tuple[Any, ModelSize]:
    config = CONFIGS[kind]
    config._attn_implementation = implementation
    family = family_of(config.model_type, "the model")
    return family.build(config), StudentSizes(family, config).teacher


def run(model: Any, length: int) -> Any:
    ids = torch.full((1, length), 5)
    inputs = {"decoder_input_ids": ids, "use_cache": False} if model.config.is_encoder_decoder else {}
    return model(input_ids=ids, **inputs)


@pytest.mark.parametrize("kind", CONFIGS)
def test_operations(kind: str) -> None:
    """PyTorch's count of one pass, whose decoder computes the right halves of its scores, too, only to mask them."""
    length = 24
    model, size = built(kind, "eager")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run(model.eval(), length)
    counted = counter.get_total_flops()
    if "decoder" in size.shape.sides:
        masked = length - (length + 1) / 2
        counted -= 4 * length * masked * size.shape.attention_width("decoder") * size.shape.sides["decoder"].layers
    if kind == "bert":
        counted -= 2 * length * 32 * 32  # the dense layer of BERT's head, which is not a matrix of its vocabulary
    assert counted / length == flops_per_token(size, length)


LENGTH = 48


@pytest.mark.parametrize("kind", CONFIGS)
def test_memory(kind: str) -> None:
    """What autograd keeps of the layers but attention's scores; T5 composes its norms and activations of many steps."""
    kept: dict[int, int] = {}
    per_depth = []
    for layers in (1, 3):
        config = type(CONFIGS[kind])(**{**CONFIGS[kind].to_dict(), "_attn_implementation": "sdpa"})
        for name in ("encoder_layers", "decoder_layers", "num_layers", "num_decoder_layers", "num_hidden_layers"):
            if name in config.to_dict():
                setattr(config, name, layers)
        family = family_of(config.model_type, "the model")
        model: Any = family.build(config).train()
        kept.clear()
        owned = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

        def keep(tensor: torch.Tensor, owned: set[int] = owned) -> torch.Tensor:
            storage = tensor.untyped_storage()
            is_scores = tensor.shape[-2:] == (LENGTH, LENGTH)
            if storage.data_ptr() not in owned and not is_scores:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            outputs = run(model, LENGTH)
        size = StudentSizes(family, config).teacher
        fixed = 4 * 4 * size.parameters.total + 4 * size.parameters.total
        per_depth.append((sum(kept.values()), training_bytes(size, size, LENGTH) - fixed))
        del outputs
    counted, estimated = (after - before for before, after in zip(*per_depth, strict=True))
    assert (0.6 if kind == "t5" else 0.8) * counted < estimated < 1.25 * counted


def test_cost() -> None:
    teacher, student = size_of(64, {"encoder": 4}), size_of(32, {"encoder": 2})
    found = cost(student, teacher, length=10, max_tokens=100)
    assert found.compression == teacher.parameters.total / student.parameters.total
    assert found.weight_bytes == 4 * student.parameters.total
    assert found.training_bytes > 16 * student.parameters.total + 4 * teacher.parameters.total
    assert found.flops == flops_per_token(student, 10)
