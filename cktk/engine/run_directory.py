"""The folder of a run: its resolved configuration, and the refusal to mix two runs in one folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

import cktk
from cktk.errors import ConfigError
from cktk.utils.files import atomic_file, write_json

CONFIG = "config.yaml"


def prepare(run: Path, config: str) -> None:
    """Make ``run`` the directory of a run with the resolved YAML ``config``."""
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--save-dir {run}: cannot be made ({error.strerror})") from error
    with atomic_file(run / CONFIG, "w", encoding="utf-8") as stream:
        stream.write(config)
    write_json(run / "run.json", {"cktk": cktk.__version__, "git_revision": git_revision(), "command": sys.argv})


def check(run: Path, config: str, free: set[str]) -> None:
    """Raise `ConfigError` unless ``run`` is new, empty, or was started with the same resolved YAML ``config``.

    Options named in ``free`` may differ.
    """
    if not run.exists() or (run.is_dir() and not any(run.iterdir())):
        return
    if not (run / CONFIG).is_file():
        raise ConfigError(f"--save-dir {run}: holds other files and no {CONFIG}; give a new or empty folder")
    before: dict[str, Any] = yaml.safe_load((run / CONFIG).read_text(encoding="utf-8"))
    values: dict[str, Any] = yaml.safe_load(config)
    for name in sorted(set(before) | set(values)):
        if name not in free and before.get(name) != values.get(name):
            flag = name.replace("_", "-")
            raise ConfigError(
                f"--save-dir {run}: was started with {flag} = {before.get(name)}, now {flag} = {values.get(name)}; "
                "give another --save-dir, or the same value to continue"
            )


def git_revision() -> str | None:
    """The commit of the source tree that cktk runs from, if it is one."""
    command = ["git", "-C", str(Path(cktk.__file__).parent), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
