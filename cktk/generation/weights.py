"""The weights of a Hugging Face decoder, arranged for stepping: fused projections and no modules.

What a kind of model does differently is in its `DecoderLayout`. Read from it are: norms before or after the sub-layers,
LayerNorm or RMS norm, absolute positions or a bias by distance, feed-forward layers with or without a gate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.activations import NewGELUActivation

from cktk.errors import CheckpointError
from cktk.generation.linear import DenseLinear, Linear, MakeLinear
from cktk.protocols import DecoderLayout

Norm = Callable[[Tensor], Tensor]
Activation = Callable[[Tensor], Tensor]


class Affine(NamedTuple):
    """A projection as the model has it: weight (out, in), bias (out) or None."""

    weight: Tensor
    bias: Tensor | None


@dataclass(frozen=True)
class LayerNorm:
    """Mean 0 and variance 1 over the last dimension, then weight and bias."""

    weight: Tensor
    bias: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


@dataclass(frozen=True)
class RmsNorm:
    """Mean square 1 over the last dimension, then the weight."""

    weight: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


@dataclass(frozen=True)
class Gated:
    """An activation that takes two vectors side by side and lets the first one gate the second."""

    activation: Activation

    def __call__(self, x: Tensor) -> Tensor:
        gate, value = x.chunk(2, dim=-1)
        return self.activation(gate) * value


@dataclass(frozen=True)
class LayerWeights:
    """One decoder layer. ``self_qkv`` gives (3 a), ``cross_kv`` (2 a), a all heads together; queries are scaled."""

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
    activation: Activation


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


def read_weights(model: Any, layout: DecoderLayout, linear: MakeLinear = DenseLinear) -> DecoderWeights:
    """The decoder of ``model``, which ``layout`` describes; ``linear`` makes its products, but that of the head.

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
        layers=tuple(_layer(layer, layout, linear) for layer in _part(decoder, layout.layers)),
        heads=layout.heads,
        pre_norm=layout.pre_norm,
        embedding=decoder.embed_tokens.weight.detach(),
        embedding_scale=1.0 if layout.embedding_scale is None else float(_part(decoder, layout.embedding_scale)),
        positions=None if layout.positions is None else _positions(_part(decoder, layout.positions)),
        position_bias=None if layout.position_bias is None else _by_distance(_part(decoder, layout.position_bias)),
        embedding_norm=None if layout.embedding_norm is None else _norm(_part(decoder, layout.embedding_norm)),
        final_norm=None if layout.final_norm is None else _norm(_part(decoder, layout.final_norm), layout.head_scale),
        head=model.get_output_embeddings().weight.detach(),
        bias=bias.detach().flatten() if bias is not None and bool(bias.any()) else None,
    )


def _part(module: Any, path: str) -> Any:
    return attrgetter(path)(module)


def _layer(layer: Any, layout: DecoderLayout, linear: MakeLinear) -> LayerWeights:
    together = partial(_together, linear)
    own, cross = _part(layer, layout.self_attention), _part(layer, layout.cross_attention)
    query, key, value, out = layout.projections
    self_norm, cross_norm, ffn_norm = (_norm(_part(layer, name)) for name in layout.norms)
    return LayerWeights(
        self_qkv=together(_scaled(own, query), _affine(_part(own, key)), _affine(_part(own, value))),
        self_out=together(_affine(_part(own, out))),
        self_norm=self_norm,
        cross_q=together(_scaled(cross, query)),
        cross_kv=together(_affine(_part(cross, key)), _affine(_part(cross, value))),
        cross_out=together(_affine(_part(cross, out))),
        cross_norm=cross_norm,
        up=together(*(_affine(_part(layer, name)) for name in layout.up)),
        down=together(_affine(_part(layer, layout.down))),
        ffn_norm=ffn_norm,
        activation=_activation(_part(layer, layout.activation), gated=len(layout.up) > 1),
    )


def _affine(module: Any) -> Affine:
    return Affine(module.weight.detach(), None if module.bias is None else module.bias.detach())


def _scaled(attention: Any, name: str) -> Affine:
    query, scale = _affine(_part(attention, name)), attention.scaling
    if scale == 1.0:
        return query
    return Affine(query.weight * scale, None if query.bias is None else query.bias * scale)


def _together(linear: MakeLinear, *parts: Affine) -> Linear:
    """Projections of the same input, side by side."""
    biases = [part.bias for part in parts if part.bias is not None]
    return linear(torch.cat([part.weight for part in parts]), torch.cat(biases) if biases else None)


def _norm(module: Any, scale: float = 1.0) -> Norm:
    """A norm whose output is multiplied by ``scale``."""
    weight, bias = module.weight.detach(), getattr(module, "bias", None)
    weight = weight if scale == 1.0 else weight * scale
    if bias is None:
        return RmsNorm(weight, module.variance_epsilon)
    return LayerNorm(weight, bias.detach() * scale if scale != 1.0 else bias.detach(), module.eps)


def _activation(module: Any, *, gated: bool) -> Activation:
    # The same function, but one kernel instead of eight.
    activation = partial(F.gelu, approximate="tanh") if isinstance(module, NewGELUActivation) else module
    return Gated(activation) if gated else activation


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
