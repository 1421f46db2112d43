"""What the fused head loss costs beside plain PyTorch, `linear_cross_entropy`, and from one divergence to another.

Each variant runs in processes of its own (``python -m benchmarks.head_loss --measure CASE``), in turns with its peers.
Times are medians. Memory is the peak beyond the gradient of the head's weight, dW.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.memory import peak, reset_peak
from benchmarks.report import Figure
from cktk.criteria.configs import CrossEntropyConfig, Divergence
from cktk.criteria.head.head_loss import HeadLossOptions, head_loss
from cktk.protocols import HeadParams

_MEMORY = CrossEntropyConfig().logits_memory << 20
_OTHER_DIVERGENCES = [name for name in get_args(Divergence) if name != "forward_kl"]


@dataclass(frozen=True)
class HeadCase:
    """A variant of the loss and the sizes of its problem: ``rows`` tokens, student's and teacher's heads.

    ``plain`` and the name of a divergence are CE with that divergence (forward KL for ``plain``), ``top_k`` is CE with
    forward KL of 64 tokens, ``ce``, ``dense`` and ``chunked`` are CE alone: the fused one and the two modes of
    `torch.nn.functional.linear_cross_entropy`.
    """

    variant: str
    rows: int = 1024
    vocabulary: int = 250_027
    student_width: int = 384
    teacher_width: int = 1024

    @property
    def weight_bytes(self) -> float:
        """Size of dW."""
        return 4.0 * self.vocabulary * self.student_width


class HeadProblem:
    """Random states and heads of a `HeadCase`, float32."""

    def __init__(self, case: HeadCase) -> None:
        torch.manual_seed(0)
        v, d, p = case.vocabulary, case.student_width, case.teacher_width
        self.variant = case.variant
        self.hidden = torch.randn(case.rows, d).requires_grad_()
        self.weight = (torch.randn(v, d) / d**0.5).requires_grad_()
        self.bias = torch.zeros(v)
        self.states, self.teacher = torch.randn(case.rows, p), torch.randn(v, p) / p**0.5
        self.labels = torch.randint(v, (case.rows,))

    def loss(self) -> Tensor:
        """The loss of the case's variant."""
        if self.variant == "plain":
            return self._plain()
        if self.variant in ("dense", "chunked"):
            options = nn.LinearCrossEntropyOptions() if self.variant == "chunked" else None
            return F.linear_cross_entropy(
                self.hidden, self.weight, self.labels, linear_bias=self.bias, reduction="sum", options=options
            )
        return self._fused()

    def _plain(self) -> Tensor:
        """CE + KL as PyTorch's users write it."""
        logits = F.linear(self.hidden, self.weight, self.bias)
        with torch.no_grad():
            target = F.linear(self.states, self.teacher, self.bias).log_softmax(-1)
        ce = F.cross_entropy(logits, self.labels, reduction="sum")
        return ce + F.kl_div(logits.log_softmax(-1), target, log_target=True, reduction="sum")

    def _fused(self) -> Tensor:
        head, teacher = HeadParams(self.weight, self.bias), (self.states, HeadParams(self.teacher, self.bias))
        if self.variant == "ce":
            options = HeadLossOptions(memory=_MEMORY)
            return head_loss(self.hidden, self.labels, head, None, options)[0]
        if self.variant == "top_k":
            options = HeadLossOptions(kl_weight=1.0, memory=_MEMORY, top_k=64)
        else:
            options = HeadLossOptions(kl_weight=1.0, memory=_MEMORY, divergence=cast(Divergence, self.variant))
        return head_loss(self.hidden, self.labels, head, teacher, options)[0]


def measure(case: HeadCase) -> dict[str, float]:
    """Seconds and peak bytes beyond dW of one loss with backward, after a small warm-up."""
    if case.variant == "tied":
        return measure_tied(case)
    torch.autograd.backward(HeadProblem(HeadCase(case.variant, rows=8, vocabulary=512)).loss())
    problem = HeadProblem(case)
    before = reset_peak()
    start = time.perf_counter()
    torch.autograd.backward(problem.loss())
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "bytes": peak() - before - case.weight_bytes}


def measure_tied(case: HeadCase) -> dict[str, float]:
    """The same of a whole mBART-like model whose head is its embedding: CE and forward KL, 32 tokens a sentence."""
    from transformers import MBartConfig, MBartForConditionalGeneration  # seconds that the other variants save

    config = MBartConfig(
        vocab_size=case.vocabulary,
        d_model=case.student_width,
        encoder_layers=2,
        decoder_layers=2,
        encoder_ffn_dim=4 * case.student_width,
        decoder_ffn_dim=4 * case.student_width,
        encoder_attention_heads=6,
        decoder_attention_heads=6,
        max_position_embeddings=64,
    )
    model = MBartForConditionalGeneration(config)
    problem = HeadProblem(HeadCase("forward_kl", case.rows, case.vocabulary, case.student_width, case.teacher_width))
    problem.weight = model.lm_head.weight
    ids = problem.labels.view(-1, 32)
    before = reset_peak()
    start = time.perf_counter()
    problem.hidden = model.model(input_ids=ids, decoder_input_ids=ids).last_hidden_state.flatten(0, 1)
    torch.autograd.backward(problem.loss())
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "bytes": peak() - before - case.weight_bytes}


def in_process(case: HeadCase) -> dict[str, float]:
    """`measure` in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.head_loss", "--measure", json.dumps(asdict(case))]
    result = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    answer: dict[str, float] = json.loads(result.stdout)
    return answer


def head_figures(quick: bool) -> list[Figure]:
    """Fused against plain, against itself with more rows, against torch's own fused CE; divergences; a tied model."""
    size = {"vocabulary": 32_000} if quick else {}
    once = ["chunked", *_OTHER_DIVERGENCES, "top_k", "tied"]
    rounds = {**dict.fromkeys(("plain", "forward_kl", "ce", "dense"), 1 if quick else 3), **dict.fromkeys(once, 1)}
    cases = {name: HeadCase(name, **size) for name in rounds}
    cases["long"], rounds["long"] = HeadCase("forward_kl", 8192, **size), 1
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in cases}
    for turn in range(max(rounds.values())):
        for name, case in cases.items():
            if turn < rounds[name]:
                runs[name].append(in_process(case))
    found = {name: _median(measured) for name, measured in runs.items()}
    label = f"head loss V={cases['plain'].vocabulary:,}"
    # Only the full vocabulary has targets: with a small one all rows fit the budget, and nothing is saved.
    figures = [*_ratios(label, found, targets=not quick)]
    tied = 1 + found["tied"]["bytes"] / cases["tied"].weight_bytes
    figures.append(Figure(f"{label} N=1024: whole tied update, peak beyond the weights in dW", tied, None))
    for name, values in found.items():
        row = f"{label} N={cases[name].rows} {cases[name].variant}"
        figures.append(Figure(f"{row}: seconds", values["seconds"], None))
        figures.append(Figure(f"{row}: peak MB beyond dW", values["bytes"] / 1e6, None))
    return figures


def _median(runs: list[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(run[key] for run in runs) for key in ("seconds", "bytes")}


def _ratios(label: str, found: dict[str, dict[str, float]], *, targets: bool) -> list[Figure]:
    def ratio(
        name: str, first: float, second: float, target: float | None, better: Literal["lower", "higher"]
    ) -> Figure:
        return Figure(f"{label} {name}", first / second, target if targets else None, better)

    def get(name: str, key: str) -> float:
        return found[name][key]

    peers = [found["dense"], found["chunked"]]
    faster, leaner = (min(peer[key] for peer in peers) for key in ("seconds", "bytes"))
    fused, ce = found["forward_kl"], found["ce"]
    return [
        ratio("N=1024: fused/plain time", fused["seconds"], get("plain", "seconds"), 0.65, "lower"),
        ratio("N=1024: fused/plain peak", fused["bytes"], get("plain", "bytes"), 0.05, "lower"),
        ratio("fused: peak N=8192/N=1024", get("long", "bytes"), fused["bytes"], 1.1, "lower"),
        ratio("N=1024 CE: speed / faster linear_cross_entropy", faster, ce["seconds"], 1.0, "higher"),
        ratio("N=1024 CE: peak / leaner linear_cross_entropy", ce["bytes"], leaner, 0.6, "lower"),
        *(
            ratio(f"N=1024: time {name}/forward_kl", get(name, "seconds"), fused["seconds"], None, "lower")
            for name in [*_OTHER_DIVERGENCES, "top_k"]
        ),
    ]


def main() -> None:
    """The entry of the measuring process."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.head_loss", description=__doc__)
    parser.add_argument("--measure", required=True, help="a HeadCase as JSON")
    print(json.dumps(measure(HeadCase(**json.loads(parser.parse_args().measure)))))


if __name__ == "__main__":
    main()
