"""Files of lines that belong together, line by line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from cktk.data.sources.text import count_lines, read_lines
from cktk.errors import DataError


def read(name: str) -> Iterator[str]:
    """The lines of a UTF-8 file."""
    return read_lines(Path(name))


def count(name: str) -> int | None:
    """How many lines a file has; None for stdin ("-") and pipes, which can be read only once."""
    return count_lines(Path(name)) if name != "-" and Path(name).is_file() else None


def rows_of_split(data_bin: str, split: str) -> int:
    """How many rows a split of a data folder has; raises `DataError` where there is none."""
    from cktk.data.shards import DataFolder  # imports numpy, which --help does without

    return len(DataFolder(data_bin).split(split))


def check_paired(flag: str, name: str | None, rows: int | None, what: str) -> None:
    """Raise `DataError` unless the file that ``flag`` names has a line for each of the ``rows`` of ``what``.

    What cannot be counted beforehand passes.
    """
    lines = None if name is None else count(name)
    if lines is not None and rows is not None and lines != rows:
        raise DataError(f"{flag} {name}: {lines} lines, but {what} has {rows}; give one line for each")
