"""cktk-average-checkpoints: the mean of several checkpoints' students as one student."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cktk.config.command import Command, Settings
from cktk.config.options import option
from cktk.errors import ConfigError
from cktk.plugins import load_plugins
from cktk_cli.run import run_command


@dataclass(frozen=True)
class AverageConfig:
    """Checkpoints to average"""

    inputs: tuple[str, ...] = option(
        help="checkpoint or student folders, or one run directory", metavar="DIR,..", positional=True
    )
    output: str = option(help="student folder to write; must not exist", metavar="DIR")
    num_epoch_checkpoints: int = option(0, help="of a run directory, average the last so many epoch ends", minimum=0)
    num_update_checkpoints: int = option(
        0, help="of a run directory, average the last so many checkpoints of --save-interval-updates", minimum=0
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    command = Command(
        "cktk-average-checkpoints",
        "Average the weights of several checkpoints into one student.",
        [AverageConfig],
        load_plugins=load_plugins,
    )
    return run_command(command, _average, argv)


def _average(settings: Settings) -> None:
    config = settings.section(AverageConfig)
    folders = _folders(config)
    from cktk.architectures.initialisation.averaging import (
        average_students,  # imports torch; bad flags need not wait for it
    )

    average_students(folders, Path(config.output))
    print(f"{config.output}: the mean of {', '.join(str(folder) for folder in folders)}")


def _folders(config: AverageConfig) -> list[Path]:
    wanted = config.num_epoch_checkpoints or config.num_update_checkpoints
    if not wanted:
        return [Path(name) for name in config.inputs]
    if config.num_epoch_checkpoints and config.num_update_checkpoints:
        raise ConfigError("--num-epoch-checkpoints and --num-update-checkpoints exclude each other; choose one")
    if len(config.inputs) != 1:
        raise ConfigError("--num-epoch-checkpoints and --num-update-checkpoints take one run directory")
    from cktk.engine.checkpoint import CheckpointStore

    found = CheckpointStore(Path(config.inputs[0])).of_kind(epoch_ends=bool(config.num_epoch_checkpoints))
    if len(found) < wanted:
        raise ConfigError(
            f"{config.inputs[0]}: holds {len(found)} such checkpoints, {wanted} were asked for; ask for fewer, or keep "
            "more when training (--keep-last-epochs, --keep-interval-updates)"
        )
    return found[-wanted:]


if __name__ == "__main__":
    sys.exit(main())
