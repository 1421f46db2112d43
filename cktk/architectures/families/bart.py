"""The BART family: encoder-decoders with learned positions and a head tied to the embedding."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

from torch import nn
from transformers import BartConfig, BartForConditionalGeneration, GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.bart.modeling_bart import BartDecoder

from cktk.architectures.families.family import Family
from cktk.architectures.spec import HEAD_WIDTH, StudentSpec, choose_ffn_width, choose_heads
from cktk.architectures.states.adapter import Seq2SeqAdapter
from cktk.protocols import DecoderLayout, ModelShape, Side, SideShape, Template

_SIDES: tuple[Side, ...] = ("encoder", "decoder")


class BartFamily(Family):
    """Students that are plain ``BartForConditionalGeneration`` models."""

    model_type: ClassVar[str] = "bart"
    config_class: ClassVar[type[Any]] = BartConfig
    model_class: ClassVar[type[PreTrainedModel]] = BartForConditionalGeneration
    same_model: ClassVar[tuple[str, ...]] = ("BartModel",)

    def shape(self, config: Any) -> ModelShape:
        """See `Family.shape`."""
        sides = {
            side: SideShape(
                layers=int(getattr(config, f"{side}_layers")),
                ffn_width=int(getattr(config, f"{side}_ffn_dim")),
                heads=int(getattr(config, f"{side}_attention_heads")),
            )
            for side in _SIDES
        }
        return ModelShape(config.d_model, sides, config.max_position_embeddings)

    def student_config(self, teacher_config: PreTrainedConfig, spec: StudentSpec) -> PreTrainedConfig:
        """The teacher's configuration with the sizes of ``spec``; vocabulary, positions and special ids stay.

        LayerDrop is off, since a dropped layer has no state to match. Raises `ConfigError` when the teacher is of
        another family or the heads do not divide the width.
        """
        self.check_type(teacher_config, "the teacher")
        config = copy.deepcopy(teacher_config)
        self._resize(config, spec)
        if spec.dropout is not None:
            config.dropout = spec.dropout
        config.architectures = [self.model_class.__name__]
        config.dtype = None  # the teacher's file may be fp16; the student is trained in fp32
        return config

    @staticmethod
    def _resize(config: Any, spec: StudentSpec) -> None:
        width = spec.width or config.d_model
        for side in _SIDES:
            head_width = config.d_model // getattr(config, f"{side}_attention_heads")
            ffn_width = choose_ffn_width(spec.ffn_width, width, config.d_model, getattr(config, f"{side}_ffn_dim"))
            setattr(config, f"{side}_ffn_dim", ffn_width)
            setattr(config, f"{side}_attention_heads", choose_heads(spec.fixed_heads(width), width, head_width))
            setattr(config, f"{side}_layerdrop", 0.0)
        config.d_model = width
        config.encoder_layers = spec.encoder_layers or config.encoder_layers
        config.decoder_layers = spec.decoder_layers or config.decoder_layers

    def base_config(
        self, *, vocab_size: int, pad: int, bos: int | None, eos: int, max_positions: int, spec: StudentSpec
    ) -> PreTrainedConfig:
        """A configuration for training from scratch, with nothing taken from a teacher.

        Raises `ConfigError` when ``spec`` leaves width or depth open, or the heads do not divide the width.
        """
        spec.require("width", "encoder_layers", "decoder_layers")
        assert spec.width is not None
        ffn_width = spec.ffn_width or 4 * spec.width
        heads = choose_heads(spec.fixed_heads(spec.width), spec.width, HEAD_WIDTH)
        config: PreTrainedConfig = self.config_class(
            vocab_size=vocab_size,
            max_position_embeddings=max_positions,
            d_model=spec.width,
            encoder_layers=spec.encoder_layers,
            decoder_layers=spec.decoder_layers,
            encoder_ffn_dim=ffn_width,
            decoder_ffn_dim=ffn_width,
            encoder_attention_heads=heads,
            decoder_attention_heads=heads,
            dropout=0.1 if spec.dropout is None else spec.dropout,
            pad_token_id=pad,
            bos_token_id=bos,
            eos_token_id=eos,
            forced_eos_token_id=eos,
            architectures=[self.model_class.__name__],
            **self._family_settings(pad, eos),
        )
        return config

    def adapter(self, model: PreTrainedModel) -> Seq2SeqAdapter:
        """See `Family.adapter`."""
        return Seq2SeqAdapter(model)

    def layer_prefix(self, side: Side) -> str:
        """See `Family.layer_prefix`."""
        return f"{side}.layers."

    def stack(self, model: Any, side: Side) -> nn.Module:
        """See `Family.stack`."""
        stack: nn.Module = model.get_encoder() if side == "encoder" else model.get_decoder()
        return stack

    def embeddings(self, model: Any) -> list[nn.Parameter]:
        """See `Family.embeddings`."""
        stacks: list[Any] = [self.stack(model, side) for side in _SIDES]
        modules = [model.get_input_embeddings()]
        modules += [module for stack in stacks for module in (stack.embed_tokens, stack.embed_positions)]
        return [module.weight for module in modules]

    def head(self, model: Any) -> nn.Module:
        """See `Family.head`."""
        head: nn.Module = model.get_output_embeddings()
        return head

    def decoder_start(self, config: Any) -> int | None:
        """See `Family.decoder_start`."""
        start = config.decoder_start_token_id
        return int(start if start is not None else _first(config.eos_token_id))

    def decoder_layout(self, config: Any) -> DecoderLayout:
        """See `Family.decoder_layout`."""
        return DecoderLayout(
            stack=BartDecoder,
            layers="layers",
            self_attention="self_attn",
            cross_attention="encoder_attn",
            projections=("q_proj", "k_proj", "v_proj", "out_proj"),
            norms=("self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm"),
            up=("fc1",),
            down="fc2",
            activation="activation_fn",
            heads=config.decoder_attention_heads,
            pre_norm=False,
            embedding_scale="embed_tokens.embed_scale",
            positions="embed_positions",
            embedding_norm="layernorm_embedding",
            source_positions=config.max_position_embeddings,
        )

    def set_generation(
        self, student: PreTrainedModel, inherited: GenerationConfig | None = None, target: Template | None = None
    ) -> None:
        """See `Family.set_generation`.

        What is ``inherited`` is completed from the model's configuration: special ids, decoder start, and a maximum
        length where none is set (transformers would stop at 20 tokens). mBART reads its language from ``target``.
        """
        config: Any = student.config
        settings: Any = copy.deepcopy(inherited if inherited is not None else student.generation_config)
        for name in ("pad_token_id", "bos_token_id", "eos_token_id", "forced_eos_token_id"):
            if getattr(settings, name) is None:
                setattr(settings, name, getattr(config, name))
        if settings.max_length is None and settings.max_new_tokens is None:
            settings.max_length = config.max_position_embeddings
        self._set_start(config, settings, target)
        student.generation_config = settings

    def _family_settings(self, pad: int, eos: int) -> dict[str, Any]:  # noqa: ARG002 (MarianMT's needs it)
        return {"decoder_start_token_id": eos}

    def _set_start(self, config: Any, settings: Any, target: Template | None) -> None:  # noqa: ARG002 (mBART's needs it)
        settings.decoder_start_token_id = self.decoder_start(config)


def _first(ids: int | list[int]) -> int:
    return ids[0] if isinstance(ids, list) else ids
