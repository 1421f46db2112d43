"""The mBART family (25 and 50 languages): BART with pre-normalised layers, final norms and language codes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from transformers import MBartConfig, MBartForConditionalGeneration, PreTrainedModel
from transformers.models.mbart.modeling_mbart import MBartDecoder

from cktk.architectures.families.bart import BartFamily
from cktk.protocols import DecoderLayout, Template


class MBartFamily(BartFamily):
    """Students that are plain ``MBartForConditionalGeneration`` models.

    The 25-language tokenizer ends a target text in ``</s> lang``, the 50-language one writes ``lang text </s>``. In
    both the decoder starts with the last label, as in transformers' ``shift_tokens_right``.
    """

    model_type: ClassVar[str] = "mbart"
    config_class: ClassVar[type[Any]] = MBartConfig
    model_class: ClassVar[type[PreTrainedModel]] = MBartForConditionalGeneration
    same_model: ClassVar[tuple[str, ...]] = ("MBartModel",)

    def decoder_start(self, config: Any) -> int | None:  # noqa: ARG002
        """None: the last label comes first."""
        return None

    def decoder_layout(self, config: Any) -> DecoderLayout:
        """See `Family.decoder_layout`."""
        return replace(super().decoder_layout(config), stack=MBartDecoder, pre_norm=True, final_norm="layer_norm")

    def _family_settings(self, pad: int, eos: int) -> dict[str, Any]:  # noqa: ARG002
        return {"scale_embedding": True}

    def _set_start(self, config: Any, settings: Any, target: Template | None) -> None:
        if target is None:
            if settings.decoder_start_token_id is None:
                settings.decoder_start_token_id = config.decoder_start_token_id
            return
        start = target.decoding_start(self.decoder_start(config))
        settings.decoder_start_token_id = settings.eos_token_id if start.token is None else start.token
        settings.forced_bos_token_id = start.forced_bos
        config.decoder_start_token_id = settings.decoder_start_token_id
