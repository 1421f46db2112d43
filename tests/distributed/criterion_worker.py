"""One of two gloo processes: pooled losses of its share of the rows, and a tied head under DDP, into a file."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from cktk.criteria.base import StatisticsLoss
from cktk.criteria.cka.cka import Cka, CkaOptions
from cktk.criteria.head.head_loss import HeadLossOptions, head_loss
from cktk.criteria.procrustes import Procrustes
from cktk.distributed.world import World
from cktk.protocols import HeadParams
from tests.unit.criteria.pooling import cut, gathered, joined, pooled
from tests.unit.criteria.states import PAIRS, WIDTHS, states, with_gradients

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


def losses() -> dict[str, StatisticsLoss]:
    """The losses that take two passes."""
    return {
        "sqrt": Cka(PAIRS, WIDTHS, CkaOptions()),
        "debiased": Cka(PAIRS, WIDTHS, CkaOptions(form="debiased")),
        "summed": Cka(PAIRS, WIDTHS, CkaOptions("summed")),
        "procrustes": Procrustes(PAIRS, "update"),
    }


def running(updates: list, all_reduce) -> dict[str, Tensor]:
    """Scope "running" after a first update, with the gradients of the second one's rows."""
    loss = Cka(PAIRS, WIDTHS, CkaOptions("running", momentum=0.5)).double()
    loss.advance(gathered(loss, updates[0], all_reduce))
    leaves = [with_gradients(student) for student, _ in updates[1]]
    for leaf, (_, teacher) in zip(leaves, updates[1], strict=True):
        for term in loss.terms(leaf, teacher)[1:]:
            term.total.backward()
    loss.advance(gathered(loss, updates[1], all_reduce))
    gradients = {f"{side}.{layer}": gradient for (side, layer), gradient in joined(leaves).items()}
    return gradients | {name: buffer.clone() for name, buffer in loss.state_dict().items()}


def micro_batches(seed: int) -> list:
    """The four micro-batches of an update of 32 rows a side."""
    return cut(*states({"encoder": 32, "decoder": 32}, seed=seed), SIZES)


def main(world: World, folder: Path) -> None:
    mine = slice(0, 2) if world.rank == 0 else slice(2, 4)
    saved = {}
    for name, loss in losses().items():
        report, gradients = pooled(loss, micro_batches(0)[mine], world.all_reduce)
        saved[name] = torch.tensor(report[loss.name], dtype=torch.float64)
        saved |= {f"{name}.{side}.{layer}": gradient for (side, layer), gradient in gradients.items()}
    found = running([micro_batches(seed)[mine] for seed in (0, 1)], world.all_reduce)
    saved |= {f"running.{name}": tensor for name, tensor in found.items()}

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
