"""Plug-ins: third-party code that adds rows to the registries, by entry point or by ``--user-dir``."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from importlib.metadata import entry_points
from pathlib import Path

from cktk.errors import ConfigError

GROUP = "cktk.plugins"


def load_plugins(user_dir: str | None) -> None:
    """Import every entry point of the group ``cktk.plugins``, then ``user_dir`` (a package folder or a ``.py`` file).

    A plug-in that cannot be imported raises `ConfigError` with its own error; it is never skipped in silence.
    """
    for entry in entry_points(group=GROUP):
        try:
            entry.load()
        except (Exception, SystemExit) as error:
            raise ConfigError(
                f"plug-in {entry.name} ({entry.value}) cannot be loaded: {type(error).__name__}: {error}"
            ) from error
    if user_dir is not None:
        _import_path(Path(user_dir))


def _import_path(path: Path) -> None:
    source = path / "__init__.py" if path.is_dir() else path
    if not source.is_file():
        raise ConfigError(f"--user-dir {path}: give a Python file, or a folder with an __init__.py")
    # Two plug-ins may share a file name, so the module's name holds a digest of the whole path.
    digest = hashlib.sha256(bytes(source.resolve())).hexdigest()[:8]
    name = f"cktk_user_{path.resolve().stem}_{digest}"
    if name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(name, source, submodule_search_locations=[str(source.parent)])
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise ConfigError(f"--user-dir {path} cannot be loaded: {type(error).__name__}: {error}") from error
