"""The TSV files of https://gluebenchmark.com/tasks, a folder a task, with what is odd about them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from cktk.data.preprocessing.configs import GlueSourceConfig
from cktk.data.preprocessing.layouts import Layout, Row
from cktk.data.sources.tables import find_places, row_reader
from cktk.data.sources.text import count_lines, read_lines
from cktk.errors import ConfigError, DataError

_log = logging.getLogger(__name__)


class GlueSource:
    """Splits of a GLUE task from its folder.

    Rows that end before their text or label are left out with a warning: QQP is published with some. In test splits,
    where predictions are counted, they are an error. Cells behind text and label are not looked at.
    """

    def __init__(self, config: GlueSourceConfig, layout: Layout) -> None:
        if layout.published is None:
            raise ConfigError("--glue-dir holds a task of GLUE: say which with --task glue --glue-task NAME")
        self._columns = layout.columns
        self._headless = layout.published.headless
        files = {split: Path(config.glue_dir) / name for split, name in layout.published.files.items()}
        self._files = {split: path for split, path in files.items() if path.is_file()}
        if not self._files:
            names = ", ".join(path.name for path in files.values())
            raise DataError(f"--glue-dir {config.glue_dir}: holds no file of {layout.published.title}: {names}")

    def splits(self) -> list[str]:
        return list(self._files)

    def count(self, split: str) -> int:
        """Lines of ``split``, the header aside; raises `DataError` for an empty file or a missing column."""
        if next(self._rows(split, warn=False), None) is None:
            raise DataError(f"{self._files[split]}: the file holds no rows; fetch it again")
        return count_lines(self._files[split]) - (split not in self._headless)

    def rows(self, split: str) -> Iterator[Row]:
        return self._rows(split, warn=True)

    def _rows(self, split: str, warn: bool) -> Iterator[Row]:
        path = self._files[split]
        records = (line.split("\t") for line in read_lines(path))
        if (first := next(records, None)) is None:
            return
        headless = split in self._headless
        places = find_places(self._columns, [] if headless else first, len(first), split, path)
        needed = 1 + max(place for place in places if place is not None)
        read = row_reader(self._columns, places, path)
        if headless:
            yield read(first, 1)
        damaged = []
        for number, cells in enumerate(records, 2):
            if len(cells) >= needed:
                yield read(cells, number)
            elif split.startswith("test"):
                raise DataError(
                    f"{path}:{number}: ends with column {len(cells)}, before its text; fetch the file again"
                )
            else:
                damaged.append(number)
        if damaged and warn:
            _log.warning(
                "%s: %d damaged rows are left out, the first of them in line %d", path, len(damaged), damaged[0]
            )
