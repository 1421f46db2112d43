"""A data folder that is another one with new texts in one column of one split, such as a teacher's own targets.

Other splits and columns stay as they are. The folder is made in steps that are kept: a repeated call goes on where an
interrupted one was, and the manifest, without which nothing opens the folder, is written last of all.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cktk.data.manifest import MANIFEST, REWRITE_RECORD, TOKENIZER_FOLDER
from cktk.data.shards import DataFolder, Ids, Split, finished_shard, write_manifest, write_shard
from cktk.errors import DataError
from cktk.utils.files import (
    atomic_file,
    atomic_folder,
    is_temporary,
    read_json,
    sha256_file,
    sweep_temporaries,
    write_json,
)

#: Gives the new texts of some rows of the split, as token ids without special tokens.
Texts = Callable[[range], Sequence[Ids]]

#: Where the texts of unfinished shards wait.
_PARTS = "parts"


@dataclass(frozen=True)
class Rewrite:
    """What is to become of a folder: ``column`` of ``split`` gets new texts.

    ``drop_empty`` leaves out rows whose new text is empty. ``part_rows`` are made and kept at a time. ``made_by`` are
    the settings that decide the texts, as JSON values: they go into the manifest, and a folder is continued only under
    the same. ``notes`` go into the manifest, no more.
    """

    split: str
    column: str
    drop_empty: bool
    part_rows: int
    made_by: Mapping[str, Any]
    notes: Mapping[str, Any] = field(default_factory=dict)


def rewrite(
    data: DataFolder, dest: Path, job: Rewrite, texts: Texts, skipped: Callable[[int], None]
) -> dict[str, int] | None:
    """Write ``data`` with the new ``texts`` into the folder ``dest``, or go on with what an interrupted call left.

    Returns counts of rows: ``lines`` gone through, ``empty`` and ``dropped_empty`` texts; None where ``dest`` had been
    finished before. ``skipped`` is told how many rows were found done. Raises `DataError` where ``dest`` holds anything
    else, or was begun with other settings or data, and for an unknown split.
    """
    split = data.split(job.split)
    _begin(data, dest, job)
    if (dest / MANIFEST).exists():
        return None
    if not (dest / TOKENIZER_FOLDER).exists():
        with atomic_folder(dest / TOKENIZER_FOLDER) as folder:
            shutil.copytree(data.tokenizer_path, folder, dirs_exist_ok=True)
    for name in data.splits:
        if name != job.split:
            _take_over(data, name, dest)
    entries = [_shard(data, split, number, dest, job, texts, skipped) for number in range(len(split.shard_rows))]
    counts: Counter[str] = sum((Counter(entry.pop("counts")) for entry in entries), Counter())
    rows = sum(entry["rows"] for entry in entries)
    if not rows:
        raise DataError(f"{dest}: all {counts['lines']} texts of split {job.split} are empty; look at the model")
    manifest: dict[str, Any] = read_json(data.path / MANIFEST)
    del manifest["cktk"]  # the version that writes is this one
    manifest["splits"][job.split] = {"shards": entries, "rows": rows, "counts": dict(counts)}
    manifest["rewritten"] = {"split": job.split, "column": job.column, **job.notes, **job.made_by}
    with suppress(FileNotFoundError):
        shutil.rmtree(dest / _PARTS)
    write_manifest(dest, manifest)
    return {name: counts[name] for name in ("lines", "empty", "dropped_empty")}


def _begin(data: DataFolder, dest: Path, job: Rewrite) -> None:
    """Make ``dest``, or make sure that it was begun as the same."""
    if dest.exists() and not dest.is_dir():
        raise DataError(f"--dest-dir {dest}: is a file; choose a folder")
    now = {
        "data": sha256_file(data.path / MANIFEST),
        "split": job.split,
        "column": job.column,
        "drop_empty": job.drop_empty,
        **job.made_by,
    }
    if (dest / REWRITE_RECORD).exists():
        before = read_json(dest / REWRITE_RECORD)
        for name in sorted({*before, *now}):
            if before.get(name) != now.get(name):
                difference = _difference(name, before.get(name), now.get(name))
                raise DataError(
                    f"--dest-dir {dest}: was made with {difference}; choose another folder, or remove this one"
                )
        sweep_temporaries(dest)
        return
    found = sorted(path.name for path in dest.iterdir() if not is_temporary(path)) if dest.exists() else []
    if found:
        raise DataError(f"--dest-dir {dest}: holds other data ({found[0]}); choose a new or empty folder")
    dest.mkdir(parents=True, exist_ok=True)
    write_json(dest / REWRITE_RECORD, now)


def _difference(name: str, before: Any, now: Any) -> str:
    """The first place where the settings ``before`` and ``now`` are not the same, in words."""
    if isinstance(before, dict) and isinstance(now, dict):
        key = next(key for key in sorted({*before, *now}) if before.get(key) != now.get(key))
        return _difference(f"{name} {key}", before.get(key), now.get(key))
    return f"{name} {before}, not {now}"


def _take_over(data: DataFolder, split: str, dest: Path) -> None:
    """Hard links to the files of a split, or copies where there can be none."""
    for entry in data.entries(split):
        for file in (*entry["sha256"], f"{entry['name']}.json"):
            if (dest / file).exists() or not (data.path / file).exists():
                continue
            try:
                os.link(data.path / file, dest / file)
            except OSError:
                with open(data.path / file, "rb") as stream, atomic_file(dest / file) as copy:
                    shutil.copyfileobj(stream, copy)


def _shard(
    data: DataFolder,
    split: Split,
    number: int,
    dest: Path,
    job: Rewrite,
    texts: Texts,
    skipped: Callable[[int], None],
) -> dict[str, Any]:
    """The manifest entry of shard ``number``, with its ``counts``; made if it is not there."""
    name = data.entries(job.split)[number]["name"]
    first, rows = sum(split.shard_rows[:number]), split.shard_rows[number]
    done = finished_shard(dest, name)
    if done is not None:
        skipped(rows)
        return done
    parts = dest / _PARTS
    parts.mkdir(exist_ok=True)
    made = []
    for start in range(0, rows, job.part_rows):
        stop = min(start + job.part_rows, rows)
        part = finished_shard(parts, f"{name}-{start}-{stop}")
        if part is None:
            new = {job.column: list(texts(range(first + start, first + stop)))}
            part = write_shard(parts, f"{name}-{start}-{stop}", new, data.vocab_size)
        else:
            skipped(stop - start)
        made.append(part)
    found = Split(parts, job.split, {job.column: "tokens"}, made, data.vocab_size)
    column = [found[row][job.column] for row in range(rows)]
    full = np.array([len(text) > 0 for text in column], bool)
    keep = full if job.drop_empty else np.ones_like(full)
    empty = int((~full).sum())
    counts = {"lines": rows, "empty": empty, "dropped_empty": empty if job.drop_empty else 0}
    columns = {**_columns(split, number, keep), job.column: [column[row] for row in np.flatnonzero(keep)]}
    entry = write_shard(dest, name, columns, data.vocab_size, {"counts": counts})
    for part in made:
        for file in (f"{part['name']}.json", *part["sha256"]):
            (parts / file).unlink()
    return entry


def _columns(split: Split, number: int, keep: Ids) -> dict[str, Sequence[Ids] | Ids]:
    """The columns of a shard, those rows that are kept."""
    texts, values, rows = split.shard(number), split.values_of(number), np.flatnonzero(keep)
    return {
        name: values[name][keep]
        if name in values
        else [texts[name].ids[texts[name].offsets[row] : texts[name].offsets[row + 1]] for row in rows]
        for name in split.columns
    }
