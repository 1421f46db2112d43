"""Where rows come from: the contract of a source, and plain text files side by side."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Protocol, runtime_checkable

from cktk.data.preprocessing.configs import TextSourceConfig
from cktk.data.preprocessing.layouts import SPLITS, Column, Layout, Row
from cktk.data.sources.text import count_lines, read_lines
from cktk.data.sources.values import names_of
from cktk.errors import ConfigError, DataError


class Source(Protocol):
    """Rows in splits. Constructed as ``Source(config, layout)``; a row has a cell for each column of the layout."""

    def splits(self) -> list[str]:
        """The splits that there are, some of the layout's, in its order."""
        ...

    def count(self, split: str) -> int | None:
        """Check that ``split`` can be read, and return its number of rows if that is cheap to know."""
        ...

    def rows(self, split: str) -> Iterator[Row]:
        """The rows of ``split`` from the first to the last, holding only a few at a time in memory."""
        ...


@runtime_checkable
class NamesLabels(Protocol):
    """A source whose data may say which classes there are."""

    def label_names(self) -> tuple[str, ...] | None:
        """The names of the classes in the order of their numbers; None where the data does not say."""
        ...


def open_source(make: Callable[[Layout], Source], layout: Layout) -> tuple[Source, Layout]:
    """The source of ``layout``, and the layout with its labels.

    Where the user declares none, they are those that the data declares, or else those found in the train split.
    """
    source = make(layout)
    if layout.label is None or layout.labels is not None:
        return source, layout
    if isinstance(source, NamesLabels) and (declared := source.label_names()) is not None:
        layout = layout.with_labels(declared)
        return make(layout), layout
    if "train" not in source.splits():
        raise DataError("--label-names is needed: there is no train split to find the labels in")
    place = layout.columns.index(layout.label)
    layout = layout.with_labels(names_of(row[place] for row in source.rows("train")))
    return make(layout), layout


class TextSource:
    """Text files side by side, one for each column: ``PREFIX.NAME`` or ``PREFIX.NAME.gz``, line i of all is row i.

    Translations are in ``PREFIX.LANG``; for a language code such as ``en_XX`` the file may also end in ``.en``.
    """

    def __init__(self, config: TextSourceConfig, layout: Layout) -> None:
        self._columns = layout.columns
        prefixes = {split: getattr(config, f"{split}_prefix") for split in SPLITS}
        self._files = {
            split: [_find(split, prefix, column) for column in layout.columns]
            for split, prefix in prefixes.items()
            if prefix is not None
        }
        if not self._files:
            raise ConfigError("no text to prepare: give --train-prefix, --valid-prefix or --test-prefix (or --source)")

    def splits(self) -> list[str]:
        return list(self._files)

    def count(self, split: str) -> int:
        """Lines of ``split``; raises `DataError` if its files have different numbers of lines, or none."""
        first, *others = [path for path in self._files[split] if path is not None]
        lines = {path: count_lines(path) for path in (first, *others)}
        for path, number in lines.items():
            if not number:
                raise DataError(f"{path}: the file is empty; give a file with text")
        for path in others:
            if lines[path] != lines[first]:
                raise DataError(
                    f"{first} has {lines[first]} lines but {path} has {lines[path]}; line i of one file must belong "
                    "to line i of the other"
                )
        return lines[first]

    def rows(self, split: str) -> Iterator[Row]:
        files = self._files[split]
        present = [path for path in files if path is not None]
        # Lines are text already: in most layouts nothing has to be read from them.
        plain = len(present) == len(files) and all(column.values is None for column in self._columns)
        for number, cells in enumerate(zip_longest(*map(read_lines, present)), 1):
            if None in cells:
                names = " and ".join(map(str, present))
                raise DataError(f"{names}: changed while they were read; run the command again")
            yield cells if plain else self._read(cells, files, number)

    def _read(self, cells: tuple[str, ...], files: list[Path | None], number: int) -> Row:
        following = iter(cells)
        return tuple(
            column.absent if path is None else column.read(next(following), f"{path}:{number}")
            for column, path in zip(self._columns, files, strict=True)
        )


def _find(split: str, prefix: str, column: Column) -> Path | None:
    endings = ["", ".gz"] if column.bare and column.given is None else []
    endings += [f".{name}{zipped}" for name in column.names for zipped in ("", ".gz")]
    tried = [Path(f"{prefix}{ending}") for ending in endings]
    for path in tried:
        if path.is_file():
            return path
    if column.may_lack(split):
        return None
    present = _endings(prefix)
    mend = f"; choose with {column.flag} among: {', '.join(present)}" if present else ""
    raise DataError(f"--{split}-prefix {prefix}: no such file: {' or '.join(map(str, tried))}{mend}")


def _endings(prefix: str) -> list[str]:
    """The names of columns for which there are files."""
    start = f"{os.path.basename(prefix)}."
    files = [path for found in glob.glob(f"{glob.escape(prefix)}.*") if (path := Path(found)).is_file()]
    names = {path.name.removeprefix(start).removesuffix(".gz") for path in files}
    return sorted(names - {"gz"})
