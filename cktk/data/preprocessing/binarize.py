"""Rows to shards: worker processes tokenise blocks of rows while this process reads and writes.

A shard holds ``shard_size`` consecutive rows of the input (fewer rows, where some are dropped). Its JSON file is
written last and keeps a hash of the text that it was made from, so that a repeated run skips the shards that are there,
and refuses to mix them with other text. At most two shards of text are in memory at a time.
"""

from __future__ import annotations

import hashlib
import itertools
import multiprocessing
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from cktk.data.preprocessing.blocks import Block, BlockEncoder, Encoded, Rules
from cktk.data.preprocessing.layouts import Column, Row
from cktk.data.shards import Ids, finished_shard, write_shard
from cktk.data.tokenization.encoder import Rows
from cktk.data.tokenization.encoder_spec import EncoderSpec
from cktk.errors import CktkError, DataError

#: Lines that a worker gets at a time.
BLOCK_LINES = 2048

#: Called with the number of lines that have just been dealt with.
Progress = Callable[[int], None]

#: Starts to encode a block; the result is fetched by calling what is returned.
Submit = Callable[[Block, bool], Callable[[], Encoded]]


class _Shard(NamedTuple):
    """A shard on its way: finished already (``entry``), or the results of its blocks to wait for."""

    name: str
    lines: int
    text: str
    entry: dict[str, Any] | None
    results: list[Callable[[], Encoded]]


class Binarizer:
    """Writes the shards of splits into ``folder``; ``submit`` comes from `block_workers`."""

    def __init__(self, folder: Path, submit: Submit, vocab_size: int, shard_size: int) -> None:
        self._folder = folder
        self._submit = submit
        self._vocab_size = vocab_size
        self._shard_size = shard_size

    def split(self, name: str, rows: Iterator[Row], progress: Progress) -> dict[str, Any]:
        """Write split ``name`` and return its manifest entry: ``shards``, ``rows`` and ``counts``."""
        entries: list[dict[str, Any]] = []
        ahead: _Shard | None = None
        for number in itertools.count():
            # The next shard's blocks are under way before this one's are collected, so workers never wait.
            shard = self._start(f"{name}-{number:05d}", name == "train", list(itertools.islice(rows, self._shard_size)))
            if ahead is not None:
                entries.append(self._finish(ahead, progress))
            ahead = shard
            if shard is None:
                break
        counts: Counter[str] = sum((Counter(entry.pop("counts")) for entry in entries), Counter())
        for entry in entries:
            del entry["text"]
        split = {"shards": entries, "rows": sum(entry["rows"] for entry in entries), "counts": dict(counts)}
        if not split["rows"]:
            raise DataError(f"{name}: no row remains ({counts['lines']} lines, all of them dropped); check the text")
        return split

    def _start(self, name: str, may_drop: bool, rows: list[Row]) -> _Shard | None:
        if not rows:
            if (self._folder / f"{name}.json").exists():
                raise _other_text(self._folder / name)
            return None
        columns = [list(cells) for cells in zip(*rows, strict=True)]
        text = _hash(columns)
        entry = finished_shard(self._folder, name)
        if entry is not None:
            if entry.get("text") != text:
                raise _other_text(self._folder / name)
            return _Shard(name, len(rows), text, entry, [])
        blocks = ([cells[at : at + BLOCK_LINES] for cells in columns] for at in range(0, len(rows), BLOCK_LINES))
        return _Shard(name, len(rows), text, None, [self._submit(block, may_drop) for block in blocks])

    def _finish(self, shard: _Shard, progress: Progress) -> dict[str, Any]:
        if shard.entry is not None:
            progress(shard.lines)
            return shard.entry
        found: dict[str, list[Rows | Ids]] = {}
        counts: Counter[str] = Counter()
        for result in shard.results:
            encoded = result()
            for column, part in encoded.columns.items():
                found.setdefault(column, []).append(part)
            counts += encoded.counts
            progress(encoded.counts["lines"])
        extras = {"text": shard.text, "counts": dict(counts)}
        columns = {column: _joined(parts) for column, parts in found.items()}
        return write_shard(self._folder, shard.name, columns, self._vocab_size, extras)


def _joined(parts: Sequence[Rows | Ids]) -> list[Ids] | Ids:
    """A column of a shard from those of its blocks: ids a row, or values end to end."""
    arrays = [part for part in parts if isinstance(part, np.ndarray)]
    return np.concatenate(arrays) if arrays else [row for part in parts for row in cast(Rows, part).split()]


def _hash(columns: Sequence[Sequence[Any]]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for cells in columns:
        digest.update("\0".join(map(str, cells)).encode() + b"\0\0")
    return digest.hexdigest()


def _other_text(shard: Path) -> DataError:
    return DataError(
        f"{shard}: was made from other text than is given now; choose another --dest-dir, or remove that folder"
    )


_worker: BlockEncoder


@contextmanager
def block_workers(
    spec: EncoderSpec,
    columns: Sequence[Column],
    rules: Rules,
    unknown: int | None,
    specials: Sequence[int],
    workers: int,
) -> Iterator[Submit]:
    """Processes that encode blocks; with one worker, this process does it itself when the result is fetched."""
    arguments = (spec, columns, rules, unknown, specials)
    if workers == 1:
        encode = BlockEncoder(spec.open(), columns, rules, unknown, specials)
        yield lambda block, may_drop: partial(encode, block, may_drop)
        return
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start_worker, arguments)
    try:
        yield lambda block, may_drop: partial(_fetch, pool.submit(_encode_in_worker, block, may_drop))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _fetch(future: Any) -> Encoded:
    try:
        return future.result()  # type: ignore[no-any-return]
    except BrokenProcessPool as error:
        raise CktkError(
            "a worker process was killed, perhaps for lack of memory; run the command again with fewer --workers "
            "or a smaller --shard-size (finished shards are kept)"
        ) from error


def _start_worker(
    spec: EncoderSpec, columns: Sequence[Column], rules: Rules, unknown: int | None, specials: Sequence[int]
) -> None:
    global _worker
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    _worker = BlockEncoder(spec.open(), columns, rules, unknown, specials)


def _exit_with_parent() -> None:
    # A killed parent cannot shut its pool down, and its workers would wait for blocks for ever.
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _encode_in_worker(block: Block, may_drop: bool) -> Encoded:
    return _worker(block, may_drop)
