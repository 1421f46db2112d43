"""Finding the columns of a layout in rows that have named, possibly nested, columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from cktk.data.preprocessing.layouts import Column
from cktk.errors import DataError

#: Names to follow from a row to a cell: ``("translation", "en")``.
Path = tuple[str, ...]


def find_column(column: Column, shape: Mapping[str, Any], split: str, where: object) -> Path | None:
    """The path of ``column`` in ``shape``, a row (or anything with its keys); None where ``split`` may lack it.

    Raises `DataError` listing the columns that there are.
    """
    candidates: list[Path] = [(name,) for name in column.names]
    nested = column.nested if column.given is None else column.names
    candidates += [tuple(name.split(".")) for name in nested]
    for path in candidates:
        if _holds(shape, path):
            return path
    if column.may_lack(split):
        return None
    raise missing_column(column, _names(shape), where)


def missing_column(column: Column, present: Iterable[str], where: object) -> DataError:
    """The error for a column that is not among ``present``."""
    names = " or ".join(map(repr, column.names))
    return DataError(f"{where}: no column {names}; choose with {column.flag} among: {', '.join(present) or '(none)'}")


def cell_at(row: Mapping[str, Any], path: Path, where: object) -> object:
    """The cell at ``path`` of ``row``; raises `DataError` where there is none."""
    value: Any = row
    for name in path:
        if not isinstance(value, Mapping) or name not in value:
            raise DataError(f"{where}: no column {'.'.join(path)!r} here; mend the row, or remove it")
        value = value[name]
    return value


def read_row(
    columns: Iterable[Column], paths: Iterable[Path | None], row: Mapping[str, Any], where: str
) -> tuple[Any, ...]:
    """What ``row`` says in ``columns``, which it has at ``paths``."""
    return tuple(
        column.absent if path is None else column.read(cell_at(row, path, where), where, path)
        for column, path in zip(columns, paths, strict=True)
    )


def _holds(shape: Mapping[str, Any], path: Path) -> bool:
    value: Any = shape
    for name in path:
        if not isinstance(value, Mapping) or name not in value:
            return False
        value = value[name]
    return True


def _names(shape: Mapping[str, Any]) -> list[str]:
    names = []
    for name, value in shape.items():
        names += [f"{name}.{inner}" for inner in value] if isinstance(value, Mapping) and value else [name]
    return names
