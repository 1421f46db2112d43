"""One of two gloo processes: the pooled CKA of its share of the rows, and a tied head under DDP, into a file."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from cktk.criteria.cka import Cka
from cktk.criteria.head_loss import HeadLossOptions, head_loss
from cktk.distributed.world import World
from cktk.protocols import HeadParams
from tests.unit.criteria.states import PAIRS, split, states, with_gradients

#: Rows of each micro-batch: rank 0's two, then rank 1's.
SIZES = {"encoder": [15, 10, 3, 4], "decoder": [2, 9, 21, 0]}


class TiedStep(nn.Module):
    """Embedding, a layer and the tied head with its loss."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.embed = nn.Embedding(29, 4, dtype=torch.float64)
        self.layer = nn.Linear(4, 4, dtype=torch.float64)

    def forward(self, rows: Tensor, labels: Tensor) -> Tensor:
        hidden = self.layer(self.embed(rows)).tanh()
        return head_loss(hidden, labels, HeadParams(self.embed.weight), None, HeadLossOptions())[0]


def batches() -> list[tuple[Tensor, Tensor]]:
    """Four micro-batches of ids and labels, uneven in length."""
    generator = torch.Generator().manual_seed(5)
    return [tuple(torch.randint(29, (2, n), generator=generator)) for n in (6, 3, 1, 8)]


def main(world: World, folder: Path) -> None:
    mine = slice(0, 2) if world.rank == 0 else slice(2, 4)
    student, teacher = states({"encoder": 32, "decoder": 32})
    parts = list(zip(split(student, SIZES), split(teacher, SIZES), strict=True))[mine]
    cka = Cka(PAIRS, "update")
    first, second = (cka.statistics(*part) for part in parts)
    coefficients = cka.coefficients(cka.merge(first, second), world.all_reduce)
    saved = {"cka": cka.pooled_term(coefficients).parts["cka"]}
    leaves = [with_gradients(one) for one, _ in parts]
    for leaf, (_, target) in zip(leaves, parts, strict=True):
        cka.terms(leaf, target, coefficients)[0].total.backward()
    for side, layer in leaves[0].hidden:
        saved[f"{side}.{layer}"] = torch.cat([leaf.hidden[side, layer].grad for leaf in leaves])

    step = nn.parallel.DistributedDataParallel(TiedStep())
    one, other = batches()[mine]
    with step.no_sync():
        step(*one).backward()
    step(*other).backward()
    saved |= {name: parameter.grad for name, parameter in step.module.named_parameters()}
    save_file({name: tensor.contiguous() for name, tensor in saved.items()}, folder / f"rank{world.rank}.safetensors")


if __name__ == "__main__":
    folder, rank = Path(sys.argv[1]), int(sys.argv[2])
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    main(World(rank, 2, torch.device("cpu")), folder)
    torch.distributed.destroy_process_group()
