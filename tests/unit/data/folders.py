"""Small data folders for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from cktk.data.shards import DataFolder, write_manifest, write_shard

BART_LIKE = {"en": {"prefix": [0], "suffix": [2]}, "fr": {"prefix": [0], "suffix": [2, 7]}}


def content(splits: dict[str, list[Any]], vocab_size: int = 100, **changes: Any) -> dict[str, Any]:
    """What `write_manifest` takes, for splits of finished shards."""
    made = {
        "languages": {"source": "en", "target": "fr"},
        "columns": ["source", "target"],
        "tokenizer": {"fingerprint": "f" * 64, "vocab_size": vocab_size, "pad": 1, "bos": 0, "eos": 2, "unk": 3},
        "templates": {"source": BART_LIKE, "target": BART_LIKE},
        "splits": {name: {"shards": shards, "rows": sum(s["rows"] for s in shards)} for name, shards in splits.items()},
    }
    return {**made, **changes}


def make(folder: Path, shard_rows: list[list[list[int]]], vocab_size: int = 100, **changes: Any) -> DataFolder:
    """A folder whose split train has, for each row of ids, itself as source and its reverse as target."""
    entries = []
    for number, rows in enumerate(shard_rows):
        source = [np.array(row, np.int64) for row in rows]
        columns = {"source": source, "target": [row[::-1] for row in source]}
        entries.append(write_shard(folder, f"train-{number:05d}", columns, vocab_size))
    write_manifest(folder, content({"train": entries}, vocab_size, **changes))
    return DataFolder(folder)
