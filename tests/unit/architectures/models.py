"""Tiny random models of the encoder-decoder families."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    MBartConfig,
    MBartForConditionalGeneration,
    MT5Config,
    MT5ForConditionalGeneration,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

#: T5 tied, scaled and not gated; T5 v1.1 untied, not scaled and gated; mT5 untied, never scaled, and gated.
T5_KINDS = ("t5", "t5-v1.1", "mt5")

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

T5_SIZES: dict[str, Any] = {
    "vocab_size": 41,
    "d_model": 24,
    "num_layers": 2,
    "num_decoder_layers": 4,
    "d_ff": 32,
    "num_heads": 4,
    "d_kv": 8,  # heads together are wider than the model
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 12,
    "decoder_start_token_id": 0,
}


def make_t5(kind: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """One of `T5_KINDS`, all of its tensors random; ``tied`` decides otherwise about the head."""
    tied = changes.pop("tied", kind == "t5")
    torch.manual_seed(seed)
    model: Any
    if kind == "mt5":
        model = MT5ForConditionalGeneration(MT5Config(**{**T5_SIZES, **changes}))
    else:
        project = "relu" if kind == "t5" else "gated-gelu"
        settings = {**T5_SIZES, "feed_forward_proj": project, "tie_word_embeddings": kind == "t5", **changes}
        model = T5ForConditionalGeneration(T5Config(**settings))
    if not tied:
        model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.shared.weight))
    model.config.tie_word_embeddings = tied
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    made: PreTrainedModel = model.eval()
    return made


def make_model(kind: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A BART or mBART model all of whose tensors are random: LayerNorm weights, biases and the logits bias too."""
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
