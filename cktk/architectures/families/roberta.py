"""The RoBERTa family: BERT with other heads, no kinds of sentence, and positions counted from the pad's id on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor
from torch.nn.functional import gelu
from transformers import (
    PreTrainedModel,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaForSequenceClassification,
    RobertaModel,
)

from cktk.architectures.configs import HeadKind
from cktk.architectures.families.bert import BertFamily
from cktk.architectures.states.encoder_adapter import EncoderHead


class RobertaFamily(BertFamily):
    """Plain ``RobertaForMaskedLM``, ``RobertaForSequenceClassification`` and ``RobertaModel``."""

    model_type: ClassVar[str] = "roberta"
    config_class: ClassVar[type[Any]] = RobertaConfig
    heads: ClassVar[Mapping[HeadKind, type[PreTrainedModel]]] = {
        "masked_lm": RobertaForMaskedLM,
        "classification": RobertaForSequenceClassification,
        "bare": RobertaModel,
    }
    aliases: ClassVar[Mapping[str, HeadKind]] = {}

    def reserved_positions(self, pad: int) -> int:
        """The first position follows the pad's id: with pad 1 a table of 514 rows holds 512 positions."""
        return pad + 1

    def masked_lm_head(self, model: Any) -> EncoderHead:
        """Dense, gelu and LayerNorm come before the matrix, which is tied to the embedding as a rule."""
        head = model.lm_head
        return EncoderHead(head.decoder, lambda states: head.layer_norm(gelu(head.dense(states))))

    def classification_head(self, model: Any) -> EncoderHead:
        """Tanh of a dense layer over ``<s>``, with dropout before and after it in train mode."""
        head = model.classifier

        def features(states: Tensor) -> Tensor:
            pooled: Tensor = head.dropout(head.dense(head.dropout(states[:, 0])).tanh())
            return pooled

        return EncoderHead(head.out_proj, features, pooled=True)
