"""What a kind of model has to say about itself: all that training, loading and generation know of it.

A new kind is one subclass of `Family` and one row of `ARCHITECTURES`, here or in a plug-in; everything else finds it by
the ``model_type`` of a model's configuration.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from torch import nn
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel

from cktk.architectures.spec import StudentSpec
from cktk.errors import CheckpointError, ConfigError
from cktk.protocols import Adapter, DecoderLayout, ModelShape, Side, Template
from cktk.registry import ARCHITECTURES


class Family(ABC):
    """One kind of Hugging Face model, of any size. It has no state: methods get the model or its configuration."""

    model_type: ClassVar[str]
    config_class: ClassVar[type[Any]]
    model_class: ClassVar[type[PreTrainedModel]]
    #: Further names in ``architectures`` of a model that is read as a ``model_class``: its head is the embedding.
    same_model: ClassVar[tuple[str, ...]] = ()
    heads_have_tensors: ClassVar[bool] = False  # some tensor has a row or column a head

    @abstractmethod
    def shape(self, config: Any) -> ModelShape:
        """The sizes that ``config`` gives a model."""

    @abstractmethod
    def student_config(self, teacher_config: PreTrainedConfig, spec: StudentSpec) -> PreTrainedConfig:
        """The teacher's configuration with the sizes and the dropout of ``spec``; what it leaves open stays."""

    @abstractmethod
    def base_config(
        self, *, vocab_size: int, pad: int, bos: int | None, eos: int, max_positions: int, spec: StudentSpec
    ) -> PreTrainedConfig:
        """A configuration for training from scratch; raises `ConfigError` where ``spec`` leaves needed sizes open."""

    @abstractmethod
    def adapter(self, model: PreTrainedModel) -> Adapter:
        """What runs ``model`` and hands out its states."""

    @abstractmethod
    def layer_prefix(self, side: Side) -> str:
        """What stands before the number of a layer of ``side`` in the names of its parameters.

        Names are those in transformers' ``base_model``, which are the same under every head.
        """

    @abstractmethod
    def stack(self, model: Any, side: Side) -> nn.Module:
        """The module of one side: its embeddings, layers and norms, the output head excluded."""

    @abstractmethod
    def embeddings(self, model: Any) -> list[nn.Parameter]:
        """The embeddings of tokens and positions, a head tied to them included."""

    @abstractmethod
    def head(self, model: Any) -> nn.Module | None:
        """The output head as a module; None for a model without one."""

    @abstractmethod
    def decoder_start(self, config: Any) -> int | None:
        """The id that every decoder input begins with, or None where it is the last label (mBART)."""

    @abstractmethod
    def set_generation(
        self, student: PreTrainedModel, inherited: GenerationConfig | None = None, target: Template | None = None
    ) -> None:
        """Give ``student`` the settings that plain transformers' ``generate`` needs.

        ``inherited`` are those of its teacher, ``target`` is the template of target texts.
        """

    def decoder_layout(self, config: Any) -> DecoderLayout:  # noqa: ARG002
        """What generation has to know of the decoder of a model of ``config``.

        Raises `CheckpointError` for a kind that does not say, or has no decoder.
        """
        raise CheckpointError(
            f"model type {self.model_type!r} does not say how its decoder is laid out: generate with transformers, or "
            f"give {type(self).__name__} a decoder_layout"
        )

    def class_of(self, config: PreTrainedConfig, name: object = "the model") -> type[PreTrainedModel]:
        """The class of ``name``, a model of ``config``; kinds with several heads go by its ``architectures``.

        Raises `CheckpointError` for a class that lacks a head, or has another one.
        """
        named = (config.architectures or [self.model_class.__name__])[0]
        if named not in (self.model_class.__name__, *self.same_model):
            raise CheckpointError(
                f"{name}: is a {named}, which has another head or none; use a {self.model_class.__name__}"
            )
        return self.model_class

    def read_config(self, source: str | Path, raw: Mapping[str, Any]) -> PreTrainedConfig:  # noqa: ARG002
        """The configuration in the folder or hub repository ``source``, whose file says ``raw``."""
        config: PreTrainedConfig = self.config_class.from_pretrained(source)
        return config

    def read_model(
        self, source: str | Path, config: PreTrainedConfig, **options: Any
    ) -> tuple[PreTrainedModel, Mapping[str, Any]]:
        """The model in ``source`` and transformers' report on its tensors; ``options`` are ``from_pretrained``'s."""
        loader: Any = self.class_of(config, source)
        model, report = loader.from_pretrained(source, config=config, output_loading_info=True, **options)
        return model, report

    def must_agree(self, config: Any) -> dict[str, object]:  # noqa: ARG002
        """What has to be the same in a student and in a model that it takes tensors from, besides sizes and ids."""
        return {}

    def serves_stack(self, name: str) -> bool:  # noqa: ARG002
        """Whether the parameter ``name``, though it lies in a layer, serves its whole stack and goes with no layer."""
        return False

    def unused(self, model: PreTrainedModel) -> set[str]:  # noqa: ARG002
        """Names of parameters that neither a state nor the head of ``model`` is computed from."""
        return set()

    def build(self, config: PreTrainedConfig) -> PreTrainedModel:
        """A model of ``config`` with random weights in fp32, in train mode."""
        return self.class_of(config)(config)

    def student(self, teacher_config: PreTrainedConfig, spec: StudentSpec) -> PreTrainedModel:
        """A student with random weights; `cktk.architectures.initialisation.initialise` gives it others."""
        return self.build(self.student_config(teacher_config, spec))

    def check_type(self, config: PreTrainedConfig, name: str) -> None:
        """Raise `ConfigError` with the right ``--arch`` unless ``name``, a model of ``config``, is of this family."""
        if config.model_type != self.model_type:
            raise ConfigError(
                f"--arch {arch_of(self.model_type)} does not fit {name}, whose model type is {config.model_type}: "
                f"use --arch {arch_of(config.model_type)}"
            )


def registered_family(arch: str) -> Family:
    """The family that ``--arch`` names; raises `ConfigError` for a plug-in that registered something else."""
    family = ARCHITECTURES.target(arch)()
    if not isinstance(family, Family):
        raise ConfigError(
            f"--arch {arch} is registered with {type(family).__name__}: register a subclass of "
            "cktk.architectures.families.family.Family"
        )
    return family


def families() -> dict[str, Family]:
    """All registered families, plug-ins included, by model type. Imports every one of them."""
    found: dict[str, Family] = {}
    for name in ARCHITECTURES.names():
        family = registered_family(name)
        found.setdefault(family.model_type, family)
    return found


def family_of(model_type: str | None, path: object) -> Family:
    """The family of ``model_type``; raises `CheckpointError` that names ``path`` and what is supported."""
    known = families()
    if model_type is None or model_type not in known:
        raise CheckpointError(
            f"{path}: model type {model_type!r} is not supported; supported: {', '.join(sorted(known))} "
            "(plug-ins are loaded with --user-dir or the entry point group cktk.plugins)"
        )
    return known[model_type]


def arch_of(model_type: str) -> str:
    """The name under which the family of ``model_type`` is registered; the type itself where none is."""
    names = (name for name in ARCHITECTURES.names() if registered_family(name).model_type == model_type)
    return next(names, model_type)
