"""Micro-batches that can be continued exactly, by any number of ranks."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from cktk.data.batching import Lengths, Planner, WindowPlanner
from cktk.errors import CheckpointError, CktkError
from cktk.protocols import Batch

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Position:
    """Before which micro-batch we are. Global: the same on all ranks and for any number of them."""

    epoch: int = 1
    passes: int = 0
    window: int = 0
    offset: int = 0  # micro-batches of the window that are consumed
    micro_batches: int = 0  # consumed since the start of training
    samples: int = 0  # sentences consumed in this epoch


@dataclass(frozen=True)
class _Share:
    """What a rank gets of ``world`` consecutive micro-batches, and the position behind all of them."""

    items: list[Any]
    dummy: bool
    after: _Position


class PlannedBatches:
    """The micro-batches that ``planner`` plans, epoch after epoch, dealt to the ranks in turn.

    ``load`` makes a batch of what the planner has as `Planner.items`. The order is the planner's alone; which rank gets
    a micro-batch is its place in the order modulo ``world``. A row that exceeds the token budget alone makes a
    micro-batch of its own, is counted in `oversized`, and the first one is logged as a warning. Without
    ``samples_per_epoch`` an epoch is one pass of the planner; with it, an epoch ends with the micro-batch that reaches
    that many sentences, and the next one goes on behind it.
    """

    def __init__(
        self,
        planner: Planner,
        load: Callable[[Sequence[Any]], Batch],
        *,
        rank: int = 0,
        world: int = 1,
        num_workers: int = 0,
        samples_per_epoch: int | None = None,
    ) -> None:
        self.oversized = 0
        self._planner = planner
        self._load = load
        self._rank = rank
        self._world = world
        self._num_workers = num_workers
        self._samples_per_epoch = samples_per_epoch
        # What the order follows from: a state is only good for the same.
        self._plan = {"samples_per_epoch": samples_per_epoch, **planner.settings}
        self._at = _Position()
        self._stream: Iterator[tuple[_Share, Batch]] | None = None

    @property
    def epoch(self) -> int:
        """The epoch that the next micro-batch belongs to, from 1 (the finished one until `next_update` gave None)."""
        return self._at.epoch

    def epoch_fraction(self) -> float:
        """How much of the epoch is consumed, from 0 to 1."""
        return min(1.0, self._at.samples / (self._samples_per_epoch or self._planner.rows or 1))

    def next_update(self, n: int) -> list[Batch] | None:
        """This rank's next ``n`` micro-batches, or fewer at the end of the epoch; None once when it has ended.

        Every rank gets equally many: where the last round has none left for a rank, it gets a dummy, which is a copy of
        that round's first micro-batch. After None, `epoch` has advanced and the next call starts the new epoch.
        """
        if self._stream is None:
            self._stream = self._batches(self._shares(self._at))
        try:
            taken = list(islice(self._stream, n))
        except BaseException:
            self._stream = None  # a broken stream would look like the end of the epoch
            raise
        if taken:
            self._at = taken[-1][0].after
            return [batch for _, batch in taken]
        self._stream = None
        self._at = replace(self._next_pass(self._at), epoch=self._at.epoch + 1, samples=0)
        return None

    def state_dict(self) -> dict[str, Any]:
        """The position as JSON values. Batches that workers hold ready but nobody took are not counted."""
        state = {**asdict(self._at), "plan": dict(self._plan)}
        if found := self._planner.state(self._at.passes, self._at.window):
            state["planner"] = dict(found)
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to the position of ``state``; raises `CheckpointError` if it belongs to other data or other settings."""
        for name, value in self._plan.items():
            if (saved := state["plan"].get(name)) != value:
                raise CheckpointError(
                    f"the checkpoint's data position does not fit this run: {_difference(name, saved, value)}; "
                    "continue with the data and settings it was saved with, or start a new run"
                )
        self._at = _Position(**{name: int(state[name]) for name in asdict(self._at)})
        self._planner.load_state(self._at.passes, self._at.window, state.get("planner", {}))
        self._stream = None

    def _batches(self, shares: Iterator[_Share]) -> Iterator[tuple[_Share, Batch]]:
        """Load the items of each share, in place or ahead of need by workers."""
        loader = _Loader(self._load)
        if not self._num_workers:
            for share in shares:
                yield share, loader.unpack(loader[share.items], share.dummy)
            return
        planned: deque[_Share] = deque()

        def sampler() -> Iterator[list[Any]]:
            for share in shares:
                planned.append(share)
                yield share.items

        # With its own generator the DataLoader leaves torch's global random state alone.
        workers: DataLoader[Any] = DataLoader(
            loader,
            batch_size=None,
            sampler=sampler(),
            num_workers=self._num_workers,
            collate_fn=_unchanged,
            generator=torch.Generator(),
        )
        for loaded in workers:
            share = planned.popleft()
            yield share, loader.unpack(loaded, share.dummy)

    def _shares(self, at: _Position) -> Iterator[_Share]:
        """This rank's share of each round of ``world`` micro-batches from ``at`` to the end of the epoch."""
        walk = self._walk(at)
        while batches := list(islice(walk, self._world)):
            dummy = self._rank >= len(batches)
            items, _ = batches[0 if dummy else self._rank]
            yield _Share(items, dummy, after=batches[-1][1])

    def _walk(self, at: _Position) -> Iterator[tuple[list[Any], _Position]]:
        """All micro-batches from ``at`` to the end of the epoch, each with the position behind it."""
        while not self._epoch_ends(at):
            at = self._next_pass(at)
            batches, beyond = self._planner.plan(at.passes, at.window)
            self._count_oversized(beyond)
            for rows in batches[at.offset :]:
                last = at.offset + 1 == len(batches)
                at = replace(
                    at,
                    window=at.window + last,
                    offset=0 if last else at.offset + 1,
                    micro_batches=at.micro_batches + 1,
                    samples=at.samples + len(rows),
                )
                yield self._planner.items(rows), at
                if self._epoch_ends(at):
                    return

    def _epoch_ends(self, at: _Position) -> bool:
        if self._samples_per_epoch and self._planner.rows:
            return at.samples >= self._samples_per_epoch
        return at.window == self._planner.window_count(at.passes)

    def _next_pass(self, at: _Position) -> _Position:
        """``at``, or the start of the next pass if that is where it stands."""
        if at.window < self._planner.window_count(at.passes):
            return at
        return replace(at, passes=at.passes + 1, window=0, offset=0)

    def _count_oversized(self, lengths: np.ndarray[Any, Any]) -> None:
        if len(lengths) and not self.oversized:
            _log.warning(
                "a sentence of %d tokens is longer than --max-tokens %d and makes a micro-batch of its own; "
                "raise --max-tokens, or have texts cut shorter (--max-source-positions, --max-target-positions, "
                "--tokens-per-sample)",
                lengths.max(),
                self._plan["max_tokens"],
            )
        self.oversized += len(lengths)


class MicroBatches(PlannedBatches):
    """The micro-batches of a split whose shards have ``shard_rows`` rows.

    ``lengths`` gives the sides of rows as the model will see them and ``load`` makes the batch of given rows. The order
    depends on ``seed`` and the data alone. ``max_tokens`` bounds rows x longest side; ``window_rows`` rows are sorted
    by length together; a window is made of blocks of ``block_rows`` neighbours. ``drawn_from`` is the number of rows
    of which these are a subset.
    """

    def __init__(
        self,
        shard_rows: Sequence[int],
        lengths: Lengths,
        load: Callable[[Sequence[int]], Batch],
        *,
        max_tokens: int | None,
        batch_size: int | None,
        shuffle: bool,
        seed: int,
        rank: int = 0,
        world: int = 1,
        num_workers: int = 0,
        samples_per_epoch: int | None = None,
        window_rows: int = 65_536,
        block_rows: int = 1_024,
        drawn_from: int | None = None,
    ) -> None:
        planner = WindowPlanner(
            shard_rows,
            lengths,
            max_tokens=max_tokens,
            batch_size=batch_size,
            shuffle=shuffle,
            seed=seed,
            window_rows=window_rows,
            block_rows=block_rows,
            drawn_from=drawn_from,
        )
        dealing = {"rank": rank, "world": world, "num_workers": num_workers}
        super().__init__(planner, load, samples_per_epoch=samples_per_epoch, **dealing)


class _Loader(Dataset[Any]):
    """What a worker runs: items -> the parts of their batch as arrays, or the error that the user should see.

    Arrays go through the worker's pipe. Tensors would take a descriptor each and room in /dev/shm, of which containers
    have little; errors raised in a worker would arrive with a traceback in their message.
    """

    def __init__(self, load: Callable[[Sequence[Any]], Batch]) -> None:
        self._load = load

    def __getitem__(self, items: list[Any]) -> tuple[dict[str, Any], Any, list[int]] | CktkError:
        try:
            batch = self._load(items)
        except CktkError as error:
            return error
        return {name: tensor.numpy() for name, tensor in batch.inputs.items()}, batch.labels.numpy(), batch.ids

    @staticmethod
    def unpack(loaded: tuple[dict[str, Any], Any, list[int]] | CktkError, dummy: bool) -> Batch:
        if isinstance(loaded, CktkError):
            raise loaded
        inputs, labels, ids = loaded
        return Batch(
            {name: torch.from_numpy(array) for name, array in inputs.items()}, torch.from_numpy(labels), ids, dummy
        )


def _unchanged(loaded: Any) -> Any:
    return loaded


def _difference(name: str, saved: Any, value: Any) -> str:
    """The first entry in which two unequal settings differ, as ``corpora: en: share was 0.5 and is 0.4 now``."""
    if isinstance(value, Mapping):
        entries = saved if isinstance(saved, Mapping) else {}
        for key in (*value, *entries):
            if key not in value:
                return f"{name}: {key} is there no more"
            if key not in entries:
                return f"{name}: {key} is new"
            if entries[key] != value[key]:
                return f"{name}: {_difference(key, entries[key], value[key])}"
    return f"{name} was {saved} and is {value} now"
