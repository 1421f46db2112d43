"""What the hidden-state losses add to an update: time beside other criteria, and memory with many micro-batches.

Teacher and student have the proportions of mBART-large (24 x 1024) and of a 12 x 384 student at half the width, with
random weights. Variants share one student and take turns, so that whatever slows the machine slows all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import BartConfig, BartForConditionalGeneration

from benchmarks.memory import peak, reset_peak
from benchmarks.report import Figure
from cktk.architectures.families.bart import BartFamily
from cktk.architectures.states.adapter import Seq2SeqAdapter
from cktk.architectures.states.layer_map import layer_pairs
from cktk.distributed.world import World
from cktk.engine.step import Step
from cktk.engine.teacher import Autocast, FrozenTeacher, StateStore
from cktk.engine.update import Updater
from cktk.optim.configs import AdamConfig
from cktk.protocols import Batch, Matching, ModelOutput
from cktk.registry import CRITERIA, OPTIMIZERS

#: Criterion and options of each variant.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "update": ("cka_kd", {"cka_scope": "update", "match_embeddings": False}),
    "micro": ("cka_kd", {"cka_scope": "micro", "match_embeddings": False}),
    "kl": ("kl_kd", {}),
    "linear": ("linear_kd", {"match_embeddings": False}),
}


@dataclass(frozen=True)
class StepCase:
    """Sizes of a measured update: ``micro_batches`` of ``sentences`` x ``length`` tokens on either side."""

    vocabulary: int
    micro_batches: int
    sentences: int = 16
    length: int = 32
    teacher_width: int = 512
    student_width: int = 192
    teacher_layers: int = 12
    student_layers: int = 6

    def model(self, width: int, layers: int) -> Any:
        """A BART of ``layers`` + ``layers`` layers, without dropout."""
        config = BartConfig(
            vocab_size=self.vocabulary,
            d_model=width,
            encoder_layers=layers,
            decoder_layers=layers,
            encoder_ffn_dim=4 * width,
            decoder_ffn_dim=4 * width,
            encoder_attention_heads=width // 32,
            decoder_attention_heads=width // 32,
            dropout=0.0,
        )
        return BartForConditionalGeneration(config)

    def batches(self) -> list[Batch]:
        """Random sentences, a quarter of each batch shorter than the rest."""
        generator = torch.Generator().manual_seed(0)
        found = []
        for first in range(0, self.micro_batches * self.sentences, self.sentences):
            shape = (self.sentences, self.length)
            source, target = (torch.randint(4, self.vocabulary, shape, generator=generator) for _ in range(2))
            mask = torch.ones(shape, dtype=torch.int64)
            mask[: self.sentences // 4, self.length * 3 // 4 :] = 0
            inputs = {"input_ids": source, "attention_mask": mask, "decoder_input_ids": target.roll(1, 1)}
            ids = list(range(first, first + self.sentences))
            found.append(Batch(inputs, target.masked_fill(mask == 0, -100), ids))
        return found


class CountingStore(StateStore):
    """A `StateStore` that knows how much it has held."""

    held = 0

    def first(self, index: int, batch: Batch) -> ModelOutput:
        states = super().first(index, batch)
        self.held += states.nbytes
        return states


class Bench:
    """One student and teacher, and an `Updater` for each variant asked for."""

    def __init__(self, case: StepCase) -> None:
        torch.manual_seed(0)
        self.batches = case.batches()
        self.teacher = case.model(case.teacher_width, case.teacher_layers)
        self.student = case.model(case.student_width, case.student_layers)

    def updater(self, variant: str) -> Updater:
        """An updater of this student by the criterion of ``variant``."""
        name, options = VARIANTS[variant]
        student, teacher = (BartFamily().shape(model.config) for model in (self.student, self.teacher))
        pairs = layer_pairs(student, teacher, embeddings=False)
        criterion: Any = CRITERIA.target(name)(CRITERIA.config(name)(**options), Matching(student, teacher, pairs))
        world, autocast = World(0, 1, torch.device("cpu")), Autocast("cpu", None)
        frozen = FrozenTeacher(self.teacher, Seq2SeqAdapter(self.teacher), criterion.needs(), autocast)
        step = Step(self.student, Seq2SeqAdapter(self.student), criterion, frozen, autocast, world.all_reduce)
        optimizer = OPTIMIZERS.target("adamw")(AdamConfig(lr=1e-5), list(step.named_parameters()))
        scaler = torch.amp.GradScaler("cpu", enabled=False)
        return Updater(step, step, frozen, optimizer, scaler, world, 1.0, 1, CountingStore(frozen))


def step_seconds(case: StepCase, rounds: int) -> dict[str, float]:
    """Median seconds of an update of each variant, after one update that is not counted."""
    bench = Bench(case)
    updaters = {name: bench.updater(name) for name in VARIANTS}
    times: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for number in range(rounds + 1):
        for name, updater in updaters.items():
            start = time.perf_counter()
            updater.run(bench.batches, number, 1e-5)
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def update_memory(case: StepCase, variant: str) -> dict[str, float]:
    """Peak bytes of an update beyond what the models and the optimizer hold, less the teacher's states kept."""
    bench = Bench(case)
    updater = bench.updater(variant)
    updater.run(bench.batches[:2], 0, 1e-5)  # moments and buffers exist from here on
    store = updater._store
    assert isinstance(store, CountingStore)
    store.held = 0
    before = reset_peak()
    updater.run(bench.batches, 1, 1e-5)
    return {"bytes": peak() - before - store.held, "cache": store.held}


def step_figures(quick: bool) -> list[Figure]:
    """Ratios of step times, for a large and a small vocabulary."""
    figures = []
    for vocabulary, target in ((250_027, 1.08), (8_000, 1.15)):
        case = StepCase(vocabulary, micro_batches=8, **(_QUICK if quick else {}))
        seconds = step_seconds(case, rounds=1 if quick else 3)
        label = f"step V={vocabulary:,}, 8 x {case.sentences * case.length} tokens:"
        ratios: Mapping[str, tuple[str, str, float]] = {
            "exact update scope / micro": ("update", "micro", target),
            "cka micro / kl (no hidden loss)": ("micro", "kl", 1.05),
            "cka micro / linear": ("micro", "linear", 1.03),
        }
        for words, (one, other, limit) in ratios.items():
            figures.append(Figure(f"{label} {words}", seconds[one] / seconds[other], None if quick else limit))
        figures += [Figure(f"{label} {name}, seconds", value, None) for name, value in seconds.items()]
    return figures


def memory_figures(quick: bool) -> list[Figure]:
    """Peak of an update of many micro-batches against one of 1, each in a process of its own.

    What several micro-batches need by themselves, the sum of their gradients, shows beside plain KL and where the
    vocabulary is large; it is there from the second on, so that fewer of them show it as well.
    """
    figures = []
    for vocabulary, variant, many, target in (
        (8_000, "update", 32, 1.1),
        (8_000, "kl", 32, None),
        (250_027, "update", 4, None),
        (250_027, "kl", 4, None),
    ):
        sizes = _QUICK if quick else {"sentences": 32}
        found = {count: _in_process(StepCase(vocabulary, count, **sizes), variant) for count in (1, many)}
        label = f"update of {'exact CKA' if variant == 'update' else 'KL alone'}, V={vocabulary:,}:"
        ratio = found[many]["bytes"] / found[1]["bytes"]
        figures += [
            Figure(f"{label} peak memory of {many} micro-batches / 1", ratio, None if quick else target),
            Figure(f"{label} peak memory of 1 micro-batch, MB", found[1]["bytes"] / 1e6, None),
            Figure(f"{label} teacher states kept for {many}, MB", found[many]["cache"] / 1e6, None),
        ]
    return figures


_QUICK: dict[str, Any] = {"teacher_width": 128, "student_width": 64, "teacher_layers": 4, "student_layers": 2}


def _in_process(case: StepCase, variant: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.steps", variant, json.dumps(asdict(case))]
    # Freed memory is given back at once, so that the peak tells what is in use and not how the heap is cut up.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    result = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, env=environment)
    answer: dict[str, float] = json.loads(result.stdout)
    return answer


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Measures the memory of one update; see benchmarks.losses.")
    parser.add_argument("variant")
    parser.add_argument("case")
    arguments = parser.parse_args()
    print(json.dumps(update_memory(StepCase(**json.loads(arguments.case)), arguments.variant)))
