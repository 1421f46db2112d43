"""The BERT family, which DistilBERT-like students of BERT's own shape (6x768, MiniLM) belong to as well."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification, BertModel, PreTrainedModel

from cktk.architectures.configs import HeadKind
from cktk.architectures.families.encoder_family import EncoderFamily
from cktk.architectures.states.adapter import Layout
from cktk.architectures.states.encoder_adapter import EncoderHead


class BertFamily(EncoderFamily):
    """Plain ``BertForMaskedLM``, ``BertForSequenceClassification`` and ``BertModel``.

    Of a ``BertForPreTraining`` the masked language model is read; its next-sentence head is left out.
    """

    model_type: ClassVar[str] = "bert"
    config_class: ClassVar[type[Any]] = BertConfig
    heads: ClassVar[Mapping[HeadKind, type[PreTrainedModel]]] = {
        "masked_lm": BertForMaskedLM,
        "classification": BertForSequenceClassification,
        "bare": BertModel,
    }
    aliases: ClassVar[Mapping[str, HeadKind]] = {"BertForPreTraining": "masked_lm"}
    layout: ClassVar[Layout] = Layout(
        layers="encoder.layer",
        blocks={"encoder": "attention.self"},
        projections=("query", "key", "value"),
        heads="num_attention_heads",
    )

    def masked_lm_head(self, model: Any) -> EncoderHead:
        """Dense, activation and LayerNorm come before the matrix, which is tied to the embedding as a rule."""
        predictions = model.cls.predictions
        return EncoderHead(predictions.decoder, predictions.transform)

    def classification_head(self, model: Any) -> EncoderHead:
        """The pooler's tanh of a dense layer over ``[CLS]``, with dropout in train mode."""
        return EncoderHead(model.classifier, lambda states: model.dropout(model.bert.pooler(states)), pooled=True)
