"""The data folder: binarised text in memory-mapped shards, and a manifest that says what they hold.

A shard ``train-00000`` has, for each column of texts, ``train-00000.<column>.bin`` (token ids, uint16 if the vocabulary
has at most 65,536 entries, else uint32) and ``train-00000.<column>.idx`` (int64 offsets, rows + 1), for each column of
values ``train-00000.<column>.bin`` alone (int64 or float64, one a row), all little-endian. Its ``train-00000.json`` is
written after them and says that the shard is done; ``manifest.json`` is written last of all. Columns of texts hold
untruncated ids without special tokens: templates and truncation are applied when batches are made.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

import cktk
from cktk.data.manifest import (
    AGAIN,
    IDS,
    MANIFEST,
    OFFSET,
    REWRITE_RECORD,
    SCHEMA,
    TOKENIZER_FOLDER,
    VALUES,
    Kind,
    Manifest,
    check_sizes,
)
from cktk.errors import DataError
from cktk.protocols import Template
from cktk.utils.files import atomic_file, read_json, sha256_file, write_json
from cktk.utils.words import unknown_name

Role = Literal["source", "target"]
Ids = npt.NDArray[Any]

# Each mapped file holds a descriptor and a shard has two a column; a corpus may have more shards than a process
# may have descriptors.
_OPEN_SHARDS = 64


def write_shard(
    folder: Path,
    name: str,
    columns: Mapping[str, Sequence[Ids] | Ids],
    vocab_size: int,
    extras: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write the rows of ``columns`` as shard ``name`` of ``folder`` and return its manifest entry.

    A column of texts is a list with one array of token ids a row, a column of values one array (rows) of int64 or
    float64; all columns have equally many rows. The entry, and what ``extras`` add to it, is also kept as
    ``<name>.json``, after the shard's other files. Raises `DataError` for unequal columns and for ids outside of
    ``0 <= id < vocab_size``.
    """
    rows = {column: len(values) for column, values in columns.items()}
    if len(set(rows.values())) != 1:
        raise DataError(f"{folder / name}: the columns of a shard need equally many rows, not {rows}")
    dtype = "uint16" if vocab_size <= 1 << 16 else "uint32"
    entry: dict[str, Any] = {"name": name, "rows": min(rows.values()), "tokens": {}, "dtype": dtype, "sha256": {}}
    kinds: dict[str, Kind] = {}
    for column, values in columns.items():
        if isinstance(values, np.ndarray):
            kinds[column] = "number" if values.dtype.kind == "f" else "integer"
            files = {"bin": values.astype(VALUES[kinds[column]])}
        else:
            ids, offsets = _joined(values, vocab_size, f"{folder / name}: column {column}")
            entry["tokens"][column] = len(ids)
            files = {"bin": ids.astype(IDS[dtype]), "idx": offsets}
        for suffix, array in files.items():
            file = f"{name}.{column}.{suffix}"
            with atomic_file(folder / file) as stream:
                stream.write(array.data)
            entry["sha256"][file] = hashlib.sha256(array.data).hexdigest()
    if kinds:
        entry["values"] = kinds
    entry |= extras or {}
    write_json(folder / f"{name}.json", entry)
    return entry


def _joined(rows: Sequence[Ids], vocab_size: int, where: str) -> tuple[Ids, Ids]:
    """The ids of all rows end to end, and where each begins and ends."""
    offsets = np.zeros(len(rows) + 1, OFFSET)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    ids = np.concatenate([np.empty(0, np.int64), *rows], dtype=np.int64)
    if ids.size and not 0 <= ids.min() <= ids.max() < vocab_size:
        raise DataError(
            f"{where} holds token ids from {ids.min()} to {ids.max()}, "
            f"outside of the vocabulary of {vocab_size}; use the tokenizer that the vocabulary belongs to"
        )
    return ids, offsets


def finished_shard(folder: Path, name: str) -> dict[str, Any] | None:
    """The manifest entry of shard ``name`` if it was written completely (its files have their sizes), else None."""
    try:
        entry: dict[str, Any] = read_json(folder / f"{name}.json")
        check_sizes(folder, entry)
    except (DataError, KeyError, TypeError, AttributeError):
        return None
    return entry


def write_manifest(folder: Path, content: Mapping[str, Any]) -> None:
    """Write ``manifest.json``, which makes ``folder`` a data folder; to be called last.

    ``content`` holds ``languages`` (of the columns of texts, as far as they are known), ``columns``, ``tokenizer``,
    ``templates`` (by role and language, "" where it is not known) and ``splits``, and may hold ``task``, ``kinds``
    (`Kind` by column), ``labels``, ``benchmark`` and ``pair_template``; schema and version are added here. Each split
    holds ``shards`` (entries of `write_shard`) and ``rows``, and may hold more. What could not be opened again is
    refused with `DataError`.
    """
    manifest = {"schema": SCHEMA, "cktk": cktk.__version__, **content}
    Manifest.parse(folder, manifest)
    write_json(folder / MANIFEST, manifest)


class DataFolder:
    """A folder made by cktk-preprocess for ``task``.

    ``columns`` are of `Kind` ``kinds``; texts have ``languages``, "" where they are not known. Integers are -1 and
    numbers NaN where a value is not known; ``labels`` names the integers 0, 1, .. of a label column, ``benchmark`` the
    published task that the data is (`cktk.data.glue.GLUE_TASKS`). ``pair_template`` is there where texts are joined.
    Opening checks the manifest and the size of every file, in O(shards); `verify` also checks the contents. Raises
    `DataError` naming the file if the folder is missing, unfinished or damaged.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        if not (self.path / MANIFEST).is_file():
            raise DataError(_why_not_data(self.path))
        manifest = Manifest.parse(self.path, read_json(self.path / MANIFEST))
        self.task = manifest.task
        self.languages = manifest.languages
        self.columns = manifest.columns
        self.kinds = manifest.kinds
        self.labels = manifest.labels
        self.benchmark = manifest.benchmark
        self.pair_template = manifest.pair_template
        self.templates = manifest.templates
        self.tokenizer_path = self.path / TOKENIZER_FOLDER
        self.fingerprint: str = manifest.tokenizer["fingerprint"]
        self.vocab_size: int = manifest.tokenizer["vocab_size"]
        self.pad: int = manifest.tokenizer["pad"]
        self.bos: int | None = manifest.tokenizer["bos"]
        self.eos: int = manifest.tokenizer["eos"]
        self.unk: int | None = manifest.tokenizer["unk"]
        self._shards = manifest.shards

    @property
    def splits(self) -> list[str]:
        """Names of the splits, in the order in which they were written."""
        return list(self._shards)

    def split(self, name: str) -> Split:
        """The rows of split ``name``; raises `DataError` naming those present."""
        if name not in self._shards:
            raise DataError(f"{self.path}: no such split: {unknown_name(name, self._shards)}")
        return Split(self.path, name, self.kinds, self._shards[name], self.vocab_size)

    def entries(self, name: str) -> list[dict[str, Any]]:
        """The manifest's entries of the shards of split ``name``, in the order of their rows."""
        return [dict(entry) for entry in self._shards[name]]

    def template(self, role: Role, lang: str = "") -> Template:
        """What goes around a text of language ``lang`` ("": not known) in the place of the source or the target."""
        if lang not in self.templates[role]:
            present = ", ".join(self.templates[role]) or "(none)"
            raise DataError(f"{self.path}: no {role} language {lang!r}; present: {present}")
        return self.templates[role][lang]

    def verify(self) -> None:
        """Compare the SHA-256 of every shard file with the manifest; reads everything. Raises `DataError`."""
        for entries in self._shards.values():
            for entry in entries:
                for file, expected in entry["sha256"].items():
                    if sha256_file(self.path / file) != expected:
                        raise DataError(f"{self.path / file}: checksum differs from the manifest's; {AGAIN}")


def _why_not_data(path: Path) -> str:
    if not path.is_dir():
        return f"{path}: no such data folder; make it with cktk-preprocess"
    if (path / REWRITE_RECORD).is_file():
        return f"{path}: was not finished ({MANIFEST} is missing); run the same cktk-generate --dest-dir again"
    if any(path.glob("*.idx")):
        return f"{path}: preprocessing was not finished ({MANIFEST} is missing); run the same cktk-preprocess again"
    return f"{path}: not a data folder ({MANIFEST} is missing); make one with cktk-preprocess"


class Column(NamedTuple):
    """A column of texts: ``ids`` of all rows end to end, row i those from ``offsets[i]`` to ``offsets[i + 1]``."""

    ids: Ids
    offsets: npt.NDArray[np.int64]


class _Mapped(NamedTuple):
    """The files of one shard."""

    texts: dict[str, Column]
    values: dict[str, npt.NDArray[Any]]


class Split:
    """The rows of one split, addressed 0 .. len - 1 over all its shards.

    Files are mapped when first used, and only a few shards at a time; a copy sent to another process maps its own.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        kinds: Mapping[str, Kind],
        entries: Sequence[Mapping[str, Any]],
        vocab_size: int,
    ) -> None:
        self.name = name
        self.columns = tuple(kinds)
        self.kinds = dict(kinds)
        self.shard_rows: list[int] = [int(entry["rows"]) for entry in entries]
        self._folder = folder
        self._entries = list(entries)
        self._vocab_size = vocab_size
        self._starts = np.concatenate([[0], np.cumsum(self.shard_rows, dtype=np.int64)])
        self._open: OrderedDict[int, _Mapped] = OrderedDict()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Row ``index`` by column: token ids (a read-only view), or a value as numpy's scalar.

        Raises `DataError` if the shard is damaged.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of a split of {len(self)} rows")
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        at = index - int(self._starts[shard])
        row: dict[str, Any] = {name: values[at] for name, values in self.values_of(shard).items()}
        for name, column in self.shard(shard).items():
            start, stop = int(column.offsets[at]), int(column.offsets[at + 1])
            ids = column.ids[start:stop]
            if not 0 <= start <= stop <= len(column.ids) or (ids.size and ids.max() >= self._vocab_size):
                raise self._damaged(shard, name, f"row {at} does not hold token ids of the vocabulary")
            row[name] = ids
        return row

    def lengths(self, column: str, start: int, stop: int) -> npt.NDArray[np.int64]:
        """Numbers of tokens of rows ``start`` .. ``stop - 1`` in ``column``, from the offsets alone."""
        parts = [np.empty(0, np.int64)]
        for shard, first, end in self._parts(start, stop):
            part = np.diff(self.shard(shard)[column].offsets[first : end + 1])
            if part.min() < 0:
                raise self._damaged(shard, column, "offsets decrease")
            parts.append(part)
        return np.concatenate(parts)

    def values(self, column: str, start: int, stop: int) -> npt.NDArray[Any]:
        """The values (int64 or float64) of rows ``start`` .. ``stop - 1`` in the value column ``column``."""
        parts = [self.values_of(shard)[column][first:end] for shard, first, end in self._parts(start, stop)]
        return np.concatenate([np.empty(0, VALUES[self.kinds[column]]), *parts])

    def _parts(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Rows ``start`` .. ``stop - 1`` by shard: its number, and the rows of it, first and behind the last."""
        shard = int(np.searchsorted(self._starts, start, side="right")) - 1
        while start < stop:
            first, end = int(self._starts[shard]), min(stop, int(self._starts[shard + 1]))
            if start < end:
                yield shard, start - first, end - first
            start, shard = end, shard + 1

    def shard(self, shard: int) -> dict[str, Column]:
        """The columns of texts of shard number ``shard``, mapped (read-only)."""
        return self._mapped(shard).texts

    def values_of(self, shard: int) -> dict[str, npt.NDArray[Any]]:
        """The columns of values of shard number ``shard``, one item a row, mapped (read-only)."""
        return self._mapped(shard).values

    def _mapped(self, shard: int) -> _Mapped:
        if shard not in self._open:
            while len(self._open) >= _OPEN_SHARDS:
                self._open.popitem(last=False)
            texts = {column: self._map(shard, column) for column, kind in self.kinds.items() if kind == "tokens"}
            rows, name = self.shard_rows[shard], self._entries[shard]["name"]
            values = {
                column: _map_file(self._folder / f"{name}.{column}.bin", VALUES[kind], rows)
                for column, kind in self.kinds.items()
                if kind != "tokens"
            }
            self._open[shard] = _Mapped(texts, values)
        self._open.move_to_end(shard)
        return self._open[shard]

    def _map(self, shard: int, column: str) -> Column:
        entry = self._entries[shard]
        stem = self._folder / f"{entry['name']}.{column}"
        tokens = int(entry["tokens"][column])
        ids = _map_file(Path(f"{stem}.bin"), IDS[entry["dtype"]], tokens)
        offsets = _map_file(Path(f"{stem}.idx"), OFFSET, int(entry["rows"]) + 1)
        if offsets[0] != 0 or offsets[-1] != tokens:
            raise self._damaged(shard, column, f"offsets do not run from 0 to {tokens}")
        return Column(ids, offsets)

    def _damaged(self, shard: int, column: str, what: str) -> DataError:
        name = self._entries[shard]["name"]
        return DataError(f"{self._folder / name}.{column}: damaged shard ({what}); {AGAIN}")


def _map_file(path: Path, dtype: np.dtype[Any], items: int) -> Ids:
    if items == 0:  # an empty file cannot be mapped
        return np.empty(0, dtype)
    try:
        # A plain array over the mapping: slicing np.memmap itself is several times slower.
        return np.memmap(path, dtype, "r", shape=(items,)).view(np.ndarray)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be mapped ({error}); {AGAIN}") from error
