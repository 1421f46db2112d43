"""The processes of a run: who we are, and the few collectives that training needs. One process needs no group."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cktk.errors import ConfigError


@dataclass(frozen=True)
class World:
    """Rank, number of processes and device of this process."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Sum ``tensor`` over all ranks, in place, and return it."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.size > 1:
            dist.barrier()

    def broadcast_from_main(self, tensor: Tensor) -> Tensor:
        """Overwrite ``tensor`` with rank 0's, and return it."""
        if self.size > 1:
            dist.broadcast(tensor, src=0)
        return tensor

    def gather_sequences(self, sequences: list[list[int]]) -> list[list[list[int]]]:
        """Every rank's token sequences, by rank, on all ranks. Sent as padded tensors, so no pickle is involved."""
        if self.size == 1:
            return [sequences]
        shape = torch.tensor([len(sequences), max(map(len, sequences), default=0)], device=self.device)
        shapes = [torch.empty_like(shape) for _ in range(self.size)]
        dist.all_gather(shapes, shape)
        rows, width = (int(x) for x in torch.stack(shapes).amax(dim=0))
        mine = torch.full((rows, width + 1), -1, dtype=torch.int64)
        for row, sequence in enumerate(sequences):
            mine[row, 0] = len(sequence)
            mine[row, 1 : len(sequence) + 1] = torch.tensor(sequence)
        mine = mine.to(self.device)
        gathered = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(gathered, mine)
        return [[row[1 : row[0] + 1] for row in table.tolist() if row[0] >= 0] for table in gathered]

    def gather_rows(self, rows: Tensor) -> Tensor:
        """Every rank's ``rows`` (R, ...), R its own number, below one another in the order of ranks, on all ranks."""
        if self.size == 1:
            return rows
        mine = torch.tensor([len(rows)], device=rows.device)
        counts = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(counts, mine)
        numbers = [int(count) for count in counts]
        padded = rows.new_zeros(max(numbers), *rows.shape[1:])
        padded[: len(rows)] = rows
        gathered = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(gathered, padded)
        return torch.cat([table[:number] for table, number in zip(gathered, numbers, strict=True)])

    def wrap(self, module: nn.Module, some_unused: bool = False) -> nn.Module:
        """``module`` under DistributedDataParallel, or as it is for one process.

        With ``some_unused``, parameters may be left without a gradient, the same ones on all ranks; otherwise each has
        to get one in every backward pass.
        """
        if self.size == 1 or not any(parameter.requires_grad for parameter in module.parameters()):
            return module
        devices = [self.device.index] if self.device.type == "cuda" else None
        with warnings.catch_warnings():
            # The name that replaces broadcast_buffers is unknown to older releases, which we support too.
            warnings.simplefilter("ignore", FutureWarning)
            # gradient_as_bucket_view saves one copy of the gradients; buffers are constants here.
            return DistributedDataParallel(
                module,
                device_ids=devices,
                broadcast_buffers=False,
                gradient_as_bucket_view=True,
                find_unused_parameters=some_unused,
            )


def start(device: str) -> World:
    """The world that torchrun's environment describes, or a single process; ``device`` is auto, cpu, cuda or cuda:N."""
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    chosen = _device(device, local)
    if size > 1 and not dist.is_initialized():
        if chosen.type == "cuda":
            torch.cuda.set_device(chosen)
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    return World(rank, size, chosen)


def stop() -> None:
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _device(name: str, local_rank: int) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"--device: unknown device {name!r}; use auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ConfigError("--device: no CUDA device is visible; use --device cpu")
        return torch.device("cuda", device.index if device.index is not None else local_rank)
    return device
