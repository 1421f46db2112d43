"""The teacher cache: a teacher's answers to every row of a data folder, so that training needs no teacher in memory.

The cache shard ``train-00000`` belongs to the data shard of that name. All numbers are little-endian:

- ``train-00000.rows``: a record of `ROW` for each data row, in their order;
- ``train-00000.ids`` (uint16 if the vocabulary has at most 65,536 entries, else uint32) and ``train-00000.logp``
  (float32): the targets, (scored positions, k);
- ``train-00000.encoder-3`` and so on: the teacher's hidden state 3 of the encoder, (attended positions, width), in
  float32, or bfloat16 as its 16 bits.

Positions of a row are neighbours; rows stand in the order in which they were computed. ``train-00000.json`` is written
after these files and says that the shard is done; ``manifest.json`` is written last of all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from cktk.data.shards import DataFolder
from cktk.errors import ConfigError, DataError
from cktk.protocols import Batch, Side
from cktk.utils.files import read_json, sha256_file

SCHEMA = 1
MANIFEST = "manifest.json"
#: What a folder is to become; written first, so that a repeated command knows what it continues.
RECORD = "cache.json"
#: Configuration and generation settings of the teacher, so that a student can be shaped without it.
TEACHER_FOLDER = "teacher"

#: Of one data row: a fingerprint of what the models see of it, and its positions in the files of either side.
ROW = np.dtype(
    [("digest", "<u8"), ("encoder", "<i8"), ("encoder_rows", "<i8"), ("decoder", "<i8"), ("decoder_rows", "<i8")]
)
SIDES: tuple[Side, Side] = ("encoder", "decoder")

_AGAIN = "make it again with cktk-cache-teacher"


class Column(NamedTuple):
    """A file of a cache shard: ``width`` numbers of type ``dtype`` for each position of ``side`` (None: a data row)."""

    dtype: np.dtype[Any]
    side: Side | None
    width: int

    @property
    def bytes(self) -> int:
        """Bytes a position."""
        return self.dtype.itemsize * self.width


@dataclass(frozen=True)
class CacheKey:
    """What a cache holds, and of which teacher; caches of equal keys and data are the same.

    ``teacher`` is the fingerprint of its weights, ``width`` that of its states. ``rows`` are the settings of the task
    that decide what the models see of a data row.
    """

    teacher: str
    vocab_size: int
    width: int
    kind: Literal["top_k", "sampled"]
    k: int
    temperature: float
    seed: int | None
    precision: str
    states: Mapping[Side, tuple[int, ...]]
    states_dtype: Literal["bfloat16", "float32"]
    rows: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """The key as JSON values; equal keys give equal values."""
        values: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> CacheKey:
        """The inverse of `to_json`."""
        states = {side: tuple(layers) for side, layers in values["states"].items()}
        return cls(**{**values, "states": states})

    def digest(self) -> str:
        """A SHA-256 of the key."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    def columns(self) -> dict[str, Column]:
        """The files of a shard by the end of their names."""
        ids = np.dtype("<u2" if self.vocab_size <= 1 << 16 else "<u4")
        states = np.dtype("<u2" if self.states_dtype == "bfloat16" else "<f4")
        found = {
            "rows": Column(ROW, None, 1),
            "ids": Column(ids, "decoder", self.k),
            "logp": Column(np.dtype("<f4"), "decoder", self.k),
        }
        for side, layers in self.states.items():
            found |= {state_column(side, layer): Column(states, side, self.width) for layer in layers}
        return found

    def bytes(self, rows: int, positions: Mapping[Side, int]) -> int:
        """The size of a cache of ``rows`` data rows with so many ``positions`` a side."""
        columns = self.columns().values()
        return sum(column.bytes * (rows if column.side is None else positions[column.side]) for column in columns)


def state_column(side: Side, layer: int) -> str:
    """The end of the name of the file with that hidden state."""
    return f"{side}-{layer}"


def row_digests(batch: Batch) -> npt.NDArray[np.uint64]:
    """A fingerprint (B,) of each row of ``batch``: of its attended inputs, its decoder inputs and its labels.

    It depends neither on padding nor on the other rows.
    """
    sources, rows = (tensor.cpu() for tensor in (batch.inputs["input_ids"], batch.rows("encoder")))
    parts = [_by_row(sources, rows)]
    rows = batch.rows("decoder").cpu()
    if "decoder_input_ids" in batch.inputs:
        parts.append(_by_row(batch.inputs["decoder_input_ids"].cpu(), rows))
    parts.append(_by_row(batch.labels.cpu(), rows))
    digests = []
    for pieces in zip(*parts, strict=True):
        digest = hashlib.blake2b(digest_size=8)
        for piece in pieces:
            digest.update(len(piece).to_bytes(8, "little"))
            digest.update(piece.tobytes())
        digests.append(int.from_bytes(digest.digest(), "little"))
    return np.array(digests, np.uint64)


def _by_row(tokens: torch.Tensor, mask: torch.Tensor) -> list[npt.NDArray[np.int64]]:
    kept, counts = tokens.numpy()[mask.numpy()], mask.sum(dim=1).numpy()
    return np.split(kept, np.cumsum(counts)[:-1])


def shard_fingerprint(data: DataFolder, entry: Mapping[str, Any]) -> str:
    """What decides the content of a shard of ``data``, as a SHA-256: its files, and the tokenizer."""
    content = {"tokenizer": data.fingerprint, "rows": entry["rows"], "sha256": entry["sha256"]}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def finished_cache_shard(folder: Path, name: str, key: CacheKey, data: str) -> dict[str, Any] | None:
    """The entry of shard ``name`` if it is whole, with ``key`` and of the data ``data``; else None. Reads all of it."""
    try:
        entry: dict[str, Any] = read_json(folder / f"{name}.json")
        if entry["key"] != key.digest() or entry["data"] != data:
            return None
        check_sizes(folder, entry)
        if any(sha256_file(folder / file) != facts["sha256"] for file, facts in entry["files"].items()):
            return None
    except (DataError, KeyError, TypeError, AttributeError):
        return None
    return entry


def check_sizes(folder: Path, entry: Mapping[str, Any]) -> None:
    """Raise `DataError` unless the files of the shard ``entry`` are there with their sizes."""
    for file, facts in entry["files"].items():
        path = folder / file
        try:
            found = path.stat().st_size
        except OSError as error:
            raise DataError(f"{path}: file of the teacher cache is missing ({error.strerror}); {_AGAIN}") from error
        if found != facts["bytes"]:
            raise DataError(f"{path}: has {found} bytes instead of {facts['bytes']}; it is damaged: {_AGAIN}")


class TeacherCache:
    """A finished teacher cache.

    Opening checks the manifest and the size of every file, in O(shards); `verify` also checks the contents. Raises
    `DataError` naming the file if the folder is missing, unfinished or damaged.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        manifest = self.path / MANIFEST
        if not manifest.is_file():
            raise DataError(_why_not_cache(self.path))
        raw = read_json(manifest)
        if not isinstance(raw, dict) or raw.get("schema") != SCHEMA or "key" not in raw:
            raise DataError(f"{manifest}: not a teacher cache that this version of cktk reads; {_AGAIN}")
        try:
            self.key = CacheKey.from_json(raw["key"])
            self._shards: dict[str, list[dict[str, Any]]] = {name: list(found) for name, found in raw["splits"].items()}
            for entry in self.entries():
                check_sizes(self.path, entry)
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{manifest}: not a manifest of cktk-cache-teacher ({error!r}); {_AGAIN}") from error

    @property
    def splits(self) -> list[str]:
        """Names of the splits that are cached."""
        return list(self._shards)

    @property
    def teacher_path(self) -> Path:
        """The folder with the configuration of the teacher."""
        return self.path / TEACHER_FOLDER

    def entries(self, *splits: str) -> list[dict[str, Any]]:
        """The entries of the shards of ``splits`` (default: of all)."""
        return [entry for name in splits or self._shards for entry in self._shards[name]]

    def verify(self) -> None:
        """Compare the SHA-256 of every file with the manifest; reads everything. Raises `DataError`."""
        for entry in self.entries():
            for file, facts in entry["files"].items():
                if sha256_file(self.path / file) != facts["sha256"]:
                    raise DataError(f"{self.path / file}: checksum differs from the manifest's; {_AGAIN}")

    def check(self, data: DataFolder, splits: Sequence[str], rows: Mapping[str, Any]) -> None:
        """Raise unless the cache holds ``splits`` of ``data`` as a task with the settings ``rows`` shows them.

        `ConfigError` for a split that was not cached and for other settings, `DataError` for other data.
        """
        for split in splits:
            if split not in self._shards:
                raise ConfigError(
                    f"the teacher cache {self.path} has no split {split} (but {', '.join(self._shards)}); add it with "
                    f"cktk-cache-teacher --splits {split}"
                )
            if [entry["data"] for entry in self._shards[split]] != _fingerprints(data, split):
                raise DataError(
                    f"the teacher cache {self.path} is stale: the split {split} of {data.path} is not what it was made "
                    "from; run cktk-cache-teacher again"
                )
        now = json.loads(json.dumps(dict(rows)))
        for name in sorted({*now, *self.key.rows}):
            if self.key.rows.get(name) != now.get(name):
                raise ConfigError(
                    f"the teacher cache {self.path} is stale: it was made with {name.replace('_', '-')} = "
                    f"{self.key.rows.get(name)}, now {name.replace('_', '-')} = {now.get(name)}; give the same, or run "
                    "cktk-cache-teacher into another folder"
                )

    def check_teacher(self, fingerprint: str, name: str) -> None:
        """Raise `ConfigError` unless the teacher that the user calls ``name`` is the one that was cached."""
        if fingerprint != self.key.teacher:
            raise ConfigError(
                f"the teacher cache {self.path} is stale: it was made from another teacher than {name}; run "
                "cktk-cache-teacher with that one into another folder, or leave out --teacher"
            )


def _fingerprints(data: DataFolder, split: str) -> list[str] | None:
    return [shard_fingerprint(data, entry) for entry in data.entries(split)] if split in data.splits else None


def _why_not_cache(path: Path) -> str:
    if not path.is_dir():
        return f"{path}: no such teacher cache; make it with cktk-cache-teacher"
    if (path / RECORD).is_file():
        return f"{path}: the teacher cache was not finished ({MANIFEST} is missing); run the same command again"
    return f"{path}: not a teacher cache ({MANIFEST} is missing); make one with cktk-cache-teacher"
