"""Beam search and its kin over many sentences, with the hypotheses and scores of transformers' ``generate``."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cktk.errors import DataError
from cktk.generation.beams import Beams
from cktk.generation.configs import SearchConfig
from cktk.generation.constraints import Constraints
from cktk.generation.groups import GroupedBeams
from cktk.generation.hypotheses import Hypotheses, Limits
from cktk.generation.operators.choice import check_int8
from cktk.generation.random_numbers import sentence_key
from cktk.generation.sampling import Samples
from cktk.generation.scorer import Ensemble, ModelScorer, Scorer
from cktk.generation.special_tokens import SpecialTokens
from cktk.protocols import DecoderLayout, Hypothesis

#: Sentences per batch where the caller sets neither tokens nor sentences.
DEFAULT_BATCH_SIZE = 64

Ids = Sequence[int] | np.ndarray[Any, Any]


class BeamSearch:
    """The search that ``config`` asks for with a Hugging Face encoder-decoder whose decoder ``layout`` describes.

    That is beam search, in groups or not, greedy search for beam 1, or sampling.

    ``config.max_len_a * x + config.max_len_b`` tokens and the end-of-sentence token are the most that a source of x
    tokens gets; transformers' ``max_length`` counts the decoder start and the end too, so it is 2 more. ``min_len``
    likewise is transformers' ``min_length`` less 1. Output is never longer than the model has positions.
    The weights are read once, by the first call; with quantization int8 they and what they are multiplied with are
    rounded to 8-bit integers; ``compile`` has decoder steps fused by `torch.compile`. The probabilities of ``others``,
    which have the same vocabulary, are averaged with the model's. Only the tokens ``kept`` are written (None: all).
    """

    def __init__(
        self,
        model: Any,
        config: SearchConfig,
        layout: DecoderLayout,
        *,
        others: Sequence[tuple[Any, DecoderLayout]] = (),
        kept: Sequence[int] | None = None,
    ) -> None:
        self.model = model
        self.config = config
        self.layout = layout
        self._others = others
        self._kept = None if kept is None else sorted(kept)
        # Buffers are used again from step to step.
        self._turn = threading.Lock()
        if config.quantization == "int8":
            check_int8(model.device)

    @cached_property
    def _scorer(self) -> Scorer:
        kept = None if self._kept is None else torch.tensor(self._kept, device=self.model.device)
        scorers = [
            ModelScorer(model, layout, self.config, 2 * self.config.beam, kept=kept)
            for model, layout in ((self.model, self.layout), *self._others)
        ]
        return Ensemble(scorers) if self._others else scorers[0]

    @torch.inference_mode()
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
        """The ``nbest`` best hypotheses of each source, best first, in the order of ``sources``.

        ``sources`` are ids with their template; ``prefixes`` are ids that a hypothesis must begin with (they are part
        of it, but neither scored nor counted by the length penalty, like ``decoder_input_ids`` in transformers).
        ``forced_bos`` and ``decoder_start`` replace the model's own; a prefix takes the place of the forced first
        token. ``context`` says how many tokens of each prefix belong to sentences before, which count in no limit of
        length but the model's. A batch holds at most ``max_tokens`` (sentences x longest source) and ``batch_size``
        sentences.
        ``on_progress`` is told how many sentences were finished.

        Raises `DataError` for a source or prefix that the model cannot hold. Threads that share a search wait for one
        another.
        """
        special = SpecialTokens.of(self.model, decoder_start, forced_bos)
        constraints = Constraints(self.config, special)
        prompts = self._prompts(special, prefixes, len(sources))
        found: list[list[Hypothesis]] = [[] for _ in sources]
        with self._turn:
            self._check_lengths(sources, prompts)
            for rows in length_batches([len(source) for source in sources], max_tokens, batch_size):
                batch = [sources[row] for row in rows]
                before = [context[row] if context else 0 for row in rows]
                limits = self._limits(rows, batch, [prompts[row] for row in rows], before)
                for row, hypotheses in self._search(constraints, batch, limits):
                    found[row] = hypotheses
                    if on_progress is not None:
                        on_progress(1)
        return found

    def _search(
        self, constraints: Constraints, batch: list[Ids], limits: Limits
    ) -> Iterator[tuple[int, list[Hypothesis]]]:
        """Yield each sentence of a batch as it leaves it: its number in the input and its hypotheses."""
        scorer = self._scorer
        state = scorer.start(*padded(batch, constraints.special.pad, scorer.device))
        hypotheses = self._hypotheses(batch, limits, constraints.special.eos)
        for position in range(hypotheses.tokens.shape[2] - 1):
            scorer.feed(state, hypotheses.tokens[:, :, position])
        while len(hypotheses.done):
            logits = scorer.step(state, hypotheses.tokens[:, :, -1])
            forced = constraints.apply(logits, hypotheses)
            state.reorder(hypotheses.choose(logits, forced))
            done = hypotheses.done
            # Leaving costs a copy of the caches: a sentence waits until an eighth of the batch goes with it.
            if 8 * int(done.sum()) >= len(done):
                for sentence in done.nonzero().flatten().tolist():
                    yield int(hypotheses.limits.index[sentence]), hypotheses.results(sentence)
                remaining = (~done).nonzero().flatten()
                hypotheses.keep(remaining)
                state.keep(remaining)

    def _hypotheses(self, batch: list[Ids], limits: Limits, eos: int) -> Hypotheses:
        config = self.config
        if config.sampling:
            keys = np.array([sentence_key(config.seed, source) for source in batch], dtype=np.uint64)
            return Samples(config, limits, eos, torch.from_numpy(keys.view(np.int64)))
        if config.groups > 1:
            return GroupedBeams(config, limits, eos)
        return Beams(config, config.beam, limits, eos)

    def _prompts(
        self, special: SpecialTokens, prefixes: Sequence[Ids | None] | None, count: int
    ) -> list[tuple[int, ...]]:
        """Decoder start and prefix of each sentence."""
        if prefixes is None:
            return [(special.start,)] * count
        if len(prefixes) != count:
            raise DataError(f"{count} sources but {len(prefixes)} prefixes; give one (perhaps empty) prefix per source")
        return [(special.start, *(() if ids is None else map(int, ids))) for ids in prefixes]

    def _check_lengths(self, sources: Sequence[Ids], prompts: Sequence[tuple[int, ...]]) -> None:
        longest, positions = self.layout.source_positions, self._scorer.max_positions
        kept = None if self._kept is None else frozenset(self._kept)
        for number, (source, prompt) in enumerate(zip(sources, prompts, strict=True), start=1):
            if kept is not None and not kept.issuperset(prompt[1:]):
                raise DataError(f"prefix {number} has tokens that --target-vocabulary lacks; add its words to the file")
            if len(source) == 0:
                raise DataError(f"source {number} has no tokens; give it at least its end-of-sentence token")
            if longest is not None and len(source) > longest:
                raise DataError(
                    f"source {number} has {len(source)} tokens, the model takes 1 to {longest}; truncate it"
                )
            if positions is not None and len(prompt) > positions:
                raise DataError(
                    f"prefix {number} has {len(prompt) - 1} tokens, the model takes at most {positions - 1}; shorten it"
                )

    def _limits(
        self,
        rows: list[int],
        sources: list[Ids],
        prompts: list[tuple[int, ...]],
        context: list[int],
    ) -> Limits:
        config, device, positions = self.config, self._scorer.device, self._scorer.max_positions
        longest = []
        # The last token is never fed, so P positions give P + 1 tokens. A prompt gets at least one token more.
        room = sys.maxsize if positions is None else positions + 1
        for source, prompt, before in zip(sources, prompts, context, strict=True):
            wanted = 2 + int(config.max_len_a * len(source) + config.max_len_b) + before
            longest.append(max(min(wanted, room), len(prompt) + 1))
        table = np.full((len(prompts), max(map(len, prompts))), -1, dtype=np.int64)
        for row, prompt in enumerate(prompts):
            table[row, : len(prompt)] = prompt
        return Limits(
            torch.tensor(rows, device=device),
            torch.from_numpy(table).to(device),
            torch.tensor(longest, device=device),
            torch.tensor(context, device=device),
        )


def length_batches(lengths: Sequence[int], max_tokens: int | None, batch_size: int | None) -> Iterator[list[int]]:
    """Rows of similar length, longest first; each batch keeps to both limits but holds at least one row.

    Starting with the longest shows at once whether the memory is enough.
    """
    if max_tokens is None and batch_size is None:
        batch_size = DEFAULT_BATCH_SIZE
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    start = 0
    while start < len(order):
        size = len(order) if batch_size is None else batch_size
        if max_tokens is not None:
            size = min(size, max(1, max_tokens // max(1, lengths[order[start]])))
        yield order[start : start + size]
        start += size


def padded(sources: Sequence[Ids], pad: int, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Sources as one tensor (B, S) and its attention mask, None where all are equally long."""
    lengths = np.array([len(source) for source in sources])
    table = np.full((len(sources), lengths.max()), pad, dtype=np.int64)
    for row, source in enumerate(sources):
        table[row, : len(source)] = source
    mask = np.arange(table.shape[1]) < lengths[:, None]
    if mask.all():
        return torch.from_numpy(table).to(device), None
    return torch.from_numpy(table).to(device), torch.from_numpy(mask.astype(np.int64)).to(device)
