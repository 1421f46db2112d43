"""Tiny random BART and mBART models."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    MBartConfig,
    MBartForConditionalGeneration,
    PreTrainedModel,
)

SIZES: dict[str, Any] = {
    "vocab_size": 41,
    "max_position_embeddings": 16,
    "d_model": 24,
    "encoder_layers": 2,
    "decoder_layers": 4,  # deeper than the encoder: transformers' own selection of states fails there
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 40,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 2,
    "init_std": 0.3,
}


def make_model(kind: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A model all of whose tensors are random: LayerNorm weights, biases and the logits bias too."""
    settings = {**SIZES, "scale_embedding": kind == "mbart", **changes}
    torch.manual_seed(seed)
    model: PreTrainedModel
    if kind == "bart":
        model = BartForConditionalGeneration(BartConfig(**settings))
    else:
        model = MBartForConditionalGeneration(MBartConfig(**settings))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        model.final_logits_bias.normal_()
    return model.eval()
