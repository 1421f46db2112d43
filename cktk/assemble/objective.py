"""What is minimised, and by what: criterion, step, optimizer and schedule."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import nn

from cktk.architectures.layer_map import layer_pairs
from cktk.assemble.models import Models
from cktk.config.command import Settings
from cktk.distributed.world import World
from cktk.engine.configs import RunConfig, UpdateConfig
from cktk.engine.step import Autocast, FrozenTeacher, Step, TrainCriterion
from cktk.engine.update import Updater
from cktk.errors import ConfigError
from cktk.optim.configs import OptimizerConfig
from cktk.protocols import Needs
from cktk.registry import CRITERIA, LR_SCHEDULERS, OPTIMIZERS


def make_step(settings: Settings, models: Models, world: World) -> tuple[Step, FrozenTeacher | None]:
    """Student and criterion as one module, and the teacher that it learns from."""
    run = settings.section(RunConfig)
    dtype = torch.float16 if run.fp16 else torch.bfloat16 if run.bf16 else None
    autocast = Autocast(world.device.type, dtype)
    criterion, needs = _criterion(settings, models)
    criterion.to(world.device)
    teacher = None
    if models.teacher is not None:
        teacher = FrozenTeacher(models.teacher, models.family.adapter(models.teacher), needs, autocast)
    adapter = models.family.adapter(models.student)
    return Step(models.student, adapter, criterion, teacher, autocast, world.all_reduce), teacher


def make_updater(settings: Settings, step: Step, teacher: FrozenTeacher | None, world: World) -> Updater:
    """What turns micro-batches into updates of all parameters that are not frozen."""
    run, updates = settings.section(RunConfig), settings.section(UpdateConfig)
    optimizer_name, config = settings.component("optimizer")
    trained = [(name, parameter) for name, parameter in step.named_parameters() if parameter.requires_grad]
    optimizer = OPTIMIZERS.target(optimizer_name)(config, trained)
    scaler = torch.amp.GradScaler(world.device.type, enabled=run.fp16)
    return Updater(world.wrap(step), step, teacher, optimizer, scaler, world, updates.clip_norm, run.seed)


def make_schedule(settings: Settings) -> Callable[[int], float]:
    """The learning rate by update. Raises `ConfigError` for an optimizer whose options have no learning rate."""
    optimizer, options = settings.component("optimizer")
    if not isinstance(options, OptimizerConfig):
        raise ConfigError(
            f"--optimizer {optimizer}: its options {type(options).__name__} have to be a subclass of "
            "cktk.optim.configs.OptimizerConfig, which declares --lr"
        )
    name, config = settings.component("lr-scheduler")
    schedule: Callable[[int], float] = LR_SCHEDULERS.target(name)(
        config, options.lr, settings.section(UpdateConfig).max_update or None
    )
    return schedule


def _criterion(settings: Settings, models: Models) -> tuple[nn.Module, Needs]:
    """The criterion and what it needs. Raises `ConfigError` where that is a teacher and there is none."""
    name, config = settings.component("criterion")
    student = models.shape(models.student)
    # Without a teacher the student stands in for it, so that every criterion can be made and asked what it needs.
    teacher = student if models.teacher is None else models.shape(models.teacher)
    widths = dict.fromkeys(student.sides, (student.width, teacher.width))
    criterion = CRITERIA.target(name)(config, models.pairs or layer_pairs(student, teacher), widths)
    if not isinstance(criterion, nn.Module):
        raise ConfigError(
            f"--criterion {name}: its builder returned {type(criterion).__name__}, not a torch.nn.Module with needs()"
        )
    needs = cast(TrainCriterion, criterion).needs()
    if models.teacher is None and (needs.pairs or needs.teacher_head):
        raise ConfigError(f"--criterion {name} needs a --teacher")
    return criterion, needs
