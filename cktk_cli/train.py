"""cktk-train: distil a student from a teacher, or train a model from scratch."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from cktk.architectures.presets import STUDENTS
from cktk.config.command import Command, Component, Settings
from cktk.criteria.presets import PRESETS
from cktk.data.batch_config import BatchingConfig
from cktk.distributed.launch import end_with_launcher, launch, under_torchrun
from cktk.engine.configs import CheckpointConfig, ModelsConfig, RunConfig, UpdateConfig, ValidationConfig
from cktk.plugins import load_plugins
from cktk.registry import ARCHITECTURES, CRITERIA, LR_SCHEDULERS, OPTIMIZERS, TASKS
from cktk_cli.run import run_command
from cktk_cli.task import task_component


def command(argv: Sequence[str] | None = None) -> Command:
    """The flags of ``cktk-train`` called with ``argv`` (default: the process's arguments)."""
    return Command(
        prog="cktk-train",
        description="Distil a student from a teacher, or train a model from scratch. "
        "Started again with the same flags, an interrupted run continues exactly.",
        sections=[ModelsConfig, RunConfig, BatchingConfig, UpdateConfig, ValidationConfig, CheckpointConfig],
        components=[
            task_component(argv, TASKS),
            Component("arch", ARCHITECTURES, "bart", "family of the student", presets=STUDENTS),
            Component("criterion", CRITERIA, "cross_entropy", "loss"),
            Component("optimizer", OPTIMIZERS, "adamw", "optimizer"),
            Component("lr-scheduler", LR_SCHEDULERS, "inverse_sqrt", "learning-rate schedule"),
        ],
        load_plugins=load_plugins,
        presets=PRESETS,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    exit_code = 0

    def work(settings: Settings) -> None:
        nonlocal exit_code
        processes = settings.section(RunConfig).nproc_per_node
        if processes > 1 and not under_torchrun():
            exit_code = launch("cktk_cli.train", arguments, processes)
            return
        if under_torchrun():
            end_with_launcher()
        from cktk.assemble import train  # imports torch, which --help and bad flags need not wait for

        train(settings)

    return run_command(command(arguments), work, arguments) or exit_code


if __name__ == "__main__":
    sys.exit(main())
