"""The student and its teacher: made or loaded, and checked against each other and against the data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from cktk.architectures.configs import StudentConfig
from cktk.architectures.family import Family, registered_family
from cktk.architectures.fingerprint import model_fingerprint
from cktk.architectures.initialise import initialise
from cktk.architectures.loading import load_model, load_tokenizer
from cktk.architectures.spec import StudentSpec
from cktk.architectures.vocabulary import check_student, check_vocabularies, folder_vocabulary
from cktk.assemble.recorded_teacher import RecordedTeacher
from cktk.config.command import Settings
from cktk.data.corpora import Corpora
from cktk.data.shards import DataFolder
from cktk.distributed.world import World
from cktk.engine.checkpoint import Checkpoint
from cktk.engine.configs import CheckpointConfig, ModelsConfig, UpdateConfig
from cktk.errors import ConfigError
from cktk.protocols import Batch, ModelShape
from cktk.utils.log import logger


@dataclass
class Models:
    """The student and its teacher, if it has one: a model, or what a cache recorded of it.

    ``start`` gives the student the starting weights that only a sample of the data can tell (`--init pca`).
    """

    family: Family
    student: PreTrainedModel
    teacher: PreTrainedModel | RecordedTeacher | None
    tokenizer: PreTrainedTokenizerBase
    start: Callable[[Sequence[Batch]], None] | None = None

    def shape(self, model: PreTrainedModel | RecordedTeacher) -> ModelShape:
        """The sizes of student or teacher."""
        return self.family.shape(model.config)

    @property
    def max_positions(self) -> int | None:
        """The most positions that both models take; None where there is no limit."""
        models = [model for model in (self.student, self.teacher) if model is not None]
        return min((limit for model in models if (limit := self.shape(model).positions) is not None), default=None)

    def describe(self) -> Iterator[str]:
        """A line a model."""
        for name, model in (("teacher", self.teacher), ("student", self.student)):
            if model is not None:
                shape = self.shape(model)
                layers = "+".join(str(side.layers) for side in shape.sides.values())
                if isinstance(model, RecordedTeacher):
                    size = model.describe()
                else:
                    size = f"{model.num_parameters() / 1e6:.2f} M parameters"
                yield f"{name}: {model.config.model_type} {layers} x {shape.width}, {size}"


class ModelLoader:
    """Opens models that have to be of the student's family and to share the data's vocabulary."""

    def __init__(self, family: Family, data: DataFolder | Corpora, allow_bin_weights: bool) -> None:
        self._family, self._data, self._allow_bin_weights = family, data, allow_bin_weights

    def __call__(self, name: str, path: str | Path) -> PreTrainedModel:
        """The model that ``path`` means and messages call ``name``; raises `ConfigError` where it does not fit."""
        data = self._data
        model = load_model(path, allow_bin_weights=self._allow_bin_weights)
        self._family.check_type(model.config, name)
        check_vocabularies(
            folder_vocabulary(f"{name} {path}", path, model.config.vocab_size),
            folder_vocabulary(f"the data {data.path}", data.tokenizer_path, data.vocab_size, data.fingerprint),
        )
        return model


def make_models(settings: Settings, data: DataFolder | Corpora, world: World, checkpoint: Checkpoint | None) -> Models:
    """The models of a run; the student is that of ``checkpoint`` where there is one."""
    config = settings.section(ModelsConfig)
    arch, student_config = settings.component("arch")
    family = registered_family(arch)
    load = ModelLoader(family, data, config.allow_bin_weights)
    teacher = load("the teacher", config.teacher) if config.teacher else None
    recorded = _recorded(config, family, teacher, world)
    weights = settings.section(CheckpointConfig).finetune_from_model
    spec = StudentSpec.of(student_config)
    start: Callable[[Sequence[Batch]], None] | None = None
    if checkpoint:
        student = _resumed(family, load("the checkpoint", checkpoint.folder), spec, checkpoint.folder)
    elif weights:
        if spec.init != "random":
            logger.info("--init %s is not used: the student comes from --finetune-from-model %s", spec.init, weights)
        student = _resumed(family, load("the model to finetune,", weights), spec, weights)
    else:
        base = recorded or teacher
        student = _new_student(family, student_config, base.config if base else None, data)
        if spec.init == "pca":
            start = partial(_start_from_data, student, teacher, world)
        else:
            named = student_config.init_checkpoint
            earlier = load("the --init-checkpoint", named) if named else None
            initialise(student, spec.init, teacher=teacher, checkpoint=earlier)
    if recorded is not None:
        check_student(student.config, recorded.config)
    elif teacher is not None:
        check_student(student.config, teacher.config)
        _move(teacher, world)
    _move(student, world)
    return Models(family, student, recorded or teacher, load_tokenizer(data.tokenizer_path), start)


def freeze(family: Family, student: PreTrainedModel, config: UpdateConfig, *, head: bool = True) -> None:
    """Exclude from training what ``config`` names, and without ``head`` what only the output head has.

    What the encoder shares with the decoder or the head goes on training, unless it is frozen as an embedding.
    """
    frozen: list[nn.Parameter] = []
    if not head and (module := family.head(student)) is not None:
        # DistributedDataParallel would wait for its gradients.
        stacks = [family.stack(student, side) for side in family.shape(student.config).sides]
        used = {id(parameter) for stack in stacks for parameter in stack.parameters()}
        frozen += [parameter for parameter in module.parameters() if id(parameter) not in used]
    if config.freeze_embeddings:
        frozen += family.embeddings(student)
    if config.freeze_encoder:
        others = [family.stack(student, side) for side in family.shape(student.config).sides if side != "encoder"]
        others += [module] if (module := family.head(student)) is not None else []
        shared = {id(parameter) for module in others for parameter in module.parameters()}
        frozen += [p for p in family.stack(student, "encoder").parameters() if id(p) not in shared]
    for parameter in frozen:
        parameter.requires_grad_(False)


def _recorded(
    config: ModelsConfig, family: Family, teacher: PreTrainedModel | None, world: World
) -> RecordedTeacher | None:
    """The teacher cache that ``config`` names, and nothing else than ``teacher`` if that is given, too."""
    if config.teacher_cache is None:
        return None
    recorded = RecordedTeacher.open(config.teacher_cache, family)
    if world.is_main and config.verify_data:
        recorded.cache.verify()
    if teacher is not None:
        recorded.cache.check_teacher(model_fingerprint(teacher), str(config.teacher))
    return recorded


def _new_student(
    family: Family,
    config: StudentConfig,
    base: PreTrainedConfig | None,
    data: DataFolder | Corpora,
) -> PreTrainedModel:
    """A student shaped after ``base``, its teacher's configuration, with random weights."""
    spec = StudentSpec.of(config)
    if base is None:
        base = family.base_config(
            vocab_size=data.vocab_size,
            pad=data.pad,
            bos=data.bos,
            eos=data.eos,
            max_positions=config.max_positions,
            spec=spec,
        )
    return family.student(base, spec)


def _start_from_data(
    student: PreTrainedModel, teacher: PreTrainedModel | None, world: World, sample: Sequence[Batch]
) -> None:
    if teacher is not None:
        _move(teacher, world)  # it is elsewhere if a cache answers in its place
    initialise(student, "pca", teacher=teacher, batches=sample)


def _resumed(family: Family, student: PreTrainedModel, spec: StudentSpec, path: str | Path) -> PreTrainedModel:
    """``student``, loaded from ``path``, with the dropout and the head of ``spec``; it has to have its shape."""
    _refuse_other_shape(family.shape(student.config), spec, path)
    if spec.dropout is None and spec.head is None:
        return student
    # Modules read the configuration's dropout when they are made.
    rebuilt = family.student(student.config, StudentSpec(dropout=spec.dropout, head=spec.head))
    if type(rebuilt) is not type(student):
        initialise(rebuilt, "checkpoint", checkpoint=student)
        return rebuilt
    rebuilt.load_state_dict(student.state_dict())
    if (generation := getattr(student, "generation_config", None)) is not None:
        rebuilt.generation_config = generation
    return rebuilt


def _refuse_other_shape(found: ModelShape, spec: StudentSpec, path: str | Path) -> None:
    facts = [("--width", spec.width, found.width)]
    depths = {"encoder": spec.encoder_layers, "decoder": spec.decoder_layers}
    for side, sizes in found.sides.items():
        facts += [
            (f"--{side}-layers", depths[side], sizes.layers),
            ("--ffn-width", spec.ffn_width, sizes.ffn_width),
            ("--heads", spec.heads, sizes.heads),
        ]
    for flag, asked, value in facts:
        if asked is not None and asked != value:
            raise ConfigError(
                f"{flag} {asked}: the student in {path} has {value}; leave the flag out, or use --init checkpoint"
            )


def _move(model: nn.Module, world: World) -> None:
    model.to(world.device)
