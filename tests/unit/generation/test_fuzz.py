"""Searches with options drawn at random, several at once, against transformers' `generate`; ties are counted.

`test_beam.py` draws fewer options and allows for ties in a simpler way; here are also prefixes with all of them,
forbidden tokens, limits of batches, and the scores of greedy search.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from torch import Tensor

from cktk.generation.configs import SearchConfig
from cktk.generation.operators import choice
from cktk.protocols import Hypothesis
from tests.unit.generation.models import KINDS, VOCABULARY, beam_search, tiny

TIE = 1e-5
PAD, EOS = 1, 2
TOKENS = st.integers(3, VOCABULARY - 1)
STOPPING = {"false": False, "true": True, "never": "never"}


class Rules(NamedTuple):
    """What a model's generation config says of its output."""

    forced_bos_token_id: int | None
    forced_eos_token_id: int | None
    bad_words_ids: list[list[int]] | None


@dataclass(frozen=True)
class Case:
    """One search: ``sources`` end with eos, ``prefixes`` may be empty; lengths count the decoder start and the end."""

    seed: int
    sources: list[list[int]]
    prefixes: list[list[int]]
    search: SearchConfig
    rules: Rules
    decoder_start: int | None
    batch: dict[str, int]

    @property
    def max_length(self) -> int:
        return self.search.max_len_b + 2


@st.composite
def cases(draw: st.DrawFn) -> Case:
    def maybe(values: st.SearchStrategy[Any], otherwise: Any) -> Any:
        return draw(values) if draw(st.booleans()) else otherwise

    sources = draw(st.lists(st.lists(TOKENS, min_size=0, max_size=9), min_size=2, max_size=5))
    beam, room = draw(st.integers(1, 5)), draw(st.integers(2, 14))
    prefix = st.lists(TOKENS, max_size=min(3, room - 1))
    search = SearchConfig(
        beam=beam,
        nbest=draw(st.integers(1, beam)),
        lenpen=draw(st.sampled_from([1.0, 0.0, 0.6, 2.0, -0.7])),
        max_len_b=room,
        min_len=maybe(st.integers(1, room), 0),
        early_stopping=draw(st.sampled_from(list(STOPPING))),
        no_repeat_ngram_size=maybe(st.integers(1, 3), 0),
        repetition_penalty=maybe(st.sampled_from([0.7, 1.2, 3.0]), 1.0),
    )
    forbidden = maybe(st.lists(TOKENS, min_size=1, max_size=4, unique=True), None)
    return Case(
        seed=draw(st.integers(0, 2)),
        sources=[[*source, EOS] for source in sources],
        prefixes=[maybe(prefix, []) for _ in sources],
        search=search,
        rules=Rules(
            forced_bos_token_id=maybe(TOKENS, None),
            forced_eos_token_id=draw(st.sampled_from([None, EOS])),
            bad_words_ids=None if forbidden is None else [[token] for token in forbidden],
        ),
        decoder_start=maybe(TOKENS, None),
        batch=draw(st.sampled_from([{"batch_size": 1}, {"batch_size": 2}, {"max_tokens": 15}, {}])),
    )


@cache
def model_of(kind: str, seed: int) -> Any:
    return tiny(kind, seed, eos_bias=2.0 + seed)


class Reference(NamedTuple):
    """All hypotheses that transformers finds, best first, with scores; of greedy search also the logits by step."""

    found: list[tuple[tuple[int, ...], float]]
    steps: list[tuple[Tensor, Tensor]]  # each as the model gives it (V), and with all rules (V)


def reference(model: Any, case: Case) -> list[Reference]:
    """Sources whose prefixes are equally long are padded into one batch."""
    groups = defaultdict(list)
    for row, prefix in enumerate(case.prefixes):
        groups[len(prefix)].append(row)
    found: dict[int, Reference] = {}
    for length, rows in groups.items():
        found |= zip(rows, _reference(model, case, rows, length), strict=True)
    return [found[row] for row in range(len(case.sources))]


def _reference(model: Any, case: Case, rows: list[int], length: int) -> list[Reference]:
    search = case.search
    width = max(len(case.sources[row]) for row in rows)
    table = torch.tensor([case.sources[row] + [PAD] * (width - len(case.sources[row])) for row in rows])
    start = model.generation_config.decoder_start_token_id if case.decoder_start is None else case.decoder_start
    beams = {"length_penalty": search.lenpen, "early_stopping": STOPPING[search.early_stopping]}
    output = model.generate(
        input_ids=table, attention_mask=(table != PAD).long(), do_sample=False, num_beams=search.beam,
        decoder_start_token_id=start, decoder_input_ids=torch.tensor([[start, *case.prefixes[row]] for row in rows]),
        num_return_sequences=search.beam, max_length=case.max_length,
        min_length=search.min_len + 1 if search.min_len else 0, no_repeat_ngram_size=search.no_repeat_ngram_size,
        repetition_penalty=search.repetition_penalty, return_dict_in_generate=True, output_scores=True,
        output_logits=True, **(beams if search.beam > 1 else {}),
    )  # fmt: skip
    sequences = [trimmed(ids, length) for ids in output.sequences.tolist()]
    if search.beam == 1:
        by_step = list(zip(output.logits, output.scores, strict=True))
        steps = [[(raw[at], ruled[at]) for raw, ruled in by_step] for at in range(len(rows))]
        return [
            Reference([(tokens, greedy_score(tokens[length:], own, search.lenpen))], own)
            for tokens, own in zip(sequences, steps, strict=True)
        ]
    scores = output.sequences_scores.tolist()
    pairs = list(zip(sequences, scores, strict=True))
    return [Reference(pairs[at : at + search.beam], []) for at in range(0, len(pairs), search.beam)]


def trimmed(sequence: list[int], length: int) -> tuple[int, ...]:
    """Without the decoder start and what follows the end; no token of the prefix, of ``length``, is an end."""
    body = sequence[1:]
    return tuple(body[: body.index(EOS, length) + 1] if EOS in body[length:] else body)


def greedy_score(tokens: tuple[int, ...], steps: list[tuple[Tensor, Tensor]], lenpen: float) -> float:
    """The sum of log-probabilities by ``length ** lenpen``; a forced token costs nothing."""
    total = 0.0
    for token, (raw, ruled) in zip(tokens, steps, strict=False):
        forced = int(ruled.isfinite().sum()) == 1
        total += 0.0 if forced else float(ruled[token] - raw.logsumexp(0))
    return total / max(1, len(tokens)) ** lenpen


def compare(ours: list[Hypothesis], theirs: Reference, prefix: int, seen: Counter[str]) -> None:
    """Equal hypotheses and scores; what scores the same within `TIE` may stand in another order, and is counted.

    transformers gives all of its beams: a hypothesis that lost the last place of the n-best list by a tie is there.
    """
    for place, hypothesis in enumerate(ours):
        tokens, score = theirs.found[place]
        seen["hypotheses"] += 1
        if hypothesis.tokens == tokens:
            assert hypothesis.score == pytest.approx(score, abs=1e-4)
            continue
        seen["ties"] += 1
        if theirs.steps:
            assert_tied_step(hypothesis.tokens[prefix:], tokens[prefix:], theirs.steps)
        else:
            assert any(hypothesis.tokens == other and abs(value - score) <= TIE for other, value in theirs.found)


def assert_tied_step(ours: tuple[int, ...], theirs: tuple[int, ...], steps: list[tuple[Tensor, Tensor]]) -> None:
    """Two greedy outputs part where both tokens have the same logit."""
    at = next(at for at, (one, other) in enumerate(zip(ours, theirs, strict=False)) if one != other)
    assert abs(float(steps[at][1][ours[at]] - steps[at][1][theirs[at]])) <= TIE


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_transformers(kind: str, kernels: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: Counter[str] = Counter()
    if not kernels:
        monkeypatch.setattr(choice, "library", lambda: None)

    @seed(KINDS.index(kind))
    @settings(max_examples=30, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(cases())
    def check(case: Case) -> None:
        model = model_of(kind, case.seed)
        own = {name: getattr(model.generation_config, name) for name in Rules._fields}
        model.generation_config.update(**case.rules._asdict())
        try:
            found = beam_search(model, case.search).generate(
                case.sources, decoder_start=case.decoder_start, prefixes=case.prefixes, **case.batch
            )
            expected = reference(model, case)
        finally:
            model.generation_config.update(**own)
        for ours, theirs, prefix in zip(found, expected, case.prefixes, strict=True):
            assert len(ours) == case.search.nbest
            compare(ours, theirs, len(prefix), seen)

    check()
    assert seen["hypotheses"] > 100
    assert seen["ties"] <= seen["hypotheses"] // 50


def test_ties_are_told_from_faults() -> None:
    found = Reference([((5, EOS), -1.0), ((6, EOS), -1.0 - TIE / 2), ((7, EOS), -1.1)], [])
    seen: Counter[str] = Counter()
    compare([Hypothesis((6, EOS), -1.0), Hypothesis((5, EOS), -1.0)], found, 0, seen)
    assert seen == {"hypotheses": 2, "ties": 2}
    for wrong in (Hypothesis((7, EOS), -1.0), Hypothesis((8, EOS), -1.0), Hypothesis((5, EOS), -1.001)):
        with pytest.raises(AssertionError):
            compare([wrong], found, 0, seen)
    logits = torch.tensor([[0.0, 1.0, 1.0 + TIE / 2, 0.9]])
    greedy = Reference([((2,), -1.0)], [(logits[0], logits[0])])
    compare([Hypothesis((1,), -1.0)], greedy, 0, seen)
    with pytest.raises(AssertionError):
        compare([Hypothesis((3,), -1.0)], greedy, 0, seen)
