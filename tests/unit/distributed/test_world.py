"""Collectives over two gloo processes, forked."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from cktk.distributed.world import World

#: Rank 0 has more rows than rank 1, or the other way round, or one has none.
ROWS = ((3, 1), (0, 2), (0, 0))


def shares(rank: int) -> list[torch.Tensor]:
    return [torch.arange(2.0 * rows[rank]).reshape(rows[rank], 2) + 100 * rank for rows in ROWS]


def worker(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=2)
    world = World(rank, 2, torch.device("cpu"))
    found = [world.gather_rows(share) for share in shares(rank)]
    numbers = world.gather_rows(torch.arange(rank + 1))
    (folder / f"{rank}.txt").write_text(repr([table.tolist() for table in (*found, numbers)]))
    dist.destroy_process_group()


def test_rows_of_all_ranks_are_gathered_in_their_order(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    workers = [fork.Process(target=worker, args=(rank, tmp_path)) for rank in range(2)]
    for process in workers:
        process.start()
    for process in workers:
        process.join(60)
    assert [process.exitcode for process in workers] == [0, 0]
    expected = [torch.cat(pair).tolist() for pair in zip(shares(0), shares(1), strict=True)]
    for rank in range(2):
        assert (tmp_path / f"{rank}.txt").read_text() == repr([*expected, [0, 0, 1]])


@pytest.mark.parametrize("rows", [0, 3])
def test_one_process_has_its_own(rows: int) -> None:
    share = torch.ones(rows, 2)
    assert World(0, 1, torch.device("cpu")).gather_rows(share) is share
