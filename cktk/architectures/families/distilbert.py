"""The DistilBERT family: BERT without kinds of sentence and pooler, under other names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor
from transformers import (
    DistilBertConfig,
    DistilBertForMaskedLM,
    DistilBertForSequenceClassification,
    DistilBertModel,
    PreTrainedModel,
)

from cktk.architectures.configs import HeadKind
from cktk.architectures.families.encoder_family import EncoderFamily
from cktk.architectures.states.adapter import Layout
from cktk.architectures.states.encoder_adapter import EncoderHead


class DistilBertFamily(EncoderFamily):
    """Plain ``DistilBertForMaskedLM``, ``DistilBertForSequenceClassification`` and ``DistilBertModel``.

    Its configuration reads and sets ``dim``, ``n_layers`` and ``n_heads`` under BERT's names too.
    """

    model_type: ClassVar[str] = "distilbert"
    config_class: ClassVar[type[Any]] = DistilBertConfig
    heads: ClassVar[Mapping[HeadKind, type[PreTrainedModel]]] = {
        "masked_lm": DistilBertForMaskedLM,
        "classification": DistilBertForSequenceClassification,
        "bare": DistilBertModel,
    }
    layout: ClassVar[Layout] = Layout(
        layers="transformer.layer",
        blocks={"encoder": "attention"},
        projections=("q_lin", "k_lin", "v_lin"),
        heads="n_heads",
    )
    ffn_field: ClassVar[str] = "hidden_dim"
    dropout_field: ClassVar[str] = "dropout"

    def masked_lm_head(self, model: Any) -> EncoderHead:
        """Dense, activation and LayerNorm come before the matrix, which is tied to the embedding as a rule."""

        def features(states: Tensor) -> Tensor:
            transformed: Tensor = model.vocab_layer_norm(model.activation(model.vocab_transform(states)))
            return transformed

        return EncoderHead(model.vocab_projector, features)

    def classification_head(self, model: Any) -> EncoderHead:
        """Relu of a dense layer over ``[CLS]``, with dropout in train mode."""

        def features(states: Tensor) -> Tensor:
            pooled: Tensor = model.dropout(model.pre_classifier(states[:, 0]).relu())
            return pooled

        return EncoderHead(model.classifier, features, pooled=True)
