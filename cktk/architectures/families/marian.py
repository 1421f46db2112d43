"""The MarianMT family (the OPUS-MT models): BART with sinusoidal positions and without norms of embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from transformers import GenerationConfig, MarianConfig, MarianMTModel, PreTrainedConfig, PreTrainedModel
from transformers.models.marian.modeling_marian import MarianDecoder

from cktk.architectures.families.bart import BartFamily
from cktk.errors import CheckpointError
from cktk.protocols import DecoderLayout, Template


class MarianFamily(BartFamily):
    """Students that are plain ``MarianMTModel``s with one vocabulary for both sides.

    The decoder starts with the pad, which it must never write. Positions are a fixed table, which is neither trained
    nor stored.
    """

    model_type: ClassVar[str] = "marian"
    config_class: ClassVar[type[Any]] = MarianConfig
    model_class: ClassVar[type[PreTrainedModel]] = MarianMTModel
    same_model: ClassVar[tuple[str, ...]] = ("MarianModel",)

    def read_config(self, source: str | Path, raw: Mapping[str, Any]) -> PreTrainedConfig:
        """See `Family.read_config`; raises `CheckpointError` for a model with a vocabulary for each side."""
        config: Any = super().read_config(source, raw)
        if not config.share_encoder_decoder_embeddings or config.decoder_vocab_size != config.vocab_size:
            raise CheckpointError(
                f"{source}: has a vocabulary for each side (share_encoder_decoder_embeddings, decoder_vocab_size); use "
                "a MarianMT model with one vocabulary"
            )
        found: PreTrainedConfig = config
        return found

    def read_model(
        self, source: str | Path, config: PreTrainedConfig, **options: Any
    ) -> tuple[PreTrainedModel, Mapping[str, Any]]:
        """See `Family.read_model`; transformers forgets while it loads that positions are not to be trained."""
        loaded, report = super().read_model(source, config, **options)
        model: Any = loaded
        for stack in (model.get_encoder(), model.get_decoder()):
            stack.embed_positions.weight.requires_grad_(False)
        return loaded, report

    def decoder_layout(self, config: Any) -> DecoderLayout:
        """See `Family.decoder_layout`."""
        layout = super().decoder_layout(config)
        return replace(layout, stack=MarianDecoder, embedding_scale="embed_scale", embedding_norm=None)

    def set_generation(
        self, student: PreTrainedModel, inherited: GenerationConfig | None = None, target: Template | None = None
    ) -> None:
        """See `BartFamily.set_generation`; the pad is forbidden, as in the published models."""
        super().set_generation(student, inherited, target)
        settings: Any = student.generation_config
        if not settings.bad_words_ids:
            settings.bad_words_ids = [[settings.pad_token_id]]

    def _family_settings(self, pad: int, eos: int) -> dict[str, Any]:  # noqa: ARG002
        return {"decoder_start_token_id": pad, "scale_embedding": True, "activation_function": "swish"}
