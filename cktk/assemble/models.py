"""The student and its teacher: made or loaded, and checked against each other and against the data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cktk.architectures.families.family import Family, registered_family
from cktk.architectures.fingerprint import model_fingerprint
from cktk.architectures.initialisation.borrow_vocabulary import shared_rows, with_rows
from cktk.architectures.initialisation.initialise import initialise
from cktk.architectures.loading import load_model, load_tokenizer
from cktk.architectures.spec import StudentSpec
from cktk.architectures.vocabulary import Vocabulary, check_student, check_vocabularies, folder_vocabulary
from cktk.assemble.heads import align_labels, answers_alike, name_labels, trunk, wanted_head, with_head
from cktk.assemble.recorded_teacher import RecordedTeacher
from cktk.config.command import Settings
from cktk.data.mixtures.corpora import Corpora
from cktk.data.shards import DataFolder
from cktk.distributed.world import World
from cktk.engine.checkpoint import Checkpoint
from cktk.engine.configs import CheckpointConfig, ModelsConfig, UpdateConfig
from cktk.errors import ConfigError
from cktk.protocols import Batch, ModelShape, SentenceHead
from cktk.utils.log import logger


@dataclass
class Models:
    """The student and its teacher, if it has one: a model, or what a cache recorded of it.

    ``start`` gives the student the starting weights that only a sample of the data can tell (`--init pca`); ``head`` is
    what the task asks of heads, None where it takes any.
    """

    family: Family
    student: PreTrainedModel
    teacher: PreTrainedModel | RecordedTeacher | None
    tokenizer: PreTrainedTokenizerBase
    start: Callable[[Sequence[Batch]], None] | None = None
    head: SentenceHead | None = None

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
    """Opens models that have to be of the student's family and to share the data's vocabulary.

    Classifiers of sentences get their labels in the order of ``head``.
    """

    def __init__(
        self, family: Family, data: DataFolder | Corpora, allow_bin_weights: bool, head: SentenceHead | None = None
    ) -> None:
        self._family, self._data, self._allow_bin_weights = family, data, allow_bin_weights
        self._head = head

    def __call__(self, name: str, path: str | Path) -> PreTrainedModel:
        """The model that ``path`` means and messages call ``name``; raises `ConfigError` where it does not fit."""
        model = self._open(name, path)
        check_vocabularies(*self._vocabularies(name, path, model))
        return model

    def earlier(self, path: str | Path, size: int | None) -> PreTrainedModel:
        """The model of --init-checkpoint, with a vocabulary of ``size`` ids (None: the data's).

        Where its own vocabulary is another one its tokens are found by name.
        """
        name = "the --init-checkpoint"
        model = self._open(name, path)
        theirs, ours = self._vocabularies(name, path, model)
        try:
            check_vocabularies(theirs, ours)
            if size in (None, model.config.vocab_size):
                return model
        except ConfigError:
            if not (theirs.tokens and theirs.tokens() and ours.tokens and ours.tokens()):
                raise
        rows = shared_rows(theirs, ours, size or self._data.vocab_size)
        logger.info(
            "%s %s has another vocabulary: %d of %d tokens are found in it by name, the others start as its mean",
            name, path, int((rows >= 0).sum()), len(rows),
        )  # fmt: skip
        return with_rows(model, rows, f"{name} {path}")

    def _open(self, name: str, path: str | Path) -> PreTrainedModel:
        model = load_model(path, allow_bin_weights=self._allow_bin_weights)
        self._family.check_type(model.config, name)
        align_labels(self._family, model, self._head, name)
        return model

    def _vocabularies(self, name: str, path: str | Path, model: PreTrainedModel) -> tuple[Vocabulary, Vocabulary]:
        """The model's, and the data's."""
        data = self._data
        return (
            folder_vocabulary(f"{name} {path}", path, model.config.vocab_size),
            folder_vocabulary(f"the data {data.path}", data.tokenizer_path, data.vocab_size, data.fingerprint),
        )


def make_models(settings: Settings, data: Corpora, world: World, checkpoint: Checkpoint | None) -> Models:
    """The models of a run; the student is that of ``checkpoint`` where there is one."""
    config = settings.section(ModelsConfig)
    arch, student_config = settings.component("arch")
    family = registered_family(arch)
    head = wanted_head(settings, data)
    spec = with_head(StudentSpec.of(student_config), family, head)
    load = ModelLoader(family, data, config.allow_bin_weights, head)
    teacher = load("the teacher", config.teacher) if config.teacher else None
    recorded = _recorded(config, family, teacher, world)
    weights = settings.section(CheckpointConfig).finetune_from_model
    start: Callable[[Sequence[Batch]], None] | None = None
    if checkpoint:
        student = _resumed(family, load("the checkpoint", checkpoint.folder), spec, checkpoint.folder, head)
    elif weights:
        if spec.init != "random":
            logger.info("--init %s is not used: the student comes from --finetune-from-model %s", spec.init, weights)
        student = _resumed(family, load("the model to finetune", weights), spec, weights, head)
    else:
        named = student_config.init_checkpoint if spec.init == "checkpoint" else None
        if student_config.init_checkpoint and not named:
            logger.info("--init-checkpoint is not used with --init %s", spec.init)
        base = recorded or teacher
        earlier = load.earlier(named, base.config.vocab_size if base else None) if named else None
        if earlier is not None:
            spec = spec.like(family.shape(earlier.config))
        student = _new_student(family, spec, student_config.max_positions, base or earlier, data)
        sources = [None if model is None else trunk(family, model, head) for model in (teacher, earlier)]
        if spec.init == "pca":
            start = partial(_start_from_data, student, teacher, sources[0], world)
        else:
            initialise(student, spec.init, teacher=sources[0], checkpoint=sources[1])
    name_labels(student, head)
    if recorded is not None:
        check_student(student.config, recorded.config)
    elif teacher is not None:
        check_student(student.config, teacher.config)
        _move(teacher, world)
    _move(student, world)
    return Models(family, student, recorded or teacher, load_tokenizer(data.tokenizer_path), start, head)


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
    spec: StudentSpec,
    max_positions: int,
    base: PreTrainedModel | RecordedTeacher | None,
    data: Corpora,
) -> PreTrainedModel:
    """A student shaped after ``base``, its teacher or an earlier student, with random weights."""
    if base is not None:
        return family.student(base.config, spec)
    config = family.base_config(
        vocab_size=data.vocab_size,
        pad=data.pad,
        bos=data.bos,
        eos=data.eos,
        max_positions=max_positions,
        spec=spec,
    )
    return family.student(config, spec)


def _start_from_data(
    student: PreTrainedModel,
    teacher: PreTrainedModel | None,
    source: PreTrainedModel | None,
    world: World,
    sample: Sequence[Batch],
) -> None:
    if teacher is not None:
        _move(teacher, world)  # it is elsewhere if a cache answers in its place
    initialise(student, "pca", teacher=source, batches=sample)


def _resumed(
    family: Family, student: PreTrainedModel, spec: StudentSpec, path: str | Path, head: SentenceHead | None
) -> PreTrainedModel:
    """``student``, loaded from ``path``, with the dropout and the head of ``spec``; it has to have its shape."""
    _refuse_other_shape(family.shape(student.config), spec, path)
    same_head = answers_alike(family, student.config, head)
    if spec.dropout is None and same_head and (spec.head is None or head is not None):
        return student
    # Modules read the configuration's dropout when they are made.
    rebuilt = family.student(student.config, StudentSpec(dropout=spec.dropout, head=spec.head, labels=spec.labels))
    if type(rebuilt) is not type(student) or not same_head:
        logger.info("the student has a new head: %s has none that fits", path)
        initialise(rebuilt, "checkpoint", checkpoint=trunk(family, student, head))
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
