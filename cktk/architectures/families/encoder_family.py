"""What all encoder-only families share: one encoder under one of several heads.

A student is of its teacher's kind (BERT of BERT, RoBERTa of RoBERTa, DistilBERT of DistilBERT), because vocabulary,
positions, special tokens and kinds of sentence are taken from the teacher's configuration.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel

from cktk.architectures.configs import HeadKind
from cktk.architectures.families.family import Family
from cktk.architectures.spec import HEAD_WIDTH, StudentSpec, choose_ffn_width, choose_heads
from cktk.architectures.states.adapter import Layout
from cktk.architectures.states.encoder_adapter import EncoderAdapter, EncoderHead
from cktk.errors import CheckpointError, ConfigError
from cktk.protocols import ModelShape, Side, SideShape, Template


class EncoderFamily(Family):
    """A kind of encoder. ``heads`` names its classes by head, ``aliases`` further names that read as one of them.

    ``ffn_field`` and ``dropout_field`` are what its configuration calls these sizes; the others go by BERT's names.
    """

    heads: ClassVar[Mapping[HeadKind, type[PreTrainedModel]]]
    aliases: ClassVar[Mapping[str, HeadKind]] = {}
    layout: ClassVar[Layout]
    ffn_field: ClassVar[str] = "intermediate_size"
    dropout_field: ClassVar[str] = "hidden_dropout_prob"

    @abstractmethod
    def masked_lm_head(self, model: Any) -> EncoderHead:
        """The head of a masked language model."""

    @abstractmethod
    def classification_head(self, model: Any) -> EncoderHead:
        """The head of a sequence classifier."""

    def reserved_positions(self, pad: int) -> int:  # noqa: ARG002
        """How many rows of the position table no position uses."""
        return 0

    def head_kind(self, config: Any, name: object = "the model") -> HeadKind:
        """The head that ``architectures`` in ``config`` names; "bare" where it names nothing.

        Raises `CheckpointError` that calls the model ``name`` for a head that is not supported.
        """
        known = {model.__name__: kind for kind, model in self.heads.items()} | dict(self.aliases)
        named = config.architectures or [self.heads["bare"].__name__]
        if named[0] not in known:
            raise CheckpointError(
                f"{name}: a {named[0]} is not supported; supported of {self.model_type}: {', '.join(sorted(known))}"
            )
        return known[named[0]]

    def class_of(self, config: PreTrainedConfig, name: object = "the model") -> type[PreTrainedModel]:
        """See `Family.class_of`."""
        return self.heads[self.head_kind(config, name)]

    def shape(self, config: Any) -> ModelShape:
        """See `Family.shape`."""
        side = SideShape(
            layers=int(config.num_hidden_layers),
            ffn_width=int(getattr(config, self.ffn_field)),
            heads=int(config.num_attention_heads),
        )
        positions = config.max_position_embeddings - self.reserved_positions(config.pad_token_id)
        return ModelShape(config.hidden_size, {"encoder": side}, positions)

    def student_config(self, teacher_config: PreTrainedConfig, spec: StudentSpec) -> PreTrainedConfig:
        """The teacher's configuration with the sizes and the head of ``spec``; what it leaves open stays.

        Raises `ConfigError` when the teacher is of another kind, the heads do not divide the width, or ``spec`` asks
        for a decoder.
        """
        self.check_type(teacher_config, "the teacher")
        self._refuse_decoder(spec)
        config: Any = copy.deepcopy(teacher_config)
        width = spec.width or config.hidden_size
        ffn_width = choose_ffn_width(spec.ffn_width, width, config.hidden_size, getattr(config, self.ffn_field))
        head_width = config.hidden_size // config.num_attention_heads
        setattr(config, self.ffn_field, ffn_width)
        config.num_attention_heads = choose_heads(spec.fixed_heads(width), width, head_width)
        config.num_hidden_layers = spec.encoder_layers or config.num_hidden_layers
        config.hidden_size = width
        if spec.dropout is not None:
            setattr(config, self.dropout_field, spec.dropout)
        if spec.labels is not None:
            config.num_labels = spec.labels
        config.architectures = [self.heads[spec.head or self.head_kind(teacher_config)].__name__]
        config.dtype = None  # the teacher's file may be fp16; the student is trained in fp32
        return config  # type: ignore[no-any-return]

    def base_config(
        self, *, vocab_size: int, pad: int, bos: int | None, eos: int, max_positions: int, spec: StudentSpec
    ) -> PreTrainedConfig:
        """See `Family.base_config`; a masked language model unless ``spec`` names another head."""
        spec.require("width", "encoder_layers")
        self._refuse_decoder(spec)
        assert spec.width is not None
        sizes = {
            self.ffn_field: spec.ffn_width or 4 * spec.width,
            self.dropout_field: 0.1 if spec.dropout is None else spec.dropout,
        }
        config: Any = self.config_class(
            vocab_size=vocab_size,
            max_position_embeddings=max_positions + self.reserved_positions(pad),
            hidden_size=spec.width,
            num_hidden_layers=spec.encoder_layers,
            num_attention_heads=choose_heads(spec.fixed_heads(spec.width), spec.width, HEAD_WIDTH),
            pad_token_id=pad,
            bos_token_id=bos,
            eos_token_id=eos,
            architectures=[self.heads[spec.head or "masked_lm"].__name__],
            **sizes,
        )
        if spec.labels is not None:
            config.num_labels = spec.labels
        return config  # type: ignore[no-any-return]

    def adapter(self, model: PreTrainedModel) -> EncoderAdapter:
        """See `Family.adapter`. What nothing is computed from is excluded from training: DDP would wait for it."""
        for name in self.unused(model):
            model.get_parameter(name).requires_grad_(False)
        makers = {"masked_lm": self.masked_lm_head, "classification": self.classification_head}
        kind = next(kind for kind, known in self.heads.items() if isinstance(model, known))
        return EncoderAdapter(model, self.layout, makers[kind](model) if kind in makers else None)

    def unused(self, model: PreTrainedModel) -> set[str]:
        """See `Family.unused`: the pooler of a bare encoder."""
        if model.base_model is not model:
            return set()
        return {name for name, _ in model.named_parameters() if name.startswith("pooler.")}

    def layer_prefix(self, side: Side) -> str:  # noqa: ARG002
        """See `Family.layer_prefix`."""
        return f"{self.layout.layers}."

    def stack(self, model: Any, side: Side) -> nn.Module:  # noqa: ARG002
        """See `Family.stack`; BERT's pooler lies in it, and is part of the head too."""
        stack: nn.Module = model.base_model
        return stack

    def embeddings(self, model: Any) -> list[nn.Parameter]:
        """See `Family.embeddings`; with those of the kinds of sentence."""
        modules: list[Any] = [m for m in model.base_model.embeddings.children() if isinstance(m, nn.Embedding)]
        return [module.weight for module in modules]

    def head(self, model: Any) -> nn.Module | None:
        """See `Family.head`: all that follows the last layer; None for a bare encoder."""
        if model.base_model is model:
            return None
        modules = [module for module in model.children() if module is not model.base_model]
        modules += [module for name, module in model.base_model.named_children() if name == "pooler"]
        return nn.ModuleList(modules)

    def decoder_start(self, config: Any) -> int | None:  # noqa: ARG002
        """None: nothing is decoded."""
        return None

    def set_generation(
        self, student: PreTrainedModel, inherited: GenerationConfig | None = None, target: Template | None = None
    ) -> None:
        """Nothing is generated."""

    def _refuse_decoder(self, spec: StudentSpec) -> None:
        if spec.decoder_layers is not None:
            raise ConfigError(
                f"--decoder-layers {spec.decoder_layers}: a {self.model_type} has no decoder; leave it out"
            )
