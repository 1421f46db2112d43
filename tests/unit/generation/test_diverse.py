"""Diverse beam search against a naive one that runs the whole model anew for every hypothesis and step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from cktk.generation.configs import SearchConfig
from cktk.protocols import Hypothesis
from tests.unit.generation.models import beam_search, random_sources, tiny

EOS = 2
Found = list[tuple[float, tuple[int, ...]]]


class Group:
    """One group of the naive search: running (score, tokens) pairs, ended ones, and whether it is finished."""

    def __init__(self, start: int, width: int) -> None:
        self.width = width
        self.running: Found = [(0.0, (start,))]
        self.ended: Found = []
        self.finished = False

    def step(self, log_probs: Any, losses: dict[int, float], lenpen: float, last: bool) -> list[int]:
        """Go on by one token; returns the tokens taken by hypotheses that run on."""
        length = len(self.running[0][1])
        grown = [
            (score + value - losses.get(token, 0.0), (*tokens, token))
            for score, tokens in self.running
            for token, value in enumerate(log_probs(tokens))
        ]
        best = sorted(grown, key=lambda pair: -pair[0])[: 2 * self.width]
        ends = [last or tokens[-1] == EOS for _, tokens in best]
        self.ended += [
            (s / length**lenpen, t) for (s, t), end in list(zip(best, ends, strict=True))[: self.width] if end
        ]
        self.ended = sorted(self.ended, key=lambda pair: -pair[0])[: self.width]
        self.running = [pair for pair, end in zip(best, ends, strict=True) if not end][: self.width]
        full = len(self.ended) == self.width
        self.finished = last or (full and self.running[0][0] / length**lenpen <= self.ended[-1][0])
        return [] if self.finished else [tokens[-1] for _, tokens in self.running]


@torch.no_grad()
def naive(model: Any, source: Any, config: SearchConfig, start: int) -> Found:
    """The ``nbest`` of all groups, best first."""
    encoded = model.get_encoder()(input_ids=torch.as_tensor(source)[None])

    def log_probs(tokens: tuple[int, ...]) -> list[float]:
        logits = model(encoder_outputs=encoded, decoder_input_ids=torch.tensor([tokens])).logits[0, -1]
        found: list[float] = logits.log_softmax(-1).tolist()
        return found

    groups = [Group(start, config.beam // config.diverse_beam_groups) for _ in range(config.diverse_beam_groups)]
    for length in range(2, config.max_len_b + 3):
        losses: dict[int, float] = {}
        for group in groups:
            if not group.finished:
                for token in group.step(log_probs, losses, config.lenpen, length == config.max_len_b + 2):
                    losses[token] = losses.get(token, 0.0) + config.diverse_beam_strength
    return sorted((pair for group in groups for pair in group.ended), key=lambda pair: -pair[0])[: config.nbest]


@pytest.mark.parametrize("kind", ["bart", "flan"])
@pytest.mark.parametrize(("beam", "groups"), [(4, 2), (3, 3), (4, 4)])
def test_equals_the_naive_search(kind: str, beam: int, groups: int) -> None:
    model = tiny(kind, groups, eos_bias=3.0, **({"forced_eos_token_id": None} if kind == "bart" else {}))
    config = SearchConfig(
        beam=beam, nbest=beam, diverse_beam_groups=groups, diverse_beam_strength=0.7, lenpen=0.8, max_len_b=9
    )
    sources = random_sources(groups, 4)
    found = beam_search(model, config).generate(sources)
    for source, hypotheses in zip(sources, found, strict=True):
        expected = naive(model, source, config, model.generation_config.decoder_start_token_id)
        assert [hypothesis.tokens for hypothesis in hypotheses] == [tokens[1:] for _, tokens in expected]
        assert [hypothesis.score for hypothesis in hypotheses] == pytest.approx(
            [score for score, _ in expected], abs=1e-4
        )


def by_groups(strength: float, groups: int, beam: int = 4, **settings: Any) -> list[list[Hypothesis]]:
    config = SearchConfig(
        beam=beam, nbest=beam, diverse_beam_groups=groups, diverse_beam_strength=strength, max_len_b=10, **settings
    )
    return beam_search(tiny("bart", 5), config).generate(random_sources(5), batch_size=4)


def test_without_strength_all_groups_are_the_same_beam_search() -> None:
    config = SearchConfig(beam=2, nbest=2, max_len_b=10)
    plain = beam_search(tiny("bart", 5), config).generate(random_sources(5))
    for hypotheses, expected in zip(by_groups(0.0, 2), plain, strict=True):
        assert [h.tokens for h in hypotheses] == [h.tokens for h in expected for _ in range(2)]


def test_a_large_strength_makes_first_tokens_differ() -> None:
    for hypotheses in by_groups(1000.0, 4, min_len=1):
        assert len({hypothesis.tokens[0] for hypothesis in hypotheses}) == 4


def test_a_forced_token_costs_nothing() -> None:
    """All groups have to take it."""
    model = tiny("bart", 5)
    config = SearchConfig(beam=2, nbest=2, diverse_beam_groups=2, diverse_beam_strength=50.0, max_len_b=1)
    for hypotheses in beam_search(model, config).generate(random_sources(5), forced_bos=9):
        assert [h.tokens for h in hypotheses] == [(9, EOS), (9, EOS)]
        assert [h.score for h in hypotheses] == pytest.approx([0.0, 0.0])


def test_batches_prefixes_and_order_change_nothing() -> None:
    model = tiny("mt5", 3)
    search = beam_search(model, SearchConfig(beam=4, nbest=4, diverse_beam_groups=2, max_len_b=9))
    sources, prefixes = random_sources(3, 6), [None, [5], [9, 8, 4], [], [4, 2], [11]]
    together = search.generate(sources, prefixes=prefixes)
    for row in np.random.default_rng(0).permutation(6):
        (alone,) = search.generate([sources[row]], prefixes=[prefixes[row]])
        assert [h.tokens for h in alone] == [h.tokens for h in together[row]]
        assert [h.score for h in alone] == pytest.approx([h.score for h in together[row]], abs=1e-5)
