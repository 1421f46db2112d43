"""The weights of a Hugging Face decoder, arranged for stepping: fused projections and no modules.

BART normalises after each sub-layer, mBART before it and once more at the end; apart from that they are one decoder.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.models.bart.modeling_bart import BartDecoder
from transformers.models.mbart.modeling_mbart import MBartDecoder

from cktk.errors import CheckpointError

#: The decoders that are known, and whether they normalise before a sub-layer. A subclass may compute something else.
_PRE_NORM: dict[type, bool] = {BartDecoder: False, MBartDecoder: True}


@dataclass(frozen=True)
class Affine:
    """``x @ weight.T + bias``; weight (out, in), bias (out) or None."""

    weight: Tensor
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


@dataclass(frozen=True)
class Norm:
    """A LayerNorm over the last dimension."""

    weight: Tensor
    bias: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


@dataclass(frozen=True)
class LayerWeights:
    """One decoder layer. ``self_qkv`` gives (3d), ``cross_kv`` (2d); queries are already scaled."""

    self_qkv: Affine
    self_out: Affine
    self_norm: Norm
    cross_q: Affine
    cross_kv: Affine
    cross_out: Affine
    cross_norm: Norm
    up: Affine
    down: Affine
    ffn_norm: Norm
    activation: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class DecoderWeights:
    """A whole decoder. ``positions`` (P, d) starts at the first usable one; ``bias`` (V) is None where it is zero."""

    layers: tuple[LayerWeights, ...]
    heads: int
    pre_norm: bool
    embedding: Tensor
    embedding_scale: float
    positions: Tensor
    embedding_norm: Norm
    final_norm: Norm | None
    head: Tensor
    bias: Tensor | None

    @property
    def vocab_size(self) -> int:
        return self.head.shape[0]

    @property
    def max_positions(self) -> int:
        return self.positions.shape[0]


def read_weights(model: Any) -> DecoderWeights:
    """The decoder of a model that is built around transformers' `BartDecoder` or `MBartDecoder`.

    Projections that are used together are copied side by side; everything else shares memory with the model. Raises
    `CheckpointError` for another kind of model.
    """
    decoder = model.get_decoder()
    if type(decoder) not in _PRE_NORM:
        known = " and ".join(kind.__name__ for kind in _PRE_NORM)
        raise CheckpointError(
            f"model type {model.config.model_type!r} decodes with {type(decoder).__name__}, but generation knows "
            f"{known} only: generate with transformers"
        )
    pre_norm = _PRE_NORM[type(decoder)]
    bias = model.final_logits_bias.detach().flatten()
    return DecoderWeights(
        layers=tuple(_layer(layer) for layer in decoder.layers),
        heads=model.config.decoder_attention_heads,
        pre_norm=pre_norm,
        embedding=decoder.embed_tokens.weight.detach(),
        embedding_scale=decoder.embed_tokens.embed_scale,
        positions=decoder.embed_positions.weight.detach()[decoder.embed_positions.offset :],
        embedding_norm=_norm(decoder.layernorm_embedding),
        final_norm=_norm(decoder.layer_norm) if pre_norm else None,
        head=model.get_output_embeddings().weight.detach(),
        bias=bias if bool(bias.any()) else None,
    )


def _layer(layer: Any) -> LayerWeights:
    own, cross = layer.self_attn, layer.encoder_attn
    return LayerWeights(
        self_qkv=_side_by_side(_scaled(own), _affine(own.k_proj), _affine(own.v_proj)),
        self_out=_affine(own.out_proj),
        self_norm=_norm(layer.self_attn_layer_norm),
        cross_q=_scaled(cross),
        cross_kv=_side_by_side(_affine(cross.k_proj), _affine(cross.v_proj)),
        cross_out=_affine(cross.out_proj),
        cross_norm=_norm(layer.encoder_attn_layer_norm),
        up=_affine(layer.fc1),
        down=_affine(layer.fc2),
        ffn_norm=_norm(layer.final_layer_norm),
        activation=layer.activation_fn,
    )


def _affine(module: Any) -> Affine:
    return Affine(module.weight.detach(), None if module.bias is None else module.bias.detach())


def _scaled(attention: Any) -> Affine:
    query = _affine(attention.q_proj)
    return Affine(query.weight * attention.scaling, None if query.bias is None else query.bias * attention.scaling)


def _side_by_side(*parts: Affine) -> Affine:
    biases = [part.bias for part in parts if part.bias is not None]
    return Affine(torch.cat([part.weight for part in parts]), torch.cat(biases) if biases else None)


def _norm(module: Any) -> Norm:
    return Norm(module.weight.detach(), module.bias.detach(), module.eps)
