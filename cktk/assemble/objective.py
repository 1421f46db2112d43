"""What is minimised, and by what: criterion, step, optimizer and schedule."""

from __future__ import annotations

from inspect import get_annotations
from typing import Any

import torch
from torch import nn

from cktk.architectures.states.layer_map import layer_pairs
from cktk.assemble.heads import check_answers
from cktk.assemble.models import Models
from cktk.assemble.recorded_teacher import RecordedTeacher
from cktk.config.command import Settings
from cktk.criteria.configs import HiddenKdConfig, LayerMapConfig
from cktk.distributed.world import World
from cktk.engine.configs import ModelsConfig, RunConfig, UpdateConfig
from cktk.engine.stages import Stages
from cktk.engine.step import StagedCriterion, Step, TrainCriterion, whole
from cktk.engine.teacher import Autocast, FrozenTeacher, StateStore, Teacher
from cktk.engine.trainer import Schedule
from cktk.engine.update import Updater
from cktk.errors import ConfigError
from cktk.optim.configs import OptimizerConfig
from cktk.optim.schedules import Limits
from cktk.protocols import Adapter, LayerPair, Matching, ModelShape
from cktk.registry import CRITERIA, LR_SCHEDULERS, OPTIMIZERS

_CRITERION_FACE = [name for name in vars(TrainCriterion) if not name.startswith("_")] + list(
    get_annotations(TrainCriterion)
)
_STATE_DTYPES = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def make_step(settings: Settings, models: Models, world: World) -> tuple[Step, Teacher | None]:
    """Student and criterion as one module, and the teacher that it learns from."""
    run = settings.section(RunConfig)
    dtype = torch.float16 if run.fp16 else torch.bfloat16 if run.bf16 else None
    autocast = Autocast(world.device.type, dtype)
    criterion = _criterion(settings, models)
    criterion.to(world.device)
    adapter: Adapter = models.family.adapter(models.student)
    step = Step(models.student, adapter, criterion, None, autocast, world.all_reduce)
    if isinstance(models.teacher, RecordedTeacher):
        step.teacher = models.teacher.on_split("train", step.all_needs())
    elif models.teacher is not None:
        rounded = _STATE_DTYPES[settings.section(ModelsConfig).teacher_states_dtype]
        adapter = models.family.adapter(models.teacher)
        if step.all_needs().teacher_head:
            adapter.head()  # a teacher without a head is refused now, and not when a stage first asks for it
        step.teacher = FrozenTeacher(models.teacher, adapter, lambda: step.train_criterion.needs(), autocast, rounded)
    return step, step.teacher


def make_stages(models: Models, step: Step, updates: UpdateConfig) -> Stages | None:
    """What takes a staged criterion through its stages; None for all others.

    Raises `ConfigError` where a stage is to train the output head alone and that is tied to the embeddings, and where
    training ends before the last stage.
    """
    if not isinstance(step.criterion, StagedCriterion):
        return None
    family, student = models.family, models.student
    head, tied = family.head(student), {id(parameter) for parameter in family.embeddings(student)}
    own = {id(p) for p in (head.parameters() if head is not None else ()) if id(p) not in tied and p.requires_grad}
    if step.criterion.freezes_body and not own:
        raise ConfigError(
            f"--freeze-body-at-end: the output head of this {type(student).__name__} is tied to its embeddings, so "
            "nothing would be left to train; leave it out"
        )
    before = step.criterion.epochs_before_last
    if before is not None and 0 < updates.max_epoch <= before:
        raise ConfigError(
            f"--max-epoch {updates.max_epoch} ends before the last stage, which trains the output head and begins "
            f"after {before} epochs of --stage-epochs; give more epochs, or less to each stage"
        )
    return Stages(step.criterion, [parameter for parameter in student.parameters() if id(parameter) not in own])


def make_updater(settings: Settings, step: Step, teacher: Teacher | None, world: World) -> Updater:
    """What turns micro-batches into updates of all parameters that are not frozen."""
    run, updates = settings.section(RunConfig), settings.section(UpdateConfig)
    optimizer_name, config = settings.component("optimizer")
    trained = [(name, parameter) for name, parameter in step.named_parameters() if parameter.requires_grad]
    optimizer = OPTIMIZERS.target(optimizer_name)(config, trained)
    scaler = torch.amp.GradScaler(world.device.type, enabled=run.fp16)
    store = StateStore(teacher, settings.section(ModelsConfig).teacher_states) if teacher is not None else None
    # Stages leave out layers and heads.
    staged = isinstance(step.criterion, StagedCriterion) and len(step.criterion.plan) > 1
    return Updater(
        world.wrap(step, some_unused=staged),
        step,
        teacher,
        optimizer,
        scaler,
        world,
        updates.clip_norm,
        run.seed,
        store,
    )


def make_schedule(settings: Settings) -> Schedule:
    """The learning rate by update. Raises `ConfigError` for an optimizer whose options have no learning rate."""
    optimizer, options = settings.component("optimizer")
    if not isinstance(options, OptimizerConfig):
        raise ConfigError(
            f"--optimizer {optimizer}: its options {type(options).__name__} have to be a subclass of "
            "cktk.optim.configs.OptimizerConfig, which declares --lr"
        )
    name, config = settings.component("lr-scheduler")
    updates = settings.section(UpdateConfig)
    schedule: Schedule = LR_SCHEDULERS.target(name)(config, options.lr, Limits(updates.max_update, updates.max_epoch))
    return schedule


def _criterion(settings: Settings, models: Models) -> nn.Module:
    """The criterion. Raises `ConfigError` where that is a teacher and there is none."""
    name, config = settings.component("criterion")
    student = models.shape(models.student)
    # Without a teacher the student stands in for it, so that every criterion can be made and asked what it needs.
    teacher = student if models.teacher is None else models.shape(models.teacher)
    regression = models.head is not None and models.head.labels is None
    matching = Matching(student, teacher, _pairs(config, student, teacher), regression)
    criterion = CRITERIA.target(name)(config, matching)
    if not isinstance(criterion, nn.Module):
        raise ConfigError(
            f"--criterion {name}: its builder returned {type(criterion).__name__}, not a torch.nn.Module with needs()"
        )
    found = whole(criterion)
    if missing := [name for name in _CRITERION_FACE if not hasattr(found, name)]:
        raise ConfigError(
            f"--criterion {name}: its {type(criterion).__name__} has no {', '.join(missing)}; subclass "
            "cktk.criteria.compose.Criterion, or see TrainCriterion in cktk/engine/step.py"
        )
    needs = found.needs()
    if models.teacher is None and (needs.pairs or needs.attention or needs.first or needs.teacher_head):
        raise ConfigError(f"--criterion {name} needs a --teacher, or a --teacher-cache")
    if models.teacher is not None and models.head is not None and needs.teacher_head:
        otherwise = "; give a teacher that was fine-tuned on this data, or set --kl-weight 0"
        check_answers(models.family, models.teacher.config, models.head, "the teacher", otherwise)
    return criterion


def _pairs(config: Any, student: ModelShape, teacher: ModelShape) -> tuple[LayerPair, ...]:
    """The pairs that ``config`` asks for; those of the uniform map where it has no say (plug-ins)."""
    if not isinstance(config, LayerMapConfig):
        return layer_pairs(student, teacher)
    embeddings = isinstance(config, HiddenKdConfig) and config.match_embeddings
    return layer_pairs(student, teacher, config.layer_map, embeddings=embeddings)
