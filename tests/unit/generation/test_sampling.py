"""Sampling: distributions against transformers' warpers, outputs against a naive sampler with the same numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinLengthLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from cktk.generation import sampling
from cktk.generation.configs import SearchConfig
from cktk.generation.random_numbers import sentence_key, uniforms
from tests.unit.generation.models import VOCABULARY, beam_search, in_tiles, random_sources, tiny

EOS = 2
CHOICES: list[dict[str, Any]] = [
    {},
    {"temperature": 0.6},
    {"temperature": 1.7},
    {"sampling_topk": 1},
    {"sampling_topk": 5, "temperature": 0.8},
    {"sampling_topk": VOCABULARY},
    {"sampling_topp": 0.05},
    {"sampling_topp": 0.7, "temperature": 1.3},
    {"sampling_topp": 0.97},
    {"sampling_topp": 0.6, "sampling_topk": 7},
]


def warpers(config: SearchConfig) -> LogitsProcessorList:
    """What transformers does with the logits under these options, in its order."""
    found = LogitsProcessorList([TemperatureLogitsWarper(config.temperature)])
    if config.sampling_topk > 0:
        found.append(TopKLogitsWarper(config.sampling_topk))
    if config.sampling_topp > 0:
        found.append(TopPLogitsWarper(config.sampling_topp))
    return found


def sampled(**settings: Any) -> SearchConfig:
    return SearchConfig(beam=1, sampling=True, **settings)


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_shares_of_the_tokens_are_their_probabilities(choice: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers at equal distances draw each token as often as its probability says, give or take one."""
    monkeypatch.setattr(sampling, "FIRST_CANDIDATES", 3)
    config, count = sampled(**choice), 4000
    logits = 2.5 * torch.randn(4, VOCABULARY, generator=torch.Generator().manual_seed(3))
    logits[1, :20] = float("-inf")
    logits[2, 1:] = float("-inf")
    expected = warpers(config)(None, logits.clone()).softmax(-1)  # type: ignore[arg-type]
    at = ((torch.arange(count) + 0.5) / count).double().expand(4, -1)
    tokens = sampling.draw(in_tiles(logits, 8), at, config)
    shares = torch.stack([row.bincount(minlength=VOCABULARY) for row in tokens]) / count
    assert (shares - expected).abs().max() <= 1.01 / count
    assert bool((shares[expected == 0] == 0).all())


def inverse(weights: Tensor, at: float) -> int:
    """The first index whose cumulative share lies above ``at``."""
    return int((weights.double().cumsum(0) <= at * weights.double().sum()).sum())


@torch.no_grad()
def naive(model: Any, source: Any, config: SearchConfig, start: int, number: int) -> tuple[tuple[int, ...], float]:
    """Draw ``number`` of a sentence, the whole model anew for every token."""
    processors = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(config.repetition_penalty)])
    processors.append(NoRepeatNGramLogitsProcessor(config.no_repeat_ngram_size or 99))
    processors.append(MinLengthLogitsProcessor(config.min_len + 1, EOS))
    key = np.array([sentence_key(config.seed, source)], dtype=np.uint64)
    tokens, score = torch.tensor([[start]]), 0.0
    while tokens.shape[1] < config.max_len_b + 2:
        logits = model(input_ids=torch.as_tensor(source)[None], decoder_input_ids=tokens).logits[:, -1]
        allowed = processors(tokens, logits.clone())
        weights = warpers(config)(tokens, allowed.clone()).softmax(-1)[0]
        at = float(uniforms(key, tokens.shape[1], config.nbest)[0, number])
        sort = config.sampling_topk > 0 or config.sampling_topp > 0
        order = weights.argsort(descending=True) if sort else torch.arange(VOCABULARY)
        token = int(order[inverse(weights[order], at)])
        score += float(allowed[0, token] - logits.logsumexp(-1))
        tokens = torch.cat([tokens, torch.tensor([[token]])], dim=1)
        if token == EOS:
            break
    return tuple(tokens[0, 1:].tolist()), score / (tokens.shape[1] - 1) ** config.lenpen


@pytest.mark.parametrize(
    ("kind", "choice"),
    [
        ("bart", {}),
        ("flan", {"sampling_topp": 0.8, "temperature": 1.2, "lenpen": 0.5}),
        ("mbart", {"sampling_topk": 6, "min_len": 3, "no_repeat_ngram_size": 1}),
        ("t5", {"repetition_penalty": 2.0, "temperature": 1.5}),
    ],
)
def test_equals_the_naive_sampler(kind: str, choice: dict[str, Any]) -> None:
    forced = {} if kind in ("flan", "t5") else {"forced_eos_token_id": None}
    model, config = tiny(kind, 2, **forced), sampled(nbest=3, max_len_b=8, seed=11, **choice)
    sources = random_sources(2, 4)
    start = model.generation_config.decoder_start_token_id
    for source, hypotheses in zip(sources, beam_search(model, config).generate(sources), strict=True):
        expected = sorted((naive(model, source, config, start, number) for number in range(3)), key=lambda it: -it[1])
        assert [hypothesis.tokens for hypothesis in hypotheses] == [tokens for tokens, _ in expected]
        assert [hypothesis.score for hypothesis in hypotheses] == pytest.approx([s for _, s in expected], abs=1e-4)


def test_neither_batch_nor_order_nor_number_of_draws_changes_a_sample() -> None:
    model, sources = tiny("bart", 4, eos_bias=6.0), random_sources(4, 7, longest=20)  # so that sentences leave early
    prefixes = [None, [5], [9, 8], [], [4, 2, 6], [11, 12], None]
    many = beam_search(model, sampled(nbest=4, max_len_b=12, temperature=2.0))
    together = many.generate(sources, prefixes=prefixes)
    one = beam_search(model, sampled(max_len_b=12, temperature=2.0))
    for row in range(7):
        (alone,) = many.generate([sources[row]], prefixes=[prefixes[row]])
        assert [h.tokens for h in alone] == [h.tokens for h in together[row]]
        (first,) = one.generate([sources[row]], prefixes=[prefixes[row]])
        assert first[0].tokens in {h.tokens for h in together[row]}
    assert len({max(len(h.tokens) for h in found) for found in together}) > 3


def test_the_seed_decides() -> None:
    model, sources = tiny("bart", 4), random_sources(4)
    outputs = [
        [found[0].tokens for found in beam_search(model, sampled(max_len_b=12, seed=seed)).generate(sources)]
        for seed in (1, 1, 2)
    ]
    assert outputs[0] == outputs[1] != outputs[2]


def test_one_token_to_draw_from_is_greedy_search() -> None:
    model, sources = tiny("mt5", 4), random_sources(4)
    greedy = beam_search(model, SearchConfig(beam=1, max_len_b=12)).generate(sources)
    for found, expected in zip(
        beam_search(model, sampled(sampling_topk=1, max_len_b=12)).generate(sources), greedy, strict=True
    ):
        assert found[0].tokens == expected[0].tokens
        assert found[0].score == pytest.approx(expected[0].score, abs=1e-5)


def test_all_tokens_forbidden_gives_an_empty_output() -> None:
    model = tiny("bart", 1, vocab_size=4, forced_eos_token_id=None)
    for choice in ({}, {"sampling_topk": 2}, {"sampling_topp": 0.5}):
        config = sampled(max_len_b=20, min_len=20, no_repeat_ngram_size=1, **choice)
        assert beam_search(model, config).generate([np.array([3, 2])])[0][0].tokens == ()


def test_numbers_are_uniform_and_unrelated() -> None:
    keys = np.arange(200, dtype=np.uint64)
    numbers = np.stack([uniforms(keys, step, 5) for step in range(40)])
    assert numbers.min() > 0 and numbers.max() < 1
    counts = np.histogram(numbers, 20, (0, 1))[0]
    assert abs(counts / counts.mean() - 1).max() < 0.08
    assert len(np.unique(numbers)) > 0.999 * numbers.size
    for axis in range(3):
        moved = np.roll(numbers, 1, axis)
        assert abs(np.corrcoef(numbers.ravel(), moved.ravel())[0, 1]) < 0.02
