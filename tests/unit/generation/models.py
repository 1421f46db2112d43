"""Tiny random models whose output ends at varied lengths, and transformers' `generate` as the reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    MarianConfig,
    MarianMTModel,
    MBartConfig,
    MBartForConditionalGeneration,
)

from cktk.architectures.families.family import family_of
from cktk.generation.beam import BeamSearch
from cktk.generation.configs import SearchConfig
from cktk.generation.logits import Logits
from cktk.protocols import DecoderLayout

VOCABULARY = 37
CLASSES: dict[str, tuple[Any, Any]] = {
    "bart": (BartConfig, BartForConditionalGeneration),
    "mbart": (MBartConfig, MBartForConditionalGeneration),
    "marian": (MarianConfig, MarianMTModel),
}

#: What a kind has otherwise than BART: MarianMT starts with the pad. Ids are those of our BART models.
OWN: dict[str, dict[str, Any]] = {
    "marian": {
        "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 1, "scale_embedding": True
    }
}  # fmt: skip

#: Settings of the T5 models: published T5 is tied and not gated, v1.1 the opposite; ids are those of our BART models.
T5_KINDS: dict[str, dict[str, Any]] = {
    "t5": {"feed_forward_proj": "relu", "tie_word_embeddings": True},
    "flan": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "mt5": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": True},
}
KINDS = (*CLASSES, *T5_KINDS)


def tiny(kind: str, seed: int, **settings: Any) -> Any:
    """A random model of one of `KINDS`."""
    return tiny_t5(kind, seed, **settings) if kind in T5_KINDS else tiny_model(kind, seed, **settings)


def tiny_t5(kind: str, seed: int, *, eos_bias: float = 2.0, vocab_size: int = VOCABULARY, **overrides: Any) -> Any:
    """A T5 whose heads are wider than the model, and whose positions reach beyond its largest distance.

    T5 has no bias on its logits. Here the first dimension of all embeddings, and so of all states, is large and
    positive: there the head's row of eos gets the bias.
    """
    family = family_of("mt5" if kind == "mt5" else "t5", kind)
    settings = {
        "vocab_size": vocab_size, "d_model": 16, "num_layers": 2, "num_decoder_layers": 2, "d_ff": 24, "num_heads": 3,
        "d_kv": 8, "relative_attention_num_buckets": 6, "relative_attention_max_distance": 9, "dropout_rate": 0.3,
        "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1, **T5_KINDS[kind], **overrides,
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = family.config_class(**settings)
        config.tie_word_embeddings = settings["tie_word_embeddings"]
        model: Any = family.build(config)
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.data += 0.1 * torch.randn_like(parameter)
            else:
                parameter.data = (2.0 if "relative" in name else 0.4) * torch.randn_like(parameter)
        head, embedding = model.lm_head.weight.data, model.shared.weight.data
        scale = layout_of(model).head_scale
        head *= 1.5 / scale**0.5
        embedding[:, 0] = head[:, 0] = 4.0
        head[2, 0] += eos_bias / scale
    return model.eval()


def layout_of(model: Any) -> DecoderLayout:
    """What the model's family says of its decoder."""
    return family_of(model.config.model_type, "the model").decoder_layout(model.config)


def beam_search(model: Any, config: SearchConfig) -> BeamSearch:
    """The search of ``config`` with ``model``."""
    return BeamSearch(model, config, layout_of(model))


def tiny_model(kind: str, seed: int, *, eos_bias: float = 2.0, vocab_size: int = VOCABULARY, **overrides: Any) -> Any:
    """A model with wide random weights, so that its predictions vary, and a bias that lets output end early or late."""
    config_class, model_class = CLASSES[kind]
    settings = {
        "vocab_size": vocab_size, "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 24,
        "decoder_ffn_dim": 24, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "init_std": 0.35,
        "max_position_embeddings": 64, "decoder_start_token_id": 2, "dropout": 0.3, **OWN.get(kind, {}), **overrides,
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
        return_dict_in_generate=True, output_scores=True, do_sample=False, **{"early_stopping": False, **settings},
    )  # fmt: skip
    scores = output.sequences_scores.tolist() if settings.get("num_beams", 1) > 1 else [None] * len(output.sequences)
    rows = [(trimmed(sequence), score) for sequence, score in zip(output.sequences.tolist(), scores, strict=True)]
    return [rows[start : start + per] for start in range(0, len(rows), per)]


def trimmed(sequence: list[int]) -> tuple[int, ...]:
    """Drop the decoder start and what follows the end."""
    body = sequence[1:]
    return tuple(body[: body.index(2) + 1] if 2 in body else body)


def in_tiles(logits: Tensor, width: int) -> Logits:
    """Logits (R, V) as a search gets them, in tiles of ``width`` columns."""
    spare = -logits.shape[1] % width
    tiles = F.pad(logits, (0, spare), value=float("-inf")).unflatten(1, (-1, width)).transpose(0, 1).contiguous()
    return Logits(tiles, tiles.amax(dim=2), logits.logsumexp(dim=1), logits.shape[1])
