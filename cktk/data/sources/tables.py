"""Tables: TSV, CSV, JSON lines and Parquet files."""

from __future__ import annotations

import csv
import glob
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from cktk.data.preprocessing.configs import DelimitedSourceConfig, TableSourceConfig
from cktk.data.preprocessing.layouts import Column, Layout, Row
from cktk.data.sources import columns
from cktk.data.sources.text import count_lines, read_lines
from cktk.errors import ConfigError, DataError

_BATCH_ROWS = 4096


class TableSource(ABC):
    """One or more files a split, with a column for each of the layout's; a pattern stands for its files, sorted."""

    def __init__(self, config: TableSourceConfig, layout: Layout) -> None:
        given = {split: layout.files.get(split) or getattr(config, f"{split}_file", None) for split in layout.splits}
        self._files = {split: find_files(split, name) for split, name in given.items() if name is not None}
        if not self._files:
            raise ConfigError("no text to prepare: give --train-file, --valid-file or --test-file")
        self._columns = layout.columns

    def splits(self) -> list[str]:
        return list(self._files)

    def count(self, split: str) -> int | None:
        """Rows of ``split`` if the format tells; raises `DataError` for an empty file or a missing column."""
        total: int | None = 0
        for path in self._files[split]:
            if next(self._file_rows(path, split), None) is None:
                raise DataError(f"{path}: the file holds no rows; give a file with text")
            rows = self._file_count(path)
            total = None if total is None or rows is None else total + rows
        return total

    def rows(self, split: str) -> Iterator[Row]:
        for path in self._files[split]:
            yield from self._file_rows(path, split)

    @abstractmethod
    def _file_count(self, path: Path) -> int | None:
        """Rows of one file, or None where only reading it all would tell."""

    @abstractmethod
    def _file_rows(self, path: Path, split: str) -> Iterator[Row]:
        """Rows of one file."""


class _DelimitedSource(TableSource):
    def __init__(self, config: DelimitedSourceConfig, layout: Layout) -> None:
        super().__init__(config, layout)
        self._header = config.header

    @abstractmethod
    def _records(self, path: Path) -> Iterator[tuple[int, list[str]]]:
        """Line number and cells of each record."""

    def _file_rows(self, path: Path, split: str) -> Iterator[Row]:
        records = self._records(path)
        first = next(records, None)
        if first is None:
            return
        width = len(first[1])
        places = find_places(self._columns, first[1] if self._header else [], width, split, path)
        read = row_reader(self._columns, places, path)
        if not self._header:
            yield read(first[1], first[0])
        for number, cells in records:
            if len(cells) != width:
                raise DataError(f"{path}:{number}: {len(cells)} columns, but line 1 has {width}; mend the line")
            yield read(cells, number)


#: Where in a record a column is, from 0; None for one that is absent.
Place = int | None


def find_places(columns_: Sequence[Column], names: Sequence[str], width: int, split: str, path: Path) -> list[Place]:
    """The places of ``columns_`` in records of ``width`` cells, under a header ``names`` that may be empty.

    A number that the user gives is a place, from 1; a layout's own numbers are meant for files without header. Raises
    `DataError` for a column that is not there and that ``split`` may not lack.
    """
    places: list[Place] = []
    for column in columns_:
        found = [list(names).index(name) for name in column.names if name in names]
        if column.given is not None or not names:
            found += [int(name) - 1 for name in column.names if name.isdecimal() and 1 <= int(name) <= width]
        if not found and not column.may_lack(split):
            raise columns.missing_column(column, names or [str(number) for number in range(1, width + 1)], path)
        places.append(found[0] if found else None)
    return places


def row_reader(columns_: Sequence[Column], places: Sequence[Place], path: Path) -> Callable[[Sequence[str], int], Row]:
    """What gives the row of a record of ``path``, which has ``columns_`` at ``places``, from its cells and its line."""
    taken = [place for place in places if place is not None]
    if len(taken) == len(places) and all(column.values is None for column in columns_):  # cells are text already
        return lambda cells, _: tuple([cells[place] for place in taken])
    pairs = list(zip(columns_, places, strict=True))

    def read(cells: Sequence[str], number: int) -> Row:
        where = f"{path}:{number}"
        return tuple([column.absent if place is None else column.read(cells[place], where) for column, place in pairs])

    return read


class TsvSource(_DelimitedSource):
    """Tab-separated values without quoting: a tab ends a cell, ``\\n`` ends a row, quotation marks are text."""

    def _file_count(self, path: Path) -> int:
        return count_lines(path) - self._header

    def _records(self, path: Path) -> Iterator[tuple[int, list[str]]]:
        for number, line in enumerate(read_lines(path), 1):
            yield number, line.split("\t")


class CsvSource(_DelimitedSource):
    """Comma-separated values; quoted cells may hold commas, doubled quotation marks and line ends."""

    def _file_count(self, path: Path) -> None:  # noqa: ARG002 - a quoted cell may hold line ends
        return None

    def _records(self, path: Path) -> Iterator[tuple[int, list[str]]]:
        reader = csv.reader((f"{line}\n" for line in read_lines(path)), strict=True)
        try:
            for cells in reader:
                yield reader.line_num, cells
        except csv.Error as error:
            raise DataError(f"{path}:{reader.line_num}: not valid CSV ({error}); mend the line") from error


class JsonlSource(TableSource):
    """JSON lines: one object a line, such as ``{"translation": {"en": ..., "fr": ...}}``."""

    def _file_count(self, path: Path) -> int:
        return count_lines(path)

    def _file_rows(self, path: Path, split: str) -> Iterator[Row]:
        paths: list[columns.Path | None] | None = None
        for number, line in enumerate(read_lines(path), 1):
            where = f"{path}:{number}"
            row = _json_object(line, where)
            if paths is None:
                paths = [columns.find_column(column, row, split, path) for column in self._columns]
            yield columns.read_row(self._columns, paths, row, where)


class ParquetSource(TableSource):
    """Parquet files; only the layout's columns are read, one row group's batch at a time."""

    def _file_count(self, path: Path) -> int:
        with _open_parquet(path) as file:
            return int(file.metadata.num_rows)

    def _file_rows(self, path: Path, split: str) -> Iterator[Row]:
        number = 0
        with _open_parquet(path) as file:
            shape = _shape(file.schema_arrow)
            paths = [columns.find_column(column, shape, split, path) for column in self._columns]
            names = [".".join(found) for found in paths if found is not None]
            try:
                for batch in file.iter_batches(_BATCH_ROWS, columns=names):
                    for row in batch.to_pylist():
                        number += 1
                        yield columns.read_row(self._columns, paths, row, f"{path}, row {number}")
            except (pyarrow.ArrowException, OSError) as error:
                raise DataError(f"{path}: damaged Parquet file ({error}); fetch it again") from error


def find_files(split: str, name: str) -> list[Path]:
    """The files that ``--<split>-file name`` means; raises `DataError` if there is none."""
    # A file of exactly this name wins: names may hold characters that mean something in patterns.
    if Path(name).is_file():
        return [Path(name)]
    found = [Path(match) for match in sorted(glob.glob(name))]
    if not found:
        raise DataError(f"--{split.replace('_', '-')}-file {name}: no such file")
    return found


_LONE_SURROGATE = re.compile("[\\ud800-\\udfff]")


def _json_object(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: not valid JSON ({error}); each line is one object") from error
    if not isinstance(row, dict):
        raise DataError(f"{where}: holds a JSON {type(row).__name__}; each line is one object with named columns")
    if "\\u" in line and _LONE_SURROGATE.search(json.dumps(row, ensure_ascii=False)):
        raise DataError(f"{where}: holds half of a surrogate pair (\\ud800 to \\udfff); write the character whole")
    return row


def _open_parquet(path: Path) -> pyarrow.parquet.ParquetFile:
    try:
        return pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read as Parquet ({error})") from error


def _shape(fields: Any) -> dict[str, Any]:
    return {field.name: _shape(field.type) if pyarrow.types.is_struct(field.type) else None for field in fields}
