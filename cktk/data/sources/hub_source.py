"""Rows through Hugging Face `datasets`: a folder that it saved, or a name on the hub."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets

from cktk.data.preprocessing.configs import DatasetsSourceConfig
from cktk.data.preprocessing.layouts import Column, Layout, Row
from cktk.data.sources import columns
from cktk.data.sources.values import Labels
from cktk.errors import DataError
from cktk.utils.words import unknown_name

_USUAL_NAMES = {"train": "train", "valid": "validation", "test": "test"}
_BATCH_ROWS = 4096


class DatasetsSource:
    """Splits of a dataset; its rows stay on disk (memory-mapped) and are read in batches.

    Wmt-style rows, ``{"translation": {"ro": ..., "en": ...}}``, are found without naming columns. Numbers in a column
    of ``ClassLabel`` stand for the names that it declares.
    """

    def __init__(self, config: DatasetsSourceConfig, layout: Layout) -> None:
        self._name = config.dataset
        self._columns = layout.columns
        self._label = layout.label
        found = _load(config.dataset, config.dataset_config or _configuration(config.dataset, layout))
        published = layout.published.hub_splits if layout.published is not None else {}
        self._splits: dict[str, datasets.Dataset] = {}
        for split in layout.splits:
            given = getattr(config, f"{split}_split", None)
            if given is not None and given not in found:
                raise DataError(f"--{split}-split: {unknown_name(given, map(str, found))} in {config.dataset}")
            names = [given] if given is not None else [published.get(split), _USUAL_NAMES.get(split)]
            if name := next((name for name in names if name in found), None):
                self._splits[split] = found[name]
        if not self._splits:
            raise DataError(
                f"--dataset {config.dataset}: none of the splits train, validation and test; choose with "
                f"--train-split, --valid-split and --test-split among: {', '.join(map(str, found))}"
            )

    def splits(self) -> list[str]:
        return list(self._splits)

    def label_names(self) -> tuple[str, ...] | None:
        """The classes that the label column of the train split (else of the first) declares, in their order."""
        if self._label is None:
            return None
        split = "train" if "train" in self._splits else next(iter(self._splits))
        names = _class_names(self._splits[split].features, self._path(self._label, split))
        return None if names is None else tuple(dict.fromkeys(names))

    def count(self, split: str) -> int:
        """Rows of ``split``; raises `DataError` if there are none, or a column is missing."""
        data = self._splits[split]
        next(self.rows(split))
        return len(data)

    def rows(self, split: str) -> Iterator[Row]:
        data = self._splits[split]
        where = f"--dataset {self._name}, {split} split"
        paths = [self._path(column, split) for column in self._columns]
        readers = [
            _named(column, _class_names(data.features, path), where)
            for column, path in zip(self._columns, paths, strict=True)
        ]
        names = list({path[0] for path in paths if path is not None})
        number = 0
        for batch in data.select_columns(names).iter(_BATCH_ROWS):
            for cells in zip(*(batch[name] for name in names), strict=True):
                number += 1
                row = dict(zip(names, cells, strict=True))
                yield columns.read_row(readers, paths, row, f"{where}, row {number}")

    def _path(self, column: Column, split: str) -> columns.Path | None:
        """Where ``column`` is in rows of ``split``; raises `DataError` if it is missing, or there are no rows."""
        data = self._splits[split]
        if not len(data):
            raise DataError(f"--dataset {self._name}: its {split} split is empty")
        return columns.find_column(column, data[0], split, f"--dataset {self._name}, {split} split")


def _class_names(features: Any, path: columns.Path | None) -> tuple[str, ...] | None:
    """The names that the feature at ``path`` declares; None where it is no ``ClassLabel``."""
    for name in path or ():
        features = features.get(name) if isinstance(features, Mapping) else None
    return tuple(name.strip() for name in features.names) if isinstance(features, datasets.ClassLabel) else None


def _named(column: Column, names: tuple[str, ...] | None, where: str) -> Column:
    """``column`` with cells that count in ``names``."""
    if names is None or not isinstance(column.values, Labels):
        return column
    return replace(column, values=column.values.counted_in(names, where))


def _configuration(name: str, layout: Layout) -> str | None:
    """The configuration that holds a published task, if ``name`` is its collection on the hub (nyu-mll/glue)."""
    return layout.published.name if layout.published is not None and name.rpartition("/")[2] == "glue" else None


def _load(name: str, config: str | None) -> datasets.DatasetDict:
    """All splits of a saved folder or a hub name; a folder that holds a single split counts as ``train``."""
    folder = Path(name)
    datasets.disable_progress_bars()
    try:
        if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
            loaded = datasets.load_from_disk(name)
        else:
            loaded = datasets.load_dataset(name, config)
    except Exception as error:  # datasets raises many kinds: its own, of the network, of parsers
        raise DataError(f"--dataset {name}: cannot be loaded ({type(error).__name__}: {error})") from error
    if isinstance(loaded, datasets.Dataset):
        return datasets.DatasetDict(train=loaded)
    if not isinstance(loaded, datasets.DatasetDict):
        raise DataError(f"--dataset {name}: holds a {type(loaded).__name__}; save it as a Dataset or DatasetDict")
    return loaded
