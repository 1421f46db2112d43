"""The T5 family: T5, T5 v1.1, Flan-T5 and mT5, with heads tied to the embedding or not.

transformers 5 marks every T5 configuration that it reads as tied, whatever its file says, and lets the weights decide.
Here a model's ``config.tie_word_embeddings`` tells the truth: it is read off the loaded head, and a student's follows
its teacher's. Saved like that, it is what the files of Flan-T5 say.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import (
    GenerationConfig,
    MT5Config,
    MT5ForConditionalGeneration,
    PreTrainedConfig,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.models.mt5.modeling_mt5 import MT5Stack
from transformers.models.t5.modeling_t5 import T5Stack

from cktk.architectures.families.family import Family
from cktk.architectures.folders import stored_names
from cktk.architectures.spec import HEAD_WIDTH, StudentSpec, choose_ffn_width, choose_heads
from cktk.architectures.states.adapter import Layout, Seq2SeqAdapter
from cktk.errors import CheckpointError
from cktk.protocols import DecoderLayout, HeadParams, ModelShape, Side, SideShape, Template

_HEAD = "lm_head.weight"

#: Tokens that ``generate`` may write where a model's configuration says nothing; the length that T5 was trained with.
_LENGTH = 512


class T5Family(Family):
    """Students that are plain ``T5ForConditionalGeneration`` models."""

    model_type: ClassVar[str] = "t5"
    config_class: ClassVar[type[Any]] = T5Config
    model_class: ClassVar[type[PreTrainedModel]] = T5ForConditionalGeneration
    same_model: ClassVar[tuple[str, ...]] = ("T5Model", "T5WithLMHeadModel")
    heads_have_tensors: ClassVar[bool] = True

    def shape(self, config: Any) -> ModelShape:
        """See `Family.shape`."""
        side = SideShape(config.num_layers, config.d_ff, config.num_heads, config.num_heads * config.d_kv)
        sides: dict[Side, SideShape] = {"encoder": side, "decoder": replace(side, layers=config.num_decoder_layers)}
        return ModelShape(config.d_model, sides, None)

    def student_config(self, teacher_config: PreTrainedConfig, spec: StudentSpec) -> PreTrainedConfig:
        """The teacher's configuration with the sizes of ``spec``; a student's head is tied where its teacher's is.

        Raises `ConfigError` when the teacher is of another family or the heads do not divide the width.
        """
        self.check_type(teacher_config, "the teacher")
        config: Any = copy.deepcopy(teacher_config)
        width = spec.width or config.d_model
        config.num_heads, config.d_kv = _heads(spec, width, config)
        config.d_ff = _ffn_width(spec, width, config)
        config.d_model = width
        config.num_layers = spec.encoder_layers or config.num_layers
        config.num_decoder_layers = spec.decoder_layers or config.num_decoder_layers
        if spec.dropout is not None:
            config.dropout_rate = spec.dropout
        config.architectures = [self.model_class.__name__]
        config.dtype = None  # the teacher's file may be fp16; the student is trained in fp32
        found: PreTrainedConfig = config
        return found

    def base_config(
        self, *, vocab_size: int, pad: int, bos: int | None, eos: int, max_positions: int, spec: StudentSpec
    ) -> PreTrainedConfig:
        """A configuration for training from scratch as T5 v1.1 is built: gated, the head of its own and not scaled.

        ``max_positions`` is no limit of such a model, but where ``generate`` stops. Raises `ConfigError` when ``spec``
        leaves width or depth open, or the heads do not divide the width.
        """
        spec.require("width", "encoder_layers", "decoder_layers")
        config: Any = self.config_class(
            vocab_size=vocab_size,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=False,
            pad_token_id=pad,
            bos_token_id=bos,
            eos_token_id=eos,
            decoder_start_token_id=pad,
            n_positions=max_positions,
            d_model=0,  # no width, so that nothing is taken over
            d_kv=HEAD_WIDTH,
            dropout_rate=0.1,
        )
        config.tie_word_embeddings = False
        return self.student_config(config, spec)

    def adapter(self, model: PreTrainedModel) -> T5Adapter:
        """See `Family.adapter`."""
        return T5Adapter(model)

    def layer_prefix(self, side: Side) -> str:
        """See `Family.layer_prefix`."""
        return f"{side}.block."

    def stack(self, model: Any, side: Side) -> nn.Module:
        """See `Family.stack`."""
        stack: nn.Module = model.encoder if side == "encoder" else model.decoder
        return stack

    def embeddings(self, model: Any) -> list[nn.Parameter]:
        """The embedding of tokens, a tied head included; relative positions belong to the attention."""
        return [model.shared.weight]

    def head(self, model: Any) -> nn.Module:
        """See `Family.head`."""
        head: nn.Module = model.lm_head
        return head

    def decoder_start(self, config: Any) -> int | None:
        """See `Family.decoder_start`; the pad where the configuration names none."""
        start = getattr(config, "decoder_start_token_id", None)
        return int(config.pad_token_id if start is None else start)

    def decoder_layout(self, config: Any) -> DecoderLayout:
        """See `Family.decoder_layout`."""
        ffn = "layer.2.DenseReluDense"
        return DecoderLayout(
            stack=T5Stack,
            layers="block",
            self_attention="layer.0.SelfAttention",
            cross_attention="layer.1.EncDecAttention",
            projections=("q", "k", "v", "o"),
            norms=("layer.0.layer_norm", "layer.1.layer_norm", "layer.2.layer_norm"),
            up=(f"{ffn}.wi_0", f"{ffn}.wi_1") if config.is_gated_act else (f"{ffn}.wi",),
            down=f"{ffn}.wo",
            activation=f"{ffn}.act",
            heads=config.num_heads,
            pre_norm=True,
            final_norm="final_layer_norm",
            position_bias="block.0.layer.0.SelfAttention",
            head_scale=_head_scale(config),
        )

    def set_generation(
        self,
        student: PreTrainedModel,
        inherited: GenerationConfig | None = None,
        target: Template | None = None,  # noqa: ARG002
    ) -> None:
        """See `Family.set_generation`; ``inherited`` is completed from the model's configuration.

        A decoder deeper than its encoder generates without a cache: transformers makes it as deep as the encoder.
        """
        config: Any = student.config
        settings: Any = copy.deepcopy(inherited if inherited is not None else student.generation_config)
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            if getattr(settings, name) is None:
                setattr(settings, name, getattr(config, name, None))
        if settings.max_length is None and settings.max_new_tokens is None:
            settings.max_length = getattr(config, "n_positions", _LENGTH)
        settings.decoder_start_token_id = self.decoder_start(config)
        if config.num_decoder_layers > config.num_layers:
            settings.use_cache = False
        student.generation_config = settings

    def must_agree(self, config: Any) -> dict[str, object]:
        """See `Family.must_agree`."""
        names = (
            "tie_word_embeddings",
            "feed_forward_proj",
            "relative_attention_num_buckets",
            "relative_attention_max_distance",
        )
        return {name: getattr(config, name) for name in names}

    def serves_stack(self, name: str) -> bool:
        """The position bias of the first block, which all blocks of its stack add to their scores."""
        return "relative_attention_bias" in name

    def build(self, config: PreTrainedConfig) -> PreTrainedModel:
        """See `Family.build`; untied where ``config.tie_word_embeddings`` is False, with a random head of its own."""
        model: Any = super().build(_marked_tied(config))
        if not config.tie_word_embeddings:
            # Logits of unit size from normalised states, whose entries have unit size themselves.
            std = config.initializer_factor * (1.0 if _scaled(model.config) else config.d_model**-0.5)
            model.lm_head.weight = nn.Parameter(torch.empty_like(model.shared.weight).normal_(std=std))
            model.config.tie_word_embeddings = False
        built: PreTrainedModel = model
        return built

    def read_config(self, source: str | Path, raw: Mapping[str, Any]) -> PreTrainedConfig:
        """See `Family.read_config`; without weights, its file is what there is to go by for the head's tying."""
        config = super().read_config(source, raw)
        config.tie_word_embeddings = raw.get("tie_word_embeddings") is not False
        return config

    def read_model(
        self, source: str | Path, config: PreTrainedConfig, **options: Any
    ) -> tuple[PreTrainedModel, Mapping[str, Any]]:
        """See `Family.read_model`; the head is tied where the weights hold none, or one equal to the embedding."""
        with _no_warning_of_untied_heads():
            loaded, report = super().read_model(source, _marked_tied(config), **options)
        model: Any = loaded
        tied = model.lm_head.weight is model.shared.weight
        if tied and not config.tie_word_embeddings and _HEAD not in (stored_names(source) or {_HEAD}):
            raise CheckpointError(
                f"{source}: has no output head ({_HEAD} is not among the weights, and its configuration says that the "
                "head is not the embedding): use the whole model"
            )
        model.config.tie_word_embeddings = tied
        return loaded, report


class MT5Family(T5Family):
    """Students that are plain ``MT5ForConditionalGeneration`` models."""

    model_type: ClassVar[str] = "mt5"
    config_class: ClassVar[type[Any]] = MT5Config
    model_class: ClassVar[type[PreTrainedModel]] = MT5ForConditionalGeneration
    same_model: ClassVar[tuple[str, ...]] = ("MT5Model",)

    def decoder_layout(self, config: Any) -> DecoderLayout:
        """See `Family.decoder_layout`."""
        return replace(super().decoder_layout(config), stack=MT5Stack)


class T5Adapter(Seq2SeqAdapter):
    """The states of one T5 or mT5 model. Its scores are not scaled; self-attention adds the stack's position bias."""

    layout: ClassVar[Layout] = Layout(
        layers="block",
        blocks={
            "encoder": "layer.0.SelfAttention",
            "decoder": "layer.0.SelfAttention",
            "cross": "layer.1.EncDecAttention",
        },
        projections=("q", "k", "v"),
        heads="n_heads",
        position_bias=True,
    )

    def head(self) -> HeadParams:
        """The output head, whose input T5 multiplies by 1 / sqrt(d) where the head is tied."""
        return HeadParams(weight=self.model.lm_head.weight, scale=_head_scale(self.model.config))


def _scaled(config: Any) -> bool:
    """Whether a model of ``config`` scales the input of its head; mT5 never does."""
    return bool(config.model_type == "t5" and config.scale_decoder_outputs)


def _head_scale(config: Any) -> float:
    return float(config.d_model**-0.5) if _scaled(config) else 1.0


def _heads(spec: StudentSpec, width: int, teacher: Any) -> tuple[int, int]:
    """Number and width of heads: the teacher's at its width; elsewhere together as wide as the student, as in T5."""
    if spec.heads is not None and spec.head_width is not None:
        return spec.heads, spec.head_width
    heads = spec.fixed_heads(width)
    if width == teacher.d_model and heads in (None, teacher.num_heads) and spec.head_width in (None, teacher.d_kv):
        return teacher.num_heads, teacher.d_kv
    heads = choose_heads(heads, width, teacher.d_kv)
    return heads, width // heads


def _ffn_width(spec: StudentSpec, width: int, teacher: Any) -> int:
    """As for any model, but a gated layer, which has three matrices instead of two, gets 8/3 of the width by default.

    That is rounded up to a multiple of 64.
    """
    if teacher.is_gated_act and spec.ffn_width is None and width != teacher.d_model:
        return 64 * -(-8 * width // (3 * 64))
    return choose_ffn_width(spec.ffn_width, width, teacher.d_model, teacher.d_ff)


def _marked_tied(config: PreTrainedConfig) -> PreTrainedConfig:
    """``config`` as transformers has to see it: otherwise it would untie the encoder's embedding from the decoder's."""
    tied = copy.deepcopy(config)
    tied.tie_word_embeddings = True
    return tied


@contextmanager
def _no_warning_of_untied_heads() -> Iterator[None]:
    """transformers warns of weights with a head of their own, as those of all newer T5 models are."""
    logger = logging.getLogger("transformers.modeling_utils")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
