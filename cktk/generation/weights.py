"""The weights of a Hugging Face decoder, arranged for stepping: fused projections and no modules.

What a kind of model does differently is in its `DecoderLayout`. Read from it are: norms before or after the sub-layers,
LayerNorm or RMS norm, absolute positions or a bias by distance, feed-forward layers with or without a gate.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.activations import GELUActivation, NewGELUActivation, SiLUActivation

from cktk.errors import CheckpointError
from cktk.generation.operators.contract import Activation, Linear, Norm, Operators, gelu_tanh
from cktk.protocols import DecoderLayout

_FUNCTIONS: dict[type[nn.Module], Activation] = {
    nn.ReLU: F.relu,
    nn.GELU: F.gelu,
    GELUActivation: F.gelu,
    NewGELUActivation: gelu_tanh,
    nn.SiLU: F.silu,
    SiLUActivation: F.silu,
}


class Affine(NamedTuple):
    """A projection as the model has it: weight (out, in), bias (out) or None."""

    weight: Tensor
    bias: Tensor | None


@dataclass(frozen=True)
class Gated:
    """A product that gives two vectors side by side, and an activation that lets the first gate the second."""

    linear: Linear
    activation: Activation

    @property
    def features(self) -> tuple[int, int]:
        """See `Linear`."""
        size, both = self.linear.features
        return size, both // 2

    def __call__(self, x: Tensor) -> Tensor:
        gate, value = self.linear(x).chunk(2, dim=-1)
        return self.activation(gate) * value


@dataclass(frozen=True)
class LayerWeights:
    """One decoder layer. ``self_qkv`` gives (3 a), ``cross_kv`` (2 a), a all heads together; queries are scaled.

    ``up`` ends with the activation of the feed-forward layer.
    """

    self_qkv: Linear
    self_out: Linear
    self_norm: Norm
    cross_q: Linear
    cross_kv: Linear
    cross_out: Linear
    cross_norm: Norm
    up: Linear
    down: Linear
    ffn_norm: Norm


@dataclass(frozen=True)
class DecoderWeights:
    """A whole decoder.

    ``positions`` (P, d) starts at the first usable one, None where there are none. ``position_bias`` (H, D) is what
    self-attention adds to the scores of a key by its distance, the last column for all that is farther; None: nothing.
    ``bias`` (V) is None where it is zero. ``max_positions`` is how many tokens may be fed, None: no limit.
    """

    layers: tuple[LayerWeights, ...]
    heads: int
    pre_norm: bool
    embedding: Tensor
    embedding_scale: float
    positions: Tensor | None
    position_bias: Tensor | None
    embedding_norm: Norm | None
    final_norm: Norm | None
    head: Tensor
    bias: Tensor | None

    @property
    def max_positions(self) -> int | None:
        return None if self.positions is None else self.positions.shape[0]


def read_weights(model: Any, layout: DecoderLayout, operators: Operators) -> DecoderWeights:
    """The decoder of ``model``, which ``layout`` describes; ``operators`` make its products, but that of the head.

    Projections are copied, those that are used together side by side; embeddings share memory with the model. Raises
    `CheckpointError` for a model with another decoder.
    """
    decoder = model.get_decoder()
    # A subclass may compute something else.
    if type(decoder) is not layout.stack:
        raise CheckpointError(
            f"model type {model.config.model_type!r} decodes with {type(decoder).__name__}, but generation knows its "
            f"{layout.stack.__name__} only: generate with transformers"
        )
    bias = getattr(model, "final_logits_bias", None)
    return DecoderWeights(
        layers=tuple(_layer(layer, layout, operators) for layer in _part(decoder, layout.layers)),
        heads=layout.heads,
        pre_norm=layout.pre_norm,
        embedding=decoder.embed_tokens.weight.detach(),
        embedding_scale=1.0 if layout.embedding_scale is None else float(_part(decoder, layout.embedding_scale)),
        positions=None if layout.positions is None else _positions(_part(decoder, layout.positions)),
        position_bias=None if layout.position_bias is None else _by_distance(_part(decoder, layout.position_bias)),
        embedding_norm=_optional_norm(operators, decoder, layout.embedding_norm),
        final_norm=_optional_norm(operators, decoder, layout.final_norm, layout.head_scale),
        head=model.get_output_embeddings().weight.detach(),
        bias=bias.detach().flatten() if bias is not None and bool(bias.any()) else None,
    )


def _part(module: Any, path: str) -> Any:
    return attrgetter(path)(module)


def _layer(layer: Any, layout: DecoderLayout, operators: Operators) -> LayerWeights:
    together = partial(_together, operators)
    own, cross = _part(layer, layout.self_attention), _part(layer, layout.cross_attention)
    query, key, value, out = layout.projections
    self_norm, cross_norm, ffn_norm = (_norm(operators, _part(layer, name)) for name in layout.norms)
    activation = _activation(_part(layer, layout.activation))
    up = [_affine(_part(layer, name)) for name in layout.up]
    return LayerWeights(
        self_qkv=together(_scaled(own, query), _affine(_part(own, key)), _affine(_part(own, value))),
        self_out=together(_affine(_part(own, out))),
        self_norm=self_norm,
        cross_q=together(_scaled(cross, query)),
        cross_kv=together(_affine(_part(cross, key)), _affine(_part(cross, value))),
        cross_out=together(_affine(_part(cross, out))),
        cross_norm=cross_norm,
        up=together(*up, activation=activation) if len(up) == 1 else Gated(together(*up), activation),
        down=together(_affine(_part(layer, layout.down))),
        ffn_norm=ffn_norm,
    )


def _affine(module: Any) -> Affine:
    return Affine(module.weight.detach(), None if module.bias is None else module.bias.detach())


def _scaled(attention: Any, name: str) -> Affine:
    query, scale = _affine(_part(attention, name)), attention.scaling
    if scale == 1.0:
        return query
    return Affine(query.weight * scale, None if query.bias is None else query.bias * scale)


def _together(operators: Operators, *parts: Affine, activation: Activation | None = None) -> Linear:
    """Projections of the same input, side by side."""
    biases = [part.bias for part in parts if part.bias is not None]
    weight = torch.cat([part.weight for part in parts])
    return operators.linear(weight, torch.cat(biases) if biases else None, activation)


def _optional_norm(operators: Operators, decoder: Any, name: str | None, scale: float = 1.0) -> Norm | None:
    return None if name is None else _norm(operators, _part(decoder, name), scale)


def _norm(operators: Operators, module: Any, scale: float = 1.0) -> Norm:
    """A norm whose output is multiplied by ``scale``."""
    weight, bias = module.weight.detach(), getattr(module, "bias", None)
    weight = weight if scale == 1.0 else weight * scale
    if bias is None:
        return operators.norm(weight, None, module.variance_epsilon)
    return operators.norm(weight, bias.detach() * scale if scale != 1.0 else bias.detach(), module.eps)


def _activation(module: Any) -> Activation:
    """The function of an activation module, by the name that operators know it by, where they do."""
    known: Activation = _FUNCTIONS.get(type(module), module)
    return known


def _positions(module: Any) -> Tensor:
    table: Tensor = module.weight.detach()[getattr(module, "offset", 0) :]
    return table


def _by_distance(attention: Any) -> Tensor:
    """The bias (H, D) of keys 0, 1, ... D - 1 tokens back; beyond its largest distance T5 makes no difference."""
    distances = int(attention.relative_attention_max_distance) + 1
    # The bias of the query at the end of so many tokens is that of all distances, the largest first.
    row = attention.compute_bias(1, distances, past_seen_tokens=distances - 1)[0, :, 0]
    bias: Tensor = row.detach().flip(1).contiguous()
    return bias
