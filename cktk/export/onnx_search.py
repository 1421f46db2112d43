"""Greedy search by ONNX Runtime over the graphs of `cktk.export.onnx_format`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from cktk.architectures.families.family import family_of
from cktk.export.onnx_format import DECODER, ENCODER
from cktk.export.optional import load
from cktk.generation.beam import Ids, length_batches
from cktk.generation.special_tokens import SpecialTokens
from cktk.protocols import Hypothesis

Array = np.ndarray[Any, Any]


class _Limits(NamedTuple):
    """Of each sentence of a batch: what the output has to begin with, and its longest output, end included."""

    prompts: list[tuple[int, ...]]
    longest: list[int]


class OnnxGreedy:
    """The greedy search of `cktk.generation.beam.BeamSearch` with the graphs in ``folder``.

    Outputs have at most ``max_len`` tokens and the end of sentence; ``model`` has the student's configurations.
    """

    def __init__(self, folder: Path, model: Any, max_len: int) -> None:
        runtime = load("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # errors alone
        self._encoder, self._decoder = (
            runtime.InferenceSession(folder / name, options, providers=["CPUExecutionProvider"])
            for name in (ENCODER, DECODER)
        )
        self._model, self._max_len = model, max_len
        self._layout = family_of(model.config.model_type, folder).decoder_layout(model.config)

    def generate(
        self,
        sources: Sequence[Ids],
        *,
        max_tokens: int | None = None,
        batch_size: int | None = None,
        prefixes: Sequence[Ids | None] | None = None,
        forced_bos: int | None = None,
        decoder_start: int | None = None,
        context: Sequence[int] | None = None,
        on_progress: Callable[[int], None] | None = None,
    ) -> list[list[Hypothesis]]:
        """See `BeamSearch.generate`."""
        special = SpecialTokens.of(self._model, decoder_start, forced_bos)
        room = self._layout.source_positions or sys.maxsize
        found: list[list[Hypothesis]] = [[] for _ in sources]
        for rows in length_batches([len(source) for source in sources], max_tokens, batch_size):
            prefix = [() if prefixes is None else tuple(map(int, prefixes[row] or ())) for row in rows]
            longest = [
                max(min(1 + self._max_len + (context[row] if context else 0), room), len(begun) + 1)
                for row, begun in zip(rows, prefix, strict=True)
            ]
            for row, best in zip(
                rows, self._search([sources[row] for row in rows], _Limits(prefix, longest), special), strict=True
            ):
                found[row] = [best]
            if on_progress is not None:
                on_progress(len(rows))
        return found

    def _search(self, sources: list[Ids], limits: _Limits, special: SpecialTokens) -> list[Hypothesis]:
        ids, mask = _padded(sources, special.pad)
        cross = self._encoder.run(None, {"input_ids": ids, "attention_mask": mask})
        layers, batch, heads, _, width = cross[0].shape
        past = [np.zeros((layers, batch, heads, 0, width), np.float32) for _ in range(2)]
        tokens = np.full((batch, 1), special.start, np.int64)
        outputs: list[list[int]] = [[] for _ in sources]
        scores = np.zeros(batch)
        running = set(range(batch))
        names = ("attention_mask", "cross_keys", "cross_values", "past_keys", "past_values")
        while running:
            state = dict(zip(names, (mask, *cross, *past), strict=True))
            logits, *past = self._decoder.run(None, {"tokens": tokens, **state})
            for row in sorted(running):
                token, gained = _choose(logits[row], _forced(outputs[row], row, limits, special), special)
                outputs[row].append(token)
                scores[row] += gained
                tokens[row, 0] = token
                in_prompt = len(outputs[row]) <= len(limits.prompts[row])
                if (token == special.eos and not in_prompt) or len(outputs[row]) == limits.longest[row]:
                    running.remove(row)
        written = [max(len(output) - len(prompt), 1) for output, prompt in zip(outputs, limits.prompts, strict=True)]
        return [
            Hypothesis(tuple(output), float(score / length))
            for output, score, length in zip(outputs, scores, written, strict=True)
        ]


def _forced(output: list[int], row: int, limits: _Limits, special: SpecialTokens) -> int | None:
    """The token that has to follow ``output``, if one has to."""
    prompt, place = limits.prompts[row], len(output)
    if place + 1 == limits.longest[row] and special.forced_last is not None:
        return special.forced_last
    if place < len(prompt):
        return prompt[place]
    return special.forced_first if place == 0 else None


def _choose(logits: Array, forced: int | None, special: SpecialTokens) -> tuple[int, float]:
    """The next token and its log-probability; one that is forced costs nothing."""
    if forced is not None:
        return forced, 0.0
    largest = float(logits.max())
    total = largest + float(np.log(np.exp(logits.astype(np.float64) - largest).sum()))
    allowed = logits.copy()
    allowed[list(special.never)] = -np.inf
    token = int(allowed.argmax())
    return token, float(allowed[token]) - total


def _padded(sources: list[Ids], pad: int) -> tuple[Array, Array]:
    ids = np.full((len(sources), max(map(len, sources))), pad, np.int64)
    mask = np.zeros_like(ids)
    for row, source in enumerate(sources):
        ids[row, : len(source)] = source
        mask[row, : len(source)] = 1
    return ids, mask
