"""How exact the pooled CKA is: any split into micro-batches, and two processes with uneven shares of the rows."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.report import Figure
from cktk.criteria.base import AllReduce
from cktk.criteria.cka.cka import Cka, CkaOptions
from cktk.protocols import LayerPair, ModelOutput, Side

_KEY: tuple[Side, int] = ("decoder", 1)
_WIDTHS: dict[Side, tuple[int, int]] = {"decoder": (96, 256)}
_ROWS = 16_384
#: Noise beside what teacher and student share: k from 0.95 down to 0.1, which noise alone has at so many rows.
_NOISES = (0.12, 0.5, 1.5, 40.0)
_SPLITS = ([_ROWS], [2048] * 8, [512] * 32, [1, 8000, 0, 56, 8327])
#: Rows of the micro-batches of each of two ranks.
_RANKS = ([2400, 1, 5600], [8000, 383, 0])


def states(noise: float, dtype: torch.dtype, mean: float = 3.0) -> tuple[Tensor, Tensor]:
    """Student and teacher rows that share a few directions, with means of about ``mean`` deviations."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    common = draw(_ROWS, 16)

    def rows(width: int) -> Tensor:
        return (common @ draw(16, width) / 4 + noise * draw(_ROWS, width) + mean * (1 + noise)).to(dtype)

    student, teacher = (rows(width) for width in _WIDTHS["decoder"])
    return student, teacher


def expected(student: Tensor, teacher: Tensor) -> tuple[float, Tensor]:
    """k and the gradient of 1 - k of all rows at once, by autograd in float64."""
    full = student.double().clone().requires_grad_()
    s, t = full - full.mean(0), teacher.double() - teacher.double().mean(0)
    k = (t.T @ s).norm() / ((s.T @ s).norm() * (t.T @ t).norm()).sqrt()
    return k.item(), torch.autograd.grad(1 - k, full)[0]


def pooled(student: Tensor, teacher: Tensor, sizes: list[int], all_reduce: AllReduce) -> tuple[Tensor, Tensor]:
    """The loss and the gradient of the rows at hand, in micro-batches of ``sizes``."""
    cka = Cka((LayerPair("decoder", 1, 1),), _WIDTHS, CkaOptions())
    parts = [
        (ModelOutput({_KEY: one.clone().requires_grad_()}), ModelOutput({_KEY: other}))
        for one, other in zip(torch.split(student, sizes), torch.split(teacher, sizes), strict=True)
    ]
    statistics: Any = None
    for part in parts:
        statistics = cka.statistics(*part, statistics)
    coefficients = cka.coefficients(cka.pool(statistics, all_reduce))
    for part in parts:
        torch.autograd.backward(cka.terms(*part, coefficients)[0].total)
    gradients = [one.hidden[_KEY].grad for one, _ in parts]
    return cka.pooled_term(coefficients).total, torch.cat([g for g in gradients if g is not None])


def accuracy_figures() -> list[Figure]:
    """Largest relative error of value and gradient over noises and splits, for both dtypes."""
    figures = []
    for dtype, target in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        name = str(dtype).removeprefix("torch.")
        errors: dict[str, list[float]] = {"any split": [], "means of 1,000 deviations": [], "2 ranks, uneven": []}
        similarities = []
        for noise in _NOISES:
            for what, mean in (("means of 1,000 deviations", 1000.0), ("any split", 3.0)):
                student, teacher = states(noise, dtype, mean)
                k, wanted = expected(student, teacher)
                for sizes in _SPLITS:
                    errors[what].append(_error(k, wanted, *pooled(student, teacher, sizes, lambda x: x)))
            similarities.append(k)
            errors["2 ranks, uneven"].append(_error(k, wanted, *_on_two_ranks(noise, name)))
        reach = f"k {min(similarities):.2f} .. {max(similarities):.2f}"
        figures += [
            Figure(f"CKA {name}, {what} ({reach}): error", max(found), target) for what, found in errors.items()
        ]
    return figures


def _error(k: float, wanted: Tensor, loss: Tensor, gradient: Tensor) -> float:
    of_gradient: float = (
        torch.linalg.vector_norm(gradient.double() - wanted) / torch.linalg.vector_norm(wanted)
    ).item()
    return max(abs(loss.item() / (1 - k) - 1), of_gradient)


def _on_two_ranks(noise: float, dtype: str) -> tuple[Tensor, Tensor]:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.cka_accuracy", folder, str(noise), dtype]
        workers = [subprocess.Popen([*command, str(rank)]) for rank in range(2)]
        exits = [worker.wait() for worker in workers]
        if any(exits):
            raise RuntimeError("a process of the measurement failed")
        ranks = [load_file(Path(folder) / f"{rank}.safetensors") for rank in range(2)]
    return ranks[0]["loss"], torch.cat([rank["gradient"] for rank in ranks])


def _work(folder: Path, noise: float, dtype: torch.dtype, rank: int) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)

    def all_reduce(tensor: Tensor) -> Tensor:
        torch.distributed.all_reduce(tensor)
        return tensor

    start = sum(_RANKS[0]) * rank
    mine = slice(start, start + sum(_RANKS[rank]))
    student, teacher = states(noise, dtype)
    loss, gradient = pooled(student[mine], teacher[mine], _RANKS[rank], all_reduce)
    save_file({"loss": loss, "gradient": gradient}, folder / f"{rank}.safetensors")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="One of two processes; see benchmarks.losses.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("noise", type=float)
    parser.add_argument("dtype")
    parser.add_argument("rank", type=int)
    arguments = parser.parse_args()
    _work(arguments.folder, arguments.noise, getattr(torch, arguments.dtype), arguments.rank)
