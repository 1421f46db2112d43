"""Writing a teacher cache: shard by shard, each whole or not at all, so that an interrupted one can be continued."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

import cktk
from cktk.data.teacher_cache.reader import MANIFEST, RECORD, ROW, SCHEMA, SIDES, CacheKey, row_digests, state_column
from cktk.errors import CktkError, ConfigError
from cktk.protocols import Batch, ModelOutput, Side
from cktk.utils.files import atomic_file, is_temporary, read_json, sweep_temporaries, write_json

Entry = dict[str, Any]


def prepare_cache(folder: Path, key: CacheKey) -> None:
    """Make ``folder`` the beginning of a cache of ``key``, or see that it is one already.

    Raises `ConfigError` for a folder that holds something else, or a cache of another key.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--cache-dir {folder}: is a file; choose a folder")
    found = sorted(path.name for path in folder.iterdir() if not is_temporary(path)) if folder.exists() else []
    if found and RECORD not in found:
        raise ConfigError(f"--cache-dir {folder}: holds other data ({found[0]}); choose a new or empty folder")
    if found:
        sweep_temporaries(folder)
        _refuse_other_key(folder, key)
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / RECORD, {"schema": SCHEMA, "key": key.to_json()})


def _refuse_other_key(folder: Path, key: CacheKey) -> None:
    recorded = read_json(folder / RECORD)
    before = recorded.get("key") if isinstance(recorded, dict) and recorded.get("schema") == SCHEMA else None
    if not isinstance(before, dict) or not isinstance(before.get("rows"), dict):
        raise ConfigError(f"--cache-dir {folder}: {RECORD} is not of this version of cktk; choose another folder")
    flat, now = ({**values, "rows": None, **values["rows"]} for values in (before, key.to_json()))
    for name in sorted({*flat, *now}):
        if flat.get(name) != now.get(name):
            words = (
                "from another teacher"
                if name == "teacher"
                else f"with {name.replace('_', '-')} = {flat.get(name)}, not {now.get(name)}"
            )
            raise ConfigError(f"--cache-dir {folder}: was made {words}; choose another folder, or remove this one")


def write_cache_manifest(folder: Path, key: CacheKey, splits: Mapping[str, list[Entry]]) -> None:
    """Write ``manifest.json``, which makes ``folder`` a teacher cache of ``splits`` and of those that it has already.

    Each split holds the entries of its shards, in order. To be called last.
    """
    path = folder / MANIFEST
    before = read_json(path)["splits"] if path.is_file() else {}
    write_json(path, {"schema": SCHEMA, "cktk": cktk.__version__, "key": key.to_json(), "splits": {**before, **splits}})


@contextmanager
def cache_shard(folder: Path, name: str, key: CacheKey, data: str, first: int, rows: int) -> Iterator[ShardWriter]:
    """Write the cache shard ``name`` of the data rows ``first`` .. ``first + rows - 1``, fingerprint ``data``.

    Inside, every row has to be given to `ShardWriter.add` once. The files get their names when all is written, and
    after them ``<name>.json``; an error inside leaves nothing.
    """
    with ExitStack() as stack:
        columns = key.columns()
        files = {end: _Hashed(stack.enter_context(atomic_file(folder / f"{name}.{end}"))) for end in columns}
        writer = ShardWriter(key, files, first, rows)
        yield writer
        writer.finish()
    facts = {f"{name}.{end}": file.facts() for end, file in files.items()}
    entry = {"name": name, "rows": rows, "positions": writer.positions, "key": key.digest(), "data": data}
    write_json(folder / f"{name}.json", {**entry, "files": facts})


class _Hashed:
    """A file whose checksum is taken as it is written."""

    def __init__(self, stream: IO[Any]) -> None:
        self._stream = stream
        self._digest = hashlib.sha256()
        self._bytes = 0

    def write(self, array: npt.NDArray[Any]) -> None:
        content = np.ascontiguousarray(array)
        if not content.size:
            return
        self._stream.write(content.data)
        self._digest.update(content.data)
        self._bytes += content.nbytes

    def facts(self) -> dict[str, Any]:
        return {"bytes": self._bytes, "sha256": self._digest.hexdigest()}


class ShardWriter:
    """Takes what the teacher says about batches of a shard's rows, in any order, and appends it to the files."""

    def __init__(self, key: CacheKey, files: Mapping[str, _Hashed], first: int, rows: int) -> None:
        self.positions: dict[Side, int] = dict.fromkeys(SIDES, 0)
        self._key = key
        self._files = files
        self._first = first
        self._rows = np.zeros(rows, ROW)
        self._seen = np.zeros(rows, bool)

    def add(self, batch: Batch, output: ModelOutput) -> None:
        """Append ``output``, the teacher's answer to ``batch``; raises `CktkError` if it is not finite."""
        if output.targets is None:
            raise ValueError("a teacher cache holds the teacher's targets")
        at = np.array(batch.ids) - self._first
        if at.min() < 0 or at.max() >= len(self._rows) or self._seen[at].any():
            raise ValueError(f"the task shows rows twice or of another shard, among {batch.ids}")
        self._seen[at] = True
        self._rows["digest"][at] = row_digests(batch)
        for side in SIDES:
            counts = batch.rows(side).sum(dim=1).cpu().numpy()
            ends = self.positions[side] + np.cumsum(counts)
            self._rows[side][at], self._rows[f"{side}_rows"][at] = ends - counts, counts
            self.positions[side] = int(ends[-1])
        self._write("ids", output.targets.ids, batch)
        self._write("logp", output.targets.log_probs.float(), batch)
        for side, layers in self._key.states.items():
            for layer in layers:
                self._write(state_column(side, layer), output.hidden[side, layer], batch)

    def finish(self) -> None:
        """Write the rows' records, once all rows are there."""
        if not self._seen.all():
            raise ValueError(f"the task leaves out row {self._first + int(np.argmin(self._seen))}")
        self._files["rows"].write(self._rows)

    def _write(self, name: str, values: Tensor, batch: Batch) -> None:
        column = self._key.columns()[name]
        if values.is_floating_point() and not bool(torch.isfinite(values).all()):
            raise CktkError(
                f"the teacher's {'probabilities' if name == 'logp' else f'state {name}'} of the batch that begins with "
                f"row {batch.ids[0]} are not finite; leave out --fp16, or use another teacher"
            )
        if name not in ("ids", "logp") and self._key.states_dtype == "bfloat16":
            values = values.to(torch.bfloat16).view(torch.int16)
        found = values.cpu().numpy()
        if found.shape[0] and found.shape[1] != column.width:
            raise ValueError(f"{name}: {found.shape[1]} values a position instead of {column.width}")
        # The bits of bfloat16 go as they are, ids and float32 by value.
        self._files[name].write(found.view(column.dtype) if found.dtype == np.int16 else found.astype(column.dtype))
