"""YAML run files: flat ``name: value`` maps with ``base:`` for inheritance; each value knows its line, for errors."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import yaml

from cktk.config.options import Raw
from cktk.errors import ConfigError


class Written(NamedTuple):
    """A value as written, and where: ``run.yaml:3`` or the flag."""

    raw: Raw
    where: str


def read_run_file(path: Path, _chain: tuple[Path, ...] = ()) -> dict[str, Written]:
    """Read a run file over its ``base`` files (a path or list of paths, relative to the file).

    Returns option names, with underscores, to what is written for them; the file itself wins over its bases.
    """
    if path.resolve() in _chain:
        raise ConfigError(f"{path}: base files name each other in a circle; remove one `base:`")
    own = _read_one(path)
    merged: dict[str, Written] = {}
    base = own.pop("base", None)
    if base is not None and base.raw is not None:
        for name in base.raw if isinstance(base.raw, list) else [base.raw]:
            if not (path.parent / name).is_file():
                raise ConfigError(f"{base.where}: base {name}: no such run file")
            merged.update(read_run_file(path.parent / name, (*_chain, path.resolve())))
    merged.update(own)
    return merged


def _read_one(path: Path) -> dict[str, Written]:
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such run file") from error
    except IsADirectoryError as error:
        raise ConfigError(f"{path}: is a folder; give a run file, such as a run's config.yaml") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from error
    except yaml.YAMLError as error:
        line = getattr(getattr(error, "problem_mark", None), "line", 0) + 1
        raise ConfigError(f"{path}:{line}: not valid YAML ({getattr(error, 'problem', error)})") from error
    if root is None:
        return {}
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(f"{path}:1: a run file is a map of `name: value` lines")
    values: dict[str, Written] = {}
    for key, node in root.value:
        name = str(key.value).replace("-", "_")
        where = f"{path}:{key.start_mark.line + 1}"
        if name in values:
            raise ConfigError(f"{where}: {name} is given twice; keep one")
        values[name] = Written(_raw(node, f"{where}: {name}"), where)
    return values


def _raw(node: yaml.Node, where: str) -> Raw:
    if isinstance(node, yaml.ScalarNode):
        return None if node.tag == "tag:yaml.org,2002:null" else str(node.value)
    if isinstance(node, yaml.SequenceNode) and all(isinstance(item, yaml.ScalarNode) for item in node.value):
        return [str(item.value) for item in node.value]
    raise ConfigError(f"{where}: takes a value or a list of values, not a nested map")
