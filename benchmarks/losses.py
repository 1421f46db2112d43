"""The losses: how exact the pooled CKA is, and what the fused head loss costs beside plain PyTorch.

``python -m benchmarks.losses [--quick] [--json FILE]``. Each variant of the head loss runs in processes of its own, in
turns with its peer; times are medians, memory is the peak beyond the gradient of the head's weight.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.memory import peak, reset_peak
from benchmarks.report import Figure, publish
from cktk.criteria.cka import Cka
from cktk.criteria.head_loss import HeadLossOptions, head_loss
from cktk.protocols import HeadParams, LayerPair, ModelOutput


@dataclass(frozen=True)
class HeadCase:
    """Sizes of a head-loss measurement: CE and KL of ``rows`` tokens."""

    variant: str
    rows: int
    vocabulary: int = 250_027
    student_width: int = 384
    teacher_width: int = 1024


class HeadProblem:
    """Random states and heads of a `HeadCase`, float32."""

    def __init__(self, case: HeadCase) -> None:
        torch.manual_seed(0)
        v, d, p = case.vocabulary, case.student_width, case.teacher_width
        self.hidden = torch.randn(case.rows, d).requires_grad_()
        self.weight = (torch.randn(v, d) / d**0.5).requires_grad_()
        self.bias = torch.zeros(v)
        self.states, self.teacher = torch.randn(case.rows, p), torch.randn(v, p) / p**0.5
        self.labels = torch.randint(v, (case.rows,))

    def plain(self) -> Tensor:
        """CE + KL as PyTorch's users write it."""
        logits = F.linear(self.hidden, self.weight, self.bias)
        with torch.no_grad():
            target = F.linear(self.states, self.teacher, self.bias).log_softmax(-1)
        ce = F.cross_entropy(logits, self.labels, reduction="sum")
        return ce + F.kl_div(logits.log_softmax(-1), target, log_target=True, reduction="sum")

    def fused(self) -> Tensor:
        """The same sum from `cktk.criteria.head_loss`."""
        head, teacher = HeadParams(self.weight, self.bias), HeadParams(self.teacher, self.bias)
        options = HeadLossOptions(kl_weight=1.0)
        return head_loss(self.hidden, self.labels, head, (self.states, teacher), options)[0]


def measure_head(case: HeadCase) -> dict[str, float]:
    """Seconds and peak bytes beyond the weight's gradient, of one loss with backward after a small warm-up."""
    variants: dict[str, Callable[[HeadProblem], Tensor]] = {"plain": HeadProblem.plain, "fused": HeadProblem.fused}
    run = variants[case.variant]
    run(HeadProblem(HeadCase(case.variant, rows=8, vocabulary=512))).backward()
    problem = HeadProblem(case)
    before = reset_peak()
    start = time.perf_counter()
    run(problem).backward()
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "bytes": peak() - before - 4.0 * case.vocabulary * case.student_width}


def in_process(case: HeadCase) -> dict[str, float]:
    """`measure_head` in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.losses", "--measure-head", json.dumps(asdict(case))]
    answer = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout
    return json.loads(answer)


def head_figures(quick: bool) -> list[Figure]:
    """Fused head loss against plain PyTorch, and against itself with more rows."""
    size = {"vocabulary": 32_000} if quick else {}
    cases = {
        "plain": HeadCase("plain", 1024, **size),
        "fused": HeadCase("fused", 1024, **size),
        "long": HeadCase("fused", 8192, **size),
    }
    found: dict[str, list[dict[str, float]]] = {name: [] for name in cases}
    for _ in range(1 if quick else 3):
        for name, case in cases.items():
            found[name].append(in_process(case))
    median = {
        name: {key: statistics.median(run[key] for run in runs) for key in ("seconds", "bytes")}
        for name, runs in found.items()
    }
    label = f"head loss V={cases['plain'].vocabulary:,}"
    # Only the full vocabulary has targets: with a small one all rows fit the budget, and nothing is saved.
    targets = (None, None, None) if quick else (0.65, 0.05, 1.1)
    figures = [
        Figure(
            f"{label} N=1024: fused/plain time", median["fused"]["seconds"] / median["plain"]["seconds"], targets[0]
        ),
        Figure(f"{label} N=1024: fused/plain peak", median["fused"]["bytes"] / median["plain"]["bytes"], targets[1]),
        Figure(f"{label} fused: peak N=8192/N=1024", median["long"]["bytes"] / median["fused"]["bytes"], targets[2]),
    ]
    for name, values in median.items():
        rows = cases[name].rows
        figures.append(Figure(f"{label} N={rows} {cases[name].variant}: seconds", values["seconds"], None))
        figures.append(
            Figure(f"{label} N={rows} {cases[name].variant}: peak MB beyond dW", values["bytes"] / 1e6, None)
        )
    return figures


def cka_figures() -> list[Figure]:
    """Largest relative error of the pooled value and gradient over several splits, against full-batch autograd."""
    figures = []
    for dtype, target in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        errors, k = zip(*(cka_error(dtype, sizes) for sizes in _SPLITS), strict=True)
        name = str(dtype).removeprefix("torch.")
        figures.append(Figure(f"CKA {name}: error over splits of 2,048 rows (k = {k[0]:.2f})", max(errors), target))
    return figures


_SPLITS = ([2048], [256] * 8, [64] * 32, [1, 1000, 0, 7, 1040])


def cka_error(dtype: torch.dtype, sizes: list[int]) -> tuple[float, float]:
    """Relative error of value and gradient for one split, and k."""
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(sum(sizes), 64, generator=generator, dtype=torch.float64)

    def states(width: int) -> Tensor:
        noise = torch.randn(len(common), width, generator=generator, dtype=torch.float64)
        mixed = common @ torch.randn(64, width, generator=generator, dtype=torch.float64) / 8
        return (mixed + noise + 3).to(dtype)

    student, teacher = states(96), states(256)
    full = student.double().clone().requires_grad_()
    s, t = full - full.mean(0), teacher.double() - teacher.double().mean(0)
    expected = 1 - (t.T @ s).norm() / ((s.T @ s).norm() * (t.T @ t).norm()).sqrt()
    (wanted,) = torch.autograd.grad(expected, full)

    cka, key = Cka((LayerPair("decoder", 1, 1),), "update"), ("decoder", 1)
    parts = [
        (ModelOutput({key: one.clone().requires_grad_()}), ModelOutput({key: other}))
        for one, other in zip(student.split(sizes), teacher.split(sizes), strict=True)
    ]
    merged = cka.statistics(*parts[0])
    for part in parts[1:]:
        merged = cka.merge(merged, cka.statistics(*part))
    coefficients = cka.coefficients(merged, lambda tensor: tensor)
    for part in parts:
        cka.terms(*part, coefficients)[0].total.backward()
    gradient = torch.cat([one.hidden[key].grad for one, _ in parts]).double()
    value = cka.pooled_term(coefficients).total.item()
    errors = abs(value / expected.item() - 1), ((gradient - wanted).norm() / wanted.norm()).item()
    return max(errors), 1 - expected.item()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.losses", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, one round, no targets for time and memory")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    parser.add_argument("--measure-head", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure_head:
        print(json.dumps(measure_head(HeadCase(**json.loads(arguments.measure_head)))))
        return
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    publish([*cka_figures(), *head_figures(arguments.quick)], arguments.json)


if __name__ == "__main__":
    main()
