"""cktk-cache-teacher: write down what a teacher says about a data folder, to train from it without the teacher."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from cktk.config.command import Command, Settings
from cktk.data.batch_config import BatchingConfig
from cktk.data.teacher_cache.cache_config import CachedStatesConfig, TeacherCacheConfig
from cktk.distributed.launch import end_with_launcher, launch, under_torchrun
from cktk.plugins import load_plugins
from cktk.registry import TASKS
from cktk_cli.progress import SentenceBar
from cktk_cli.run import run_command
from cktk_cli.task import task_component


def command(argv: Sequence[str] | None = None) -> Command:
    """The flags of ``cktk-cache-teacher`` called with ``argv`` (default: the process's arguments)."""
    return Command(
        prog="cktk-cache-teacher",
        description="Write down a teacher's probabilities (and hidden states) for every row of a data folder; "
        "cktk-train --teacher-cache trains from them with no teacher in memory. Started again with the same flags, an "
        "interrupted cache is finished.",
        sections=[TeacherCacheConfig, CachedStatesConfig, BatchingConfig],
        components=[task_component(argv, TASKS)],
        load_plugins=load_plugins,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    exit_code = 0

    def work(settings: Settings) -> None:
        nonlocal exit_code
        processes = settings.section(TeacherCacheConfig).nproc_per_node
        if processes > 1 and not under_torchrun():
            exit_code = launch("cktk_cli.cache_teacher", arguments, processes)
            return
        if under_torchrun():
            end_with_launcher()
        from cktk.assemble.teacher_cache import cache_teacher  # imports torch, which --help need not wait for

        cache_teacher(settings, SentenceBar)

    return run_command(command(arguments), work, arguments) or exit_code


if __name__ == "__main__":
    sys.exit(main())
