"""Tiny random models whose output ends at varied lengths, and transformers' `generate` as the reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import BartConfig, BartForConditionalGeneration, MBartConfig, MBartForConditionalGeneration

VOCABULARY = 37
CLASSES = {"bart": (BartConfig, BartForConditionalGeneration), "mbart": (MBartConfig, MBartForConditionalGeneration)}


def tiny_model(kind: str, seed: int, *, eos_bias: float = 2.0, vocab_size: int = VOCABULARY, **overrides: Any) -> Any:
    """A model with wide random weights, so that its predictions vary, and a bias that lets output end early or late."""
    config_class, model_class = CLASSES[kind]
    settings = {
        "vocab_size": vocab_size, "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 24,
        "decoder_ffn_dim": 24, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "init_std": 0.35,
        "max_position_embeddings": 64, "decoder_start_token_id": 2, "dropout": 0.3, **overrides,
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = model_class(config_class(**settings))
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name:
                parameter.data += 0.1 * torch.randn_like(parameter)
        model.final_logits_bias[0] = 0.2 * torch.randn(vocab_size)
        model.final_logits_bias[0, 2] += eos_bias
    return model.eval()


def random_sources(
    seed: int, count: int = 6, shortest: int = 2, longest: int = 11, vocab_size: int = VOCABULARY
) -> list[Any]:
    """Sources of random lengths that end with eos."""
    draw = np.random.default_rng(seed)
    bodies = [draw.integers(3, vocab_size, size=draw.integers(shortest, longest)) for _ in range(count)]
    return [np.append(body, 2) for body in bodies]


def reference(model: Any, sources: list[Any], **settings: Any) -> list[list[tuple[tuple[int, ...], float | None]]]:
    """Hypotheses (without decoder start) and scores of transformers, all sources in one padded batch."""
    width = max(map(len, sources))
    ids = torch.full((len(sources), width), 1)
    for row, source in enumerate(sources):
        ids[row, : len(source)] = torch.as_tensor(source)
    per = settings.get("num_return_sequences", 1)
    output = model.generate(
        input_ids=ids, attention_mask=torch.tensor([[1] * len(s) + [0] * (width - len(s)) for s in sources]),
        return_dict_in_generate=True, output_scores=True, do_sample=False, early_stopping=False, **settings,
    )  # fmt: skip
    scores = output.sequences_scores.tolist() if settings.get("num_beams", 1) > 1 else [None] * len(output.sequences)
    rows = [(trimmed(sequence), score) for sequence, score in zip(output.sequences.tolist(), scores, strict=True)]
    return [rows[start : start + per] for start in range(0, len(rows), per)]


def trimmed(sequence: list[int]) -> tuple[int, ...]:
    """Drop the decoder start and what follows the end."""
    body = sequence[1:]
    return tuple(body[: body.index(2) + 1] if 2 in body else body)
