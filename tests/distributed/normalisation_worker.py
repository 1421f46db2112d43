"""One of two gloo processes: an update of its share of the micro-batches, for every case, into a file."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from cktk.distributed.world import World
from cktk.engine.update import Updater
from cktk.protocols import Batch
from tests.unit.engine import parts
from tests.unit.engine.test_normalisation import CASES, LENGTHS, make, pieces

#: Sentences of the micro-batches: two of rank 0, one of rank 1, which fills up with a dummy.
SIZES = [1, 2, 5]


def share(rank: int) -> list[Batch]:
    first, second, third = pieces(SIZES)
    dummy = dataclasses.replace(parts.batch(LENGTHS[:2], 70), dummy=True)
    return [first, second] if rank == 0 else [dummy, third]


def main(world: World, folder: Path) -> None:
    saved = {}
    for case in CASES:
        alone, _, _ = make(case)
        step = alone.step
        step.all_reduce = world.all_reduce
        updater = Updater(
            world.wrap(step), step, alone.teacher, alone.optimizer, alone.scaler, world, clip_norm=0.0, seed=5
        )
        before = parts.weights(updater)
        values = updater.run(share(world.rank), 0, 1.0).values
        saved |= {f"{case}|{name}": before[name] - after for name, after in parts.weights(updater).items()}
        saved[f"{case}|loss"] = torch.tensor(values["loss"], dtype=torch.float64)
    save_file(saved, folder / f"rank{world.rank}.safetensors")


if __name__ == "__main__":
    folder, rank = Path(sys.argv[1]), int(sys.argv[2])
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    main(World(rank, 2, torch.device("cpu")), folder)
    torch.distributed.destroy_process_group()
