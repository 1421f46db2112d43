"""The folder of a run: its resolved configuration, and the refusal to mix two runs in one folder."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

import cktk
from cktk.errors import ConfigError
from cktk.utils.files import atomic_file, is_temporary, sweep_temporaries, write_json

CONFIG = "config.yaml"


_held: set[int] = set()


def _let_go() -> None:
    # A forked child, such as a worker that loads data, shares its parent's locks and may outlive a killed parent.
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_let_go)


@contextmanager
def claimed(run: Path, config: str, free: set[str]) -> Iterator[None]:
    """Hold ``run`` for one training with the resolved YAML ``config``: nobody else may train there inside.

    The folder is made if it is absent, and goes again if nothing came into it. Raises `ConfigError` if another process
    trains there, if the folder holds something else, or if it was started with other values than those of ``config``
    (options named in ``free`` aside).
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(run, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise ConfigError(f"--save-dir {run}: cannot be used as a folder ({error.strerror})") from error
    _held.add(descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        sweep_temporaries(run)
        _check(run, config, free)
        yield
    except BlockingIOError as error:
        raise ConfigError(
            f"--save-dir {run}: another process trains here; wait for it, or give another folder"
        ) from error
    finally:
        _held.discard(descriptor)
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)
        with suppress(OSError):
            run.rmdir()  # only an empty one can go


def record(run: Path, config: str) -> None:
    """Write what this run is: the resolved ``config``, the cktk version, the git revision and the command."""
    with atomic_file(run / CONFIG, "w", encoding="utf-8") as stream:
        stream.write(config)
    write_json(run / "run.json", {"cktk": cktk.__version__, "git_revision": git_revision(), "command": sys.argv})


def _check(run: Path, config: str, free: set[str]) -> None:
    if all(is_temporary(path) for path in run.iterdir()):
        return
    if not (run / CONFIG).is_file():
        raise ConfigError(f"--save-dir {run}: holds other files and no {CONFIG}; give a new or empty folder")
    before, values = _read(run / CONFIG), yaml.safe_load(config)
    # What both have comes first: a changed --criterion says more than the options that came and went with it.
    for name in sorted(set(before) | set(values), key=lambda name: (name not in before or name not in values, name)):
        if name not in free and before.get(name) != values.get(name):
            flag = name.replace("_", "-")
            raise ConfigError(
                f"--save-dir {run}: was started with {flag} = {before.get(name)}, now {flag} = {values.get(name)}; "
                "give another --save-dir, or the same value to continue"
            )


def _read(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        values = None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: damaged; give another --save-dir, or delete it if the flags are those of the run")
    return values


def git_revision() -> str | None:
    """The commit of the source tree that cktk runs from, if it is one."""
    command = ["git", "-C", str(Path(cktk.__file__).parent), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
