"""Tiny random encoders of all kinds under all heads, and a batch for them."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    DistilBertConfig,
    DistilBertForMaskedLM,
    DistilBertForSequenceClassification,
    DistilBertModel,
    PreTrainedModel,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaForSequenceClassification,
    RobertaModel,
)

from cktk.protocols import IGNORED, Batch

KINDS = ("bert", "roberta", "distilbert")
HEADS = ("masked_lm", "classification", "bare")
CLASSES: dict[tuple[str, str], Any] = {
    ("bert", "masked_lm"): BertForMaskedLM,
    ("bert", "classification"): BertForSequenceClassification,
    ("bert", "bare"): BertModel,
    ("roberta", "masked_lm"): RobertaForMaskedLM,
    ("roberta", "classification"): RobertaForSequenceClassification,
    ("roberta", "bare"): RobertaModel,
    ("distilbert", "masked_lm"): DistilBertForMaskedLM,
    ("distilbert", "classification"): DistilBertForSequenceClassification,
    ("distilbert", "bare"): DistilBertModel,
}
LAYERS = 4
WIDTH = 24
CONFIGS: dict[str, tuple[Any, dict[str, Any]]] = {
    "bert": (BertConfig, {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 4,
                          "intermediate_size": 32, "max_position_embeddings": 16}),
    "roberta": (RobertaConfig, {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 4,
                                "intermediate_size": 32, "max_position_embeddings": 18, "type_vocab_size": 1}),
    "distilbert": (DistilBertConfig, {"dim": WIDTH, "n_layers": LAYERS, "n_heads": 4, "hidden_dim": 32,
                                      "max_position_embeddings": 16}),
}  # fmt: skip


def make_encoder(kind: str, head: str = "masked_lm", seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A model all of whose tensors are random: LayerNorm weights and biases too."""
    config_class, sizes = CONFIGS[kind]
    settings = {"vocab_size": 41, "pad_token_id": 1, "initializer_range": 0.3, "num_labels": 3, **sizes, **changes}
    torch.manual_seed(seed)
    model: PreTrainedModel = CLASSES[kind, head](config_class(**settings))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.config.architectures = [type(model).__name__]
    return model.eval()


def make_batch(head: str = "masked_lm", *, token_types: bool = True) -> Batch:
    """Three sentences of 7, 4 and 5 tokens, of which 11 are scored; for a classifier two of the sentences are."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 41, (3, 7), generator=generator)
    mask = torch.arange(7) < torch.tensor([[7], [4], [5]])
    inputs = {"input_ids": ids.masked_fill(~mask, 1), "attention_mask": mask.long()}
    if token_types:
        inputs["token_type_ids"] = ((torch.arange(7) >= 2) & mask).long()
    if head == "classification":
        labels = torch.tensor([2, IGNORED, 0])
    else:
        labels = ids.masked_fill(~mask | (ids % 3 == 0), IGNORED)
    return Batch(inputs, labels, [0, 1, 2])
