"""Search and sampling by CTranslate2, in the place of `cktk.generation.beam.BeamSearch`.

What is CTranslate2's own rule, and differs from ours: a sentence is done as soon as as many outputs have ended as the
beam is wide; what a constraint takes from a token, its neighbours get; the decoder's start is not among the tokens that
are not to be repeated; draws depend on the batch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from cktk.errors import ConfigError, DataError
from cktk.export.ctranslate2_format import open_model
from cktk.export.optional import load
from cktk.generation.beam import Ids, length_batches
from cktk.generation.configs import SearchConfig
from cktk.generation.special_tokens import SpecialTokens
from cktk.protocols import DecoderLayout, Hypothesis
from cktk.utils.files import read_json


class CTranslate2Search:
    """The search that ``config`` asks for with the model in ``folder``, which `write_ctranslate2` wrote.

    ``model`` has the student's ``config`` and ``generation_config``, and perhaps nothing else. Raises
    `CheckpointError` for a damaged folder.
    """

    def __init__(self, folder: Path, model: Any, config: SearchConfig, layout: DecoderLayout, device: str) -> None:
        self.config, self.model, self._layout = config, model, layout
        # Before the first thread draws: CTranslate2 seeds each where it starts.
        load("ctranslate2").set_random_seed(config.seed)
        self._translator = open_model(folder, device, torch.get_num_threads())
        self._tokens: list[str] = read_json(folder / "shared_vocabulary.json")
        self._ids = {token: index for index, token in enumerate(self._tokens)}
        self._start: str | None = read_json(folder / "config.json")["decoder_start_token"]

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
        special = SpecialTokens.of(self.model, decoder_start, forced_bos)
        if prefixes is not None and len(prefixes) != len(sources):
            raise DataError(f"{len(sources)} sources but {len(prefixes)} prefixes; give one prefix per source")
        begun = [() if prefixes is None else _tuple(prefixes[row]) for row in range(len(sources))]
        found: list[list[Hypothesis]] = [[] for _ in sources]
        for rows, limit, before in self._groups(sources, begun, context):
            lengths = [len(sources[row]) for row in rows]
            for part in length_batches(lengths, max_tokens, batch_size):
                batch = [rows[place] for place in part]
                results = self._translate(
                    [sources[row] for row in batch], [begun[row] for row in batch], special, limit, before
                )
                for row, hypotheses in zip(batch, results, strict=True):
                    found[row] = hypotheses
                    if on_progress is not None:
                        on_progress(1)
        return found

    def _groups(
        self, sources: Sequence[Ids], begun: Sequence[tuple[int, ...]], context: Sequence[int] | None
    ) -> Iterator[tuple[list[int], int, int]]:
        """Rows that have the same limits, which CTranslate2 takes once a batch: these, their longest output, context.

        The longest output counts the end-of-sentence token and what the output has to begin with.
        """
        room = self._layout.source_positions or sys.maxsize
        groups: dict[tuple[int, int], list[int]] = {}
        for row, source in enumerate(sources):
            before = context[row] if context else 0
            wanted = 1 + int(self.config.max_len_a * len(source) + self.config.max_len_b) + before
            limit = max(min(wanted, room), len(begun[row]) + 1)
            if len(source) > room or len(begun[row]) >= room:
                raise DataError(f"source or prefix {row + 1} is too long: the model takes {room} tokens; shorten it")
            groups.setdefault((limit, before), []).append(row)
        for (limit, before), rows in groups.items():
            yield rows, limit, before

    def _translate(
        self,
        sources: list[Ids],
        begun: list[tuple[int, ...]],
        special: SpecialTokens,
        limit: int,
        before: int,
    ) -> list[list[Hypothesis]]:
        config = self.config
        first = () if special.forced_first is None else (special.forced_first,)
        prompts = [prefix or first for prefix in begun]
        start = self._start_token(special)
        # CTranslate2 forces no last token: it stops one token earlier, and the token is added.
        forced_last = special.forced_last is not None and limit > 1 + max(map(len, prompts))
        limit -= forced_last
        results = self._translator.translate_batch(
            [[self._tokens[token] for token in source] for source in sources],
            [start + [self._tokens[token] for token in prompt] for prompt in prompts]
            if start or any(prompts)
            else None,
            beam_size=config.beam,
            num_hypotheses=config.nbest if config.sampling else config.beam,
            length_penalty=config.lenpen,
            repetition_penalty=config.repetition_penalty,
            no_repeat_ngram_size=config.no_repeat_ngram_size,
            suppress_sequences=[[self._tokens[token]] for token in special.never] or None,
            max_input_length=0,
            max_decoding_length=limit,
            min_decoding_length=min(config.min_len + before, limit),
            return_scores=True,
            return_end_token=True,
            sampling_topk=max(config.sampling_topk, 0) if config.sampling else 1,
            sampling_topp=config.sampling_topp if config.sampling_topp > 0 else 1.0,
            sampling_temperature=config.temperature,
        )
        last = special.forced_last if forced_last else None
        return [
            self._hypotheses(result, len(prefix), limit, last) for result, prefix in zip(results, begun, strict=True)
        ]

    def _start_token(self, special: SpecialTokens) -> list[str]:
        """What has to stand before a prefix: the decoder's start, where the folder leaves it open."""
        start = self._tokens[special.start]
        if self._start is None:
            return [start]
        if self._start != start:
            raise ConfigError(
                f"the decoder has to start with {start!r}, but the CTranslate2 folder was written for "
                f"{self._start!r}: export the student again with the generation settings it has now"
            )
        return []

    def _hypotheses(self, result: Any, given: int, limit: int, forced_last: int | None) -> list[Hypothesis]:
        """Best first; a score leaves the ``given`` tokens out of the length, as ours do."""
        found, power = [], self.config.lenpen
        for tokens, score in zip(result.hypotheses, result.scores, strict=True):
            ids = [self._ids[token] for token in tokens]
            total = score * max(len(ids), 1) ** power
            if forced_last is not None and len(ids) == limit and ids[-1] != forced_last:
                ids.append(forced_last)
            found.append(Hypothesis(tuple(ids), total / max(len(ids) - given, 1) ** power))
        return sorted(found, key=lambda hypothesis: -hypothesis.score)[: self.config.nbest]


def _tuple(ids: Ids | None) -> tuple[int, ...]:
    return () if ids is None else tuple(map(int, ids))
