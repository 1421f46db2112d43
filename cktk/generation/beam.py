"""Beam search over many sentences, with the hypotheses and scores of transformers' ``generate``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cktk.errors import CheckpointError, ConfigError, DataError
from cktk.generation import constraints
from cktk.generation.beams import Beams, Limits
from cktk.generation.configs import SearchConfig
from cktk.generation.decoder import DecoderState, IncrementalDecoder
from cktk.generation.head import OutputHead
from cktk.protocols import Hypothesis

#: Sentences per batch where the caller sets neither tokens nor sentences.
DEFAULT_BATCH_SIZE = 64

Ids = Sequence[int] | np.ndarray[Any, Any]


@dataclass(frozen=True)
class SpecialTokens:
    """The ids that steer a search: those of the model's generation config, or of the language asked for."""

    pad: int
    eos: int
    start: int
    forced_first: int | None
    forced_last: int | None

    @classmethod
    def of(cls, model: Any, start: int | None, forced_bos: int | None) -> SpecialTokens:
        """Read them from ``model``; ``start`` and ``forced_bos`` replace its decoder start and forced first token."""
        config = model.generation_config
        start = config.decoder_start_token_id if start is None else start
        start = config.bos_token_id if start is None else start
        eos, last = _single(config.eos_token_id), _single(config.forced_eos_token_id)
        if start is None or eos is None:
            missing = "decoder_start_token_id" if start is None else "eos_token_id"
            raise CheckpointError(f"the model's generation config names no {missing}; add it to generation_config.json")
        pad = eos if config.pad_token_id is None else config.pad_token_id
        return cls(pad, eos, start, config.forced_bos_token_id if forced_bos is None else forced_bos, last)


class BeamSearch:
    """Beam search (greedy search for beam 1) with a Hugging Face BART or mBART model.

    ``config.max_len_a * x + config.max_len_b`` tokens and the end-of-sentence token are the most that a source of x
    tokens gets; transformers' ``max_length`` counts the decoder start and the end too, so it is 2 more. ``min_len``
    likewise is transformers' ``min_length`` less 1. Output is never longer than the model has positions.
    """

    def __init__(self, model: Any, config: SearchConfig) -> None:
        if config.nbest > config.beam:
            raise ConfigError(f"--nbest {config.nbest} is more than --beam {config.beam}; raise the beam")
        self.model = model
        self.config = config

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
        on_progress: Callable[[int], None] | None = None,
    ) -> list[list[Hypothesis]]:
        """The ``nbest`` best hypotheses of each source, best first, in the order of ``sources``.

        ``sources`` are ids with their template; ``prefixes`` are ids that a hypothesis must begin with (they are part
        of it, but neither scored nor counted by the length penalty, like ``decoder_input_ids`` in transformers).
        ``forced_bos`` and ``decoder_start`` replace the model's own; a prefix takes the place of the forced first
        token. A batch holds at most ``max_tokens`` (sentences x longest source) and ``batch_size`` sentences.
        ``on_progress`` is told how many sentences were finished.

        The weights are read anew at each call. Raises `DataError` for a source or prefix that the model cannot hold.
        """
        special = SpecialTokens.of(self.model, decoder_start, forced_bos)
        decoder = IncrementalDecoder(self.model)
        head = OutputHead(decoder.weights, 2 * self.config.beam)
        prompts = self._prompts(special, prefixes, len(sources))
        self._check_lengths(sources, prompts, decoder.weights.max_positions)
        found: list[list[Hypothesis]] = [[] for _ in sources]
        for rows in length_batches([len(source) for source in sources], max_tokens, batch_size):
            batch = [sources[row] for row in rows]
            limits = self._limits(rows, batch, [prompts[row] for row in rows], decoder)
            for row, hypotheses in self._search(decoder, head, special, batch, limits):
                found[row] = hypotheses
                if on_progress is not None:
                    on_progress(1)
        return found

    def _search(
        self, decoder: IncrementalDecoder, head: OutputHead, special: SpecialTokens, batch: list[Ids], limits: Limits
    ) -> Iterator[tuple[int, list[Hypothesis]]]:
        """Yield each sentence of a batch as it leaves it: its number in the input and its hypotheses."""
        state = decoder.start(*padded(batch, special.pad, decoder.device))
        beams = Beams(self.config, limits, special.eos)
        for position in range(beams.length - 1):
            decoder.step(state, beams.tokens[:, :, position])
        while len(beams.done):
            parents = self._advance(decoder, head, special, state, beams)
            state.reorder(parents)
            finished = int(beams.done.sum())
            # Leaving costs a copy of the caches: a sentence waits until an eighth of the batch goes with it.
            if 8 * finished >= len(beams.done):
                for sentence in beams.done.nonzero().flatten().tolist():
                    yield int(beams.limits.index[sentence]), beams.results(sentence)
                remaining = (~beams.done).nonzero().flatten()
                beams.keep(remaining)
                state.keep(remaining)

    def _advance(
        self, decoder: IncrementalDecoder, head: OutputHead, special: SpecialTokens, state: DecoderState, beams: Beams
    ) -> Tensor:
        """One step of all sentences; returns the parents of the new beams."""
        logits = head.logits(decoder.step(state, beams.tokens[:, :, -1]))
        normaliser = head.normaliser(logits)
        self._constrain(logits, normaliser, special, beams)
        offsets = beams.scores - normaliser.view_as(beams.scores)
        return beams.advance(*head.best(logits, offsets, 2 * self.config.beam))

    def _constrain(self, logits: Tensor, normaliser: Tensor, special: SpecialTokens, beams: Beams) -> None:
        limits, length, width = beams.limits, beams.length, beams.scores.shape[1]
        if self.config.no_repeat_ngram_size:
            constraints.forbid_repeats(logits, beams.tokens.flatten(0, 1), self.config.no_repeat_ngram_size)
        if length <= self.config.min_len:
            logits[:, special.eos] = constraints.NEVER
        forced = torch.full_like(limits.index, -1)
        if length < limits.prompt.shape[1]:
            forced = limits.prompt[:, length]
        if length == 1 and special.forced_first is not None:
            forced = torch.where(limits.prompt_length == 1, special.forced_first, forced)
        if special.forced_last is not None:
            forced = torch.where(limits.max_length == length + 1, special.forced_last, forced)
        constraints.force(logits, normaliser, constraints.per_row(forced, width))

    def _prompts(
        self, special: SpecialTokens, prefixes: Sequence[Ids | None] | None, count: int
    ) -> list[tuple[int, ...]]:
        """Decoder start and prefix of each sentence."""
        if prefixes is None:
            return [(special.start,)] * count
        if len(prefixes) != count:
            raise DataError(f"{count} sources but {len(prefixes)} prefixes; give one (perhaps empty) prefix per source")
        return [(special.start, *(() if ids is None else map(int, ids))) for ids in prefixes]

    def _check_lengths(self, sources: Sequence[Ids], prompts: Sequence[tuple[int, ...]], positions: int) -> None:
        longest_source = int(self.model.config.max_position_embeddings)
        for number, (source, prompt) in enumerate(zip(sources, prompts, strict=True), start=1):
            if not 0 < len(source) <= longest_source:
                raise DataError(
                    f"source {number} has {len(source)} tokens, the model takes 1 to {longest_source}; truncate it"
                )
            if len(prompt) > positions:
                raise DataError(
                    f"prefix {number} has {len(prompt) - 1} tokens, the model takes at most {positions - 1}; shorten it"
                )

    def _limits(
        self, rows: list[int], sources: list[Ids], prompts: list[tuple[int, ...]], decoder: IncrementalDecoder
    ) -> Limits:
        config, device = self.config, decoder.device
        longest = []
        for source, prompt in zip(sources, prompts, strict=True):
            wanted = 2 + int(config.max_len_a * len(source) + config.max_len_b)
            # The last token is never fed, so P positions give P + 1 tokens. A prompt gets at least one token more.
            longest.append(max(min(wanted, decoder.weights.max_positions + 1), len(prompt) + 1))
        table = np.full((len(prompts), max(map(len, prompts))), -1, dtype=np.int64)
        for row, prompt in enumerate(prompts):
            table[row, : len(prompt)] = prompt
        return Limits(
            torch.tensor(rows, device=device), torch.from_numpy(table).to(device), torch.tensor(longest, device=device)
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


def _single(token: int | list[int] | None) -> int | None:
    if isinstance(token, list):
        if len(token) != 1:
            raise CheckpointError(f"the model's generation config names {len(token)} end tokens; keep one")
        return token[0]
    return token
