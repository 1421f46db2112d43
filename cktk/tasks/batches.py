"""Micro-batches of the rows of one split, in training, in validation, and shard by shard."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Sized
from functools import partial
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from cktk.data.batch_config import BatchingConfig
from cktk.data.batching import Int64s
from cktk.data.iterators import MicroBatches
from cktk.data.shards import DataFolder
from cktk.data.subset import RowSubset
from cktk.errors import ConfigError, DataError
from cktk.protocols import Batch


class Rows(Protocol):
    """The rows of a split as models see them."""

    @property
    def shard_rows(self) -> Sequence[int]:
        """The numbers of rows of its shards."""

    def lengths(self, start: int, stop: int) -> Int64s:
        """(stop - start, 2): source and target lengths of those rows."""


#: How many rows are looked at together where all of a split are.
_CHUNK_ROWS = 1 << 20

#: Makes the batch of rows of a split.
Load = Callable[[Sequence[int]], Batch]


def chunks(rows: int) -> Iterator[tuple[int, int]]:
    """Starts and stops that part ``rows`` rows, so that what is read of a large split stays small."""
    for start in range(0, rows, _CHUNK_ROWS):
        yield start, min(start + _CHUNK_ROWS, rows)


def check_filled(rows: Sized, data: DataFolder, split_name: str) -> None:
    """Raise `DataError` if the split ``split_name`` of ``data`` has no ``rows``."""
    if not len(rows):
        raise DataError(f"{data.path}: split {split_name} is empty; preprocess it again with text in it")


def split_batches(
    rows: Rows, load: Load, batching: BatchingConfig, *, shuffle: bool, seed: int, rank: int = 0, world: int = 1
) -> MicroBatches:
    """This rank's micro-batches of ``rows``; without ``shuffle`` an epoch is always the whole split.

    Raises `ConfigError` for a ``train_subset`` of more rows than there are.
    """
    drawn_from = None
    if shuffle and batching.train_subset is not None:
        subset = RowSubset(rows.shard_rows, rows.lengths, batching.train_subset, seed)
        rows, load, drawn_from = subset, partial(_load_chosen, load, subset), subset.rows
    return MicroBatches(
        rows.shard_rows,
        rows.lengths,
        load,
        max_tokens=batching.token_budget,
        batch_size=batching.batch_size,
        shuffle=shuffle,
        seed=seed,
        rank=rank,
        world=world,
        # Workers start anew with each pass, which a short validation does not pay back.
        num_workers=batching.num_workers if shuffle else 0,
        samples_per_epoch=batching.samples_per_epoch if shuffle else None,
        drawn_from=drawn_from,
    )


def refuse_subset(batching: BatchingConfig, corpora: Sequence[str], streams: Sequence[str] = ()) -> None:
    """Raise `ConfigError` if ``batching`` asks for a subset of several ``corpora``, or of one of these ``streams``."""
    if batching.train_subset is None:
        return
    if streams:
        raise ConfigError(
            f"--train-subset draws rows of a data folder, and nobody has counted those of the stream {streams[0]}; "
            "leave it out, or preprocess the text"
        )
    if len(corpora) > 1:
        raise ConfigError(
            f"--train-subset takes one corpus in one direction, not {len(corpora)} ({', '.join(corpora)}); leave it "
            "out, or train on one of them"
        )


def shard_batches(rows: Rows, load: Load, shard: int, batching: BatchingConfig) -> Iterator[Batch]:
    """See `FixedRows.shard_batches`; within 65,536 neighbours batches run from short to long."""
    first = sum(rows.shard_rows[:shard])
    batches = MicroBatches(
        rows.shard_rows[shard : shard + 1],
        lambda start, stop: rows.lengths(first + start, first + stop),
        partial(_load_from, load, first),
        max_tokens=batching.token_budget,
        batch_size=batching.batch_size,
        shuffle=False,
        seed=0,
        num_workers=batching.num_workers,
    )
    while found := batches.next_update(1):
        yield from found


def _load_from(load: Load, first: int, ids: Sequence[int]) -> Batch:
    return load([first + index for index in ids])


def _load_chosen(load: Load, subset: RowSubset, ids: Sequence[int]) -> Batch:
    return load([subset.original(index) for index in ids])


def padded(rows: Sequence[npt.NDArray[Any]], fill: int) -> tuple[Int64s, npt.NDArray[np.bool_]]:
    """``rows`` below one another, filled up with ``fill``, and the mask of what is not filling: both (B, longest)."""
    lengths = np.array([len(row) for row in rows])
    mask = np.arange(lengths.max()) < lengths[:, None]
    ids = np.full(mask.shape, fill, np.int64)
    ids[mask] = np.concatenate(rows)
    return ids, mask


def shift_right(targets: Int64s, written: npt.NDArray[np.bool_], start: int | None) -> Int64s:
    """The decoder's input for padded ``targets`` (B, T), as transformers' ``shift_tokens_right`` makes it.

    It is the targets but their last column behind the token ``start``, or without one (mBART) behind each row's last
    token; ``written`` (B, T) says what is not padding.
    """
    shifted = np.roll(targets, 1, axis=1)
    shifted[:, 0] = targets[np.arange(len(targets)), written.sum(axis=1) - 1] if start is None else start
    return shifted
