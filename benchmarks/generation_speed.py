"""Output tokens per second of students with random weights, all engines side by side."""

from __future__ import annotations

import time
from contextlib import ExitStack

import torch

from benchmarks.generation_engines import Shape, median_seconds, of_ctranslate2, of_transformers, ours, word_tokenizer
from benchmarks.report import Figure

#: Shapes, threads, and what cktk has to be faster than transformers by (beam 4, batch 16).
ROWS: tuple[tuple[Shape, int, float], ...] = (
    (Shape(6, 256, 8000, 40), 1, 3.0),
    (Shape(6, 640, 50265, 40), 1, 1.8),
    (Shape(6, 640, 50265, 40), 2, 1.8),
    (Shape(12, 384, 250027, 20), 2, 4.0),
)

#: What cktk has to reach of CTranslate2's speed at beam 4, by batch size: in fp32, and in int8.
OF_CTRANSLATE2 = {16: (1.2, 1.5), 1: (0.9, 0.5)}


def speed_figures(quick: bool) -> list[Figure]:
    """Speeds in tokens/s, and ratios with their targets."""
    figures = []
    for shape, threads, target in ROWS[:1] if quick else ROWS:
        torch.set_num_threads(threads)
        model, tokenizer = shape.build(), word_tokenizer(shape.vocabulary)
        for batch, beam in ((16, 4),) if quick else ((16, 4), (1, 4), (16, 1), (1, 1)):
            figures += _compared(shape, model, tokenizer, threads, batch, beam, target, 1 if quick else 3)
    return figures


def _compared(
    shape: Shape, model: object, tokenizer: object, threads: int, batch: int, beam: int, target: float, rounds: int
) -> list[Figure]:
    tokens, sources = shape.tokens, shape.sources(batch)
    with ExitStack() as stack:
        engines = {
            "cktk": ours(model, beam, tokens),
            "cktk int8": ours(model, beam, tokens, "int8"),
            "transformers": of_transformers(model, beam, tokens),
        }
        same = sum(a == b for a, b in zip(engines["cktk"](sources), engines["transformers"](sources), strict=True))
        # Weights are read at the first call, here, before CTranslate2's: what is allocated after it has converted an
        # int8 model lies in memory that is read at half the speed. CTranslate2 itself is as fast either way.
        engines["cktk int8"](sources)
        for name, kind in (("CTranslate2", "float32"), ("CTranslate2 int8", "int8")):
            engines[name] = stack.enter_context(of_ctranslate2(model, tokenizer, beam, tokens, kind, threads))
        seconds = median_seconds(engines, sources, rounds, time.perf_counter)
    where = f"{shape}, {threads} thread{'s'[: threads > 1]}, batch {batch}, beam {beam}"
    figures = [
        Figure(f"{where}: {name}, tokens/s", batch * tokens / spent, None, "higher") for name, spent in seconds.items()
    ]
    exact, whole = OF_CTRANSLATE2[batch] if beam == 4 else (None, None)
    return [
        *figures,
        Figure(f"{where}: same as transformers, of {batch}", same, None, "higher"),
        Figure(
            f"{where}: cktk / transformers",
            seconds["transformers"] / seconds["cktk"],
            target if (batch, beam) == (16, 4) else None,
            "higher",
        ),
        Figure(f"{where}: cktk / CTranslate2", seconds["CTranslate2"] / seconds["cktk"], exact, "higher"),
        Figure(f"{where}: int8 / int8", seconds["CTranslate2 int8"] / seconds["cktk int8"], whole, "higher"),
    ]
