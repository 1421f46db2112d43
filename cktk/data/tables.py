"""Parallel text in tables: TSV, CSV, JSON lines and Parquet files."""

from __future__ import annotations

import csv
import glob
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from cktk.data import columns
from cktk.data.configs import DelimitedSourceConfig, TableSourceConfig
from cktk.data.sources import SPLITS, Pair, language_names
from cktk.data.text import count_lines, read_lines
from cktk.errors import ConfigError, DataError

_BATCH_ROWS = 4096


class TableSource(ABC):
    """One or more files a split, each with a column for either language; a pattern stands for its files, sorted."""

    def __init__(self, config: TableSourceConfig, source_lang: str, target_lang: str) -> None:
        given = {split: getattr(config, f"{split}_file") for split in SPLITS}
        self._files = {split: _find(split, name) for split, name in given.items() if name is not None}
        if not self._files:
            raise ConfigError("no text to prepare: give --train-file, --valid-file or --test-file")
        self._wanted = columns.wanted_columns(config.source_column, config.target_column, source_lang, target_lang)

    def splits(self) -> list[str]:
        return list(self._files)

    def count(self, split: str) -> int | None:
        """Rows of ``split`` if the format tells; raises `DataError` for an empty file or a missing column."""
        total: int | None = 0
        for path in self._files[split]:
            if next(self._file_rows(path), None) is None:
                raise DataError(f"{path}: the file holds no rows; give a file with text")
            rows = self._file_count(path)
            total = None if total is None or rows is None else total + rows
        return total

    def rows(self, split: str) -> Iterator[Pair]:
        for path in self._files[split]:
            yield from self._file_rows(path)

    @abstractmethod
    def _file_count(self, path: Path) -> int | None:
        """Rows of one file, or None where only reading it all would tell."""

    @abstractmethod
    def _file_rows(self, path: Path) -> Iterator[Pair]:
        """Pairs of one file."""


class _DelimitedSource(TableSource):
    def __init__(self, config: DelimitedSourceConfig, source_lang: str, target_lang: str) -> None:
        super().__init__(config, source_lang, target_lang)
        self._header = config.header

    @abstractmethod
    def _records(self, path: Path) -> Iterator[tuple[int, list[str]]]:
        """Line number and cells of each record."""

    def _file_rows(self, path: Path) -> Iterator[Pair]:
        records = self._records(path)
        first = next(records, None)
        if first is None:
            return
        names = first[1] if self._header else []
        width = len(first[1])
        one, other = (self._position(wanted, names, width, path) for wanted in self._wanted)
        if not self._header:
            yield first[1][one], first[1][other]
        for number, cells in records:
            if len(cells) != width:
                raise DataError(f"{path}:{number}: {len(cells)} columns, but line 1 has {width}; mend the line")
            yield cells[one], cells[other]

    def _position(self, wanted: columns.Wanted, names: Sequence[str], width: int, path: Path) -> int:
        for name in [wanted.column] if wanted.column is not None else language_names(wanted.lang):
            if name in names:
                return list(names).index(name)
            if name.isdecimal() and 1 <= int(name) <= width:
                return int(name) - 1
        present = names or [str(number) for number in range(1, width + 1)]
        raise columns.missing_column(wanted, present, path)


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

    def _file_rows(self, path: Path) -> Iterator[Pair]:
        paths: list[columns.Path] | None = None
        for number, line in enumerate(read_lines(path), 1):
            row = _json_object(line, f"{path}:{number}")
            if paths is None:
                paths = [columns.find_column(wanted, row, path) for wanted in self._wanted]
            where = f"{path}:{number}"
            yield columns.text_at(row, paths[0], where), columns.text_at(row, paths[1], where)


class ParquetSource(TableSource):
    """Parquet files; only the two columns are read, one row group's batch at a time."""

    def _file_count(self, path: Path) -> int:
        with _open_parquet(path) as file:
            return int(file.metadata.num_rows)

    def _file_rows(self, path: Path) -> Iterator[Pair]:
        with _open_parquet(path) as file:
            shape = _shape(file.schema_arrow)
            one, other = (columns.find_column(wanted, shape, path) for wanted in self._wanted)
            try:
                for batch in file.iter_batches(_BATCH_ROWS, columns=[".".join(one), ".".join(other)]):
                    for row in batch.to_pylist():
                        yield columns.text_at(row, one, path), columns.text_at(row, other, path)
            except (pyarrow.ArrowException, OSError) as error:
                raise DataError(f"{path}: damaged Parquet file ({error}); fetch it again") from error


def _find(split: str, name: str) -> list[Path]:
    # A file of exactly this name wins: names may hold characters that mean something in patterns.
    if Path(name).is_file():
        return [Path(name)]
    found = [Path(match) for match in sorted(glob.glob(name))]
    if not found:
        raise DataError(f"--{split}-file {name}: no such file")
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
