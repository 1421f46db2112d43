"""What is minimised, and by what: criterion, step, optimizer and schedule."""

from __future__ import annotations

from collections.abc import Iterator
from inspect import get_annotations
from typing import Any, cast

import torch
from torch import nn

from cktk.architectures.layer_map import layer_pairs, layer_table
from cktk.assemble.heads import check_answers
from cktk.assemble.models import Models
from cktk.assemble.recorded_teacher import RecordedTeacher
from cktk.config.command import Settings
from cktk.criteria.configs import HiddenKdConfig, MatchingConfig
from cktk.data.batch_config import BatchingConfig
from cktk.distributed.world import World
from cktk.engine.configs import ModelsConfig, RunConfig, UpdateConfig
from cktk.engine.step import Step, TrainCriterion
from cktk.engine.teacher import Autocast, FrozenTeacher, StateStore, Teacher
from cktk.engine.trainer import Schedule
from cktk.engine.update import Updater
from cktk.errors import ConfigError
from cktk.optim.configs import OptimizerConfig
from cktk.optim.schedules import Limits
from cktk.protocols import LayerPair, Matching, ModelShape, Needs
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
    criterion, needs = _criterion(settings, models)
    criterion.to(world.device)
    teacher: Teacher | None = None
    if isinstance(models.teacher, RecordedTeacher):
        teacher = models.teacher.on_split("train", needs)
    elif models.teacher is not None:
        rounded = _STATE_DTYPES[settings.section(ModelsConfig).teacher_states_dtype]
        teacher = FrozenTeacher(models.teacher, models.family.adapter(models.teacher), needs, autocast, rounded)
    adapter = models.family.adapter(models.student)
    return Step(models.student, adapter, criterion, teacher, autocast, world.all_reduce), teacher


def make_updater(settings: Settings, step: Step, teacher: Teacher | None, world: World) -> Updater:
    """What turns micro-batches into updates of all parameters that are not frozen."""
    run, updates = settings.section(RunConfig), settings.section(UpdateConfig)
    optimizer_name, config = settings.component("optimizer")
    trained = [(name, parameter) for name, parameter in step.named_parameters() if parameter.requires_grad]
    optimizer = OPTIMIZERS.target(optimizer_name)(config, trained)
    scaler = torch.amp.GradScaler(world.device.type, enabled=run.fp16)
    store = StateStore(teacher, settings.section(ModelsConfig).teacher_states) if teacher is not None else None
    return Updater(world.wrap(step), step, teacher, optimizer, scaler, world, updates.clip_norm, run.seed, store)


def describe_matching(settings: Settings, models: Models, step: Step) -> Iterator[str]:
    """What is matched: the layer map, the attention blocks, and the memory that two passes take."""
    needs = step.train_criterion.needs()
    if needs.pairs:
        yield f"layer map (student state <- teacher state):\n{layer_table(needs.pairs)}"
    kinds = dict.fromkeys(block.kind for block in needs.attention)
    if kinds:
        pairs = {kind: [f"{b.student}<-{b.teacher}" for b in needs.attention if b.kind == kind] for kind in kinds}
        words = "; ".join(f"{kind} {', '.join(found)}" for kind, found in pairs.items())
        yield f"attention matched (student layer <- teacher layer): {words}"
    waiting = max(settings.section(UpdateConfig).update_freq) - 1
    if models.teacher is not None and step.train_criterion.collects == "before" and waiting:
        yield _waiting_states(settings, models, needs, waiting)


def _waiting_states(settings: Settings, models: Models, needs: Needs, micro_batches: int) -> str:
    """Where the teacher's states of ``micro_batches`` wait for the second pass, and how much memory they take."""
    config, recorded = settings.section(ModelsConfig), isinstance(models.teacher, RecordedTeacher)
    if config.teacher_states == "recompute":
        words = "the teacher's states are read twice" if recorded else "the teacher runs twice"
        return f"{words} for all but one micro-batch of an update (--teacher-states recompute)"
    size = micro_batches * _state_bytes(settings, models, needs) / 2**30
    place = "main memory" if config.teacher_states == "host" else "the memory of the device"
    flags = "--teacher-states host or recompute" + ("" if recorded else ", --teacher-states-dtype bfloat16")
    words = f"teacher states kept between the two passes of an update: at most {size:.2f} GiB a process in {place}"
    return f"{words} ({flags})"


def _state_bytes(settings: Settings, models: Models, needs: Needs) -> int:
    """The most that the teacher's states of one micro-batch take."""
    assert models.teacher is not None
    batching, teacher = settings.section(BatchingConfig), models.shape(models.teacher)
    tokens = batching.token_budget or (batching.batch_size or 1) * (models.max_positions or 512)
    request = needs.request("teacher", head=needs.teacher_head)
    states = sum(map(len, request.hidden.values()))
    dtype = settings.section(ModelsConfig).teacher_states_dtype
    if isinstance(models.teacher, RecordedTeacher):
        dtype = models.teacher.cache.key.states_dtype
    elif "decoder" in teacher.sides:  # what enters the head, unless it is matched as well
        states += request.head and teacher.sides["decoder"].layers not in request.hidden.get("decoder", ())
    return tokens * states * teacher.width * (4 if dtype in ("auto", "float32") else 2)


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


def _criterion(settings: Settings, models: Models) -> tuple[nn.Module, Needs]:
    """The criterion and what it needs. Raises `ConfigError` where that is a teacher and there is none."""
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
    if missing := [name for name in _CRITERION_FACE if not hasattr(criterion, name)]:
        raise ConfigError(
            f"--criterion {name}: its {type(criterion).__name__} has no {', '.join(missing)}; subclass "
            "cktk.criteria.compose.Criterion, or see TrainCriterion in cktk/engine/step.py"
        )
    needs = cast(TrainCriterion, criterion).needs()
    if models.teacher is None and (needs.pairs or needs.attention or needs.teacher_head):
        raise ConfigError(f"--criterion {name} needs a --teacher, or a --teacher-cache")
    if models.teacher is not None and models.head is not None and needs.teacher_head:
        otherwise = "; give a teacher that was fine-tuned on this data, or set --kl-weight 0"
        check_answers(models.family, models.teacher.config, models.head, "the teacher", otherwise)
    return criterion, needs


def _pairs(config: Any, student: ModelShape, teacher: ModelShape) -> tuple[LayerPair, ...]:
    """The pairs that ``config`` asks for; those of the uniform map where it has no say (plug-ins)."""
    if not isinstance(config, MatchingConfig):
        return layer_pairs(student, teacher)
    embeddings = isinstance(config, HiddenKdConfig) and config.match_embeddings
    return layer_pairs(student, teacher, config.layer_map, embeddings=embeddings)
