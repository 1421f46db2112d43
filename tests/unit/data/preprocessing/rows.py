"""Tables and data sets of a few rows, and what sources make of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets

from cktk.data.preprocessing.configs import (
    DatasetsSourceConfig,
)
from cktk.data.preprocessing.layout_configs import (
    GlueDataConfig,
)
from cktk.data.preprocessing.layouts import Layout, glue


def glue_task(name: str, **more: Any) -> Layout:
    return glue(GlueDataConfig(glue_task=name, **more))


def table(path: Path, *lines: str) -> str:
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return str(path)


def saved(path: Path) -> DatasetsSourceConfig:
    return DatasetsSourceConfig(dataset=str(path))


def save_classes(path: Path, names: list[str], labels: list[int], nested: bool = False) -> None:
    """Save a dataset with ``labels`` that count in ``names``, as ``label`` or as ``y.label``."""
    text, classes = datasets.Value("string"), datasets.ClassLabel(names=names)
    features: dict[str, Any] = {"premise": text, "hypothesis": text}
    features |= {"y": {"label": classes}} if nested else {"label": classes}
    cells = [{"y": {"label": label}} if nested else {"label": label} for label in labels]
    rows = [{"premise": "a", "hypothesis": "b", **cell} for cell in cells]
    datasets.Dataset.from_list(rows, features=datasets.Features(features)).save_to_disk(str(path))


def read(source: Any) -> dict[str, list[tuple[Any, ...]]]:
    """All rows by split; what `count` says has to be true."""
    found = {split: list(source.rows(split)) for split in source.splits()}
    assert all(source.count(split) in (None, len(rows)) for split, rows in found.items())
    return found
