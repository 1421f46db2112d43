"""Finding the text in rows that have named, possibly nested, columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from cktk.data.sources import language_names
from cktk.errors import DataError

#: Names to follow from a row to the text: ``("translation", "en")``.
Path = tuple[str, ...]


class Wanted(NamedTuple):
    """The text of one side: its column as the user gave it (or None), its language, and the flag that names it."""

    flag: str
    column: str | None
    lang: str


def wanted_columns(source: str | None, target: str | None, source_lang: str, target_lang: str) -> tuple[Wanted, Wanted]:
    """What the flags ``--source-column`` and ``--target-column`` ask for."""
    return Wanted("--source-column", source, source_lang), Wanted("--target-column", target, target_lang)


def find_column(wanted: Wanted, shape: Mapping[str, Any], where: object) -> Path:
    """The path of the wanted column in ``shape``, a row (or anything with its keys).

    Without a column from the user it is the language's own, or the language in a ``translation`` map. Raises
    `DataError` listing the columns that there are.
    """
    if wanted.column is not None:
        candidates = [(wanted.column,), tuple(wanted.column.split("."))]
    else:
        names = language_names(wanted.lang)
        candidates = [(name,) for name in names] + [("translation", name) for name in names]
    for path in candidates:
        if _holds(shape, path):
            return path
    raise missing_column(wanted, _names(shape), where)


def missing_column(wanted: Wanted, present: Iterable[str], where: object) -> DataError:
    """The error for a column that is not among ``present``."""
    name = wanted.column or wanted.lang
    return DataError(f"{where}: no column {name!r}; choose with {wanted.flag} among: {', '.join(present) or '(none)'}")


def text_at(row: Mapping[str, Any], path: Path, where: object) -> str:
    """The text at ``path`` of ``row``; null is an empty text, anything else that is not text a `DataError`."""
    value: Any = row
    for name in path:
        if not isinstance(value, Mapping) or name not in value:
            raise DataError(f"{where}: no column {'.'.join(path)!r} here; mend the row, or remove it")
        value = value[name]
    return as_text(value, path, where)


def as_text(value: object, path: Path, where: object) -> str:
    """``value`` if it is text, "" if it is None, else a `DataError`."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DataError(f"{where}: column {'.'.join(path)!r} holds {type(value).__name__}, not text; choose another")
    return value


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
