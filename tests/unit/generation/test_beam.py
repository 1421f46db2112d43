"""Beam search against transformers' `generate` on random models, and against exhaustive search."""

from __future__ import annotations

import itertools
import math
import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import MarianConfig, MarianMTModel
from transformers.models.marian.modeling_marian import MarianDecoder

from cktk.errors import CheckpointError, ConfigError, DataError
from cktk.generation.beam import BeamSearch, length_batches
from cktk.generation.configs import SearchConfig
from cktk.generation.decoder import DecoderState
from cktk.protocols import Hypothesis
from tests.unit.generation.models import (
    KINDS,
    T5_KINDS,
    beam_search,
    layout_of,
    random_sources,
    reference,
    tiny,
    tiny_model,
)

TIE = 1e-5


def assert_same(found: list[list[Hypothesis]], expected: list[list[tuple[tuple[int, ...], float | None]]]) -> None:
    """Equal hypotheses and scores; places whose neighbours score the same within `TIE` may be swapped."""
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert len(ours) == len(theirs)
        for hypothesis, (tokens, score) in zip(ours, theirs, strict=True):
            if score is not None:
                assert hypothesis.score == pytest.approx(score, abs=1e-4)
            if hypothesis.tokens != tokens:
                tied = [other for other, value in theirs if value is not None and abs(value - hypothesis.score) <= TIE]
                assert score is not None and hypothesis.tokens in tied


def search(model: Any, sources: list[Any], max_length: int = 14, **settings: Any) -> list[list[Hypothesis]]:
    calls = ("prefixes", "forced_bos", "decoder_start", "batch_size", "max_tokens")
    call = {name: settings.pop(name) for name in calls if name in settings}
    return beam_search(model, SearchConfig(max_len_b=max_length - 2, **settings)).generate(sources, **call)


#: (our option, theirs, values); each is drawn with probability 0.3.
OPTIONS: tuple[tuple[str, str, tuple[Any, ...]], ...] = (
    ("no_repeat_ngram_size", "no_repeat_ngram_size", (1, 2, 3)),
    ("repetition_penalty", "repetition_penalty", (0.8, 1.3, 4.0)),
    ("forced_bos", "forced_bos_token_id", (0, 7)),
    ("decoder_start", "decoder_start_token_id", (2, 13)),
)
STOPPING = {"false": False, "true": True, "never": "never"}


def random_case(draw: random.Random) -> tuple[dict[str, Any], dict[str, Any]]:
    """The same random settings in our words and in transformers'."""
    beam = draw.choice([1, 2, 3, 4, 5])
    nbest = draw.randint(1, beam)
    max_length = draw.choice([4, 9, 20])
    ours: dict[str, Any] = {"beam": beam, "nbest": nbest, "max_length": max_length}
    theirs: dict[str, Any] = {"num_beams": beam, "num_return_sequences": nbest, "max_length": max_length}
    if beam > 1:
        ours["lenpen"] = theirs["length_penalty"] = draw.choice([0.0, 0.6, 1.0, 2.0, -0.5])
        ours["early_stopping"] = draw.choice(list(STOPPING))
        theirs["early_stopping"] = STOPPING[ours["early_stopping"]]
    if draw.random() < 0.3:
        theirs["min_length"] = draw.randint(1, min(8, max_length - 1))
        ours["min_len"] = theirs["min_length"] - 1
    for our_name, their_name, values in OPTIONS:
        if draw.random() < 0.3:
            ours[our_name] = theirs[their_name] = draw.choice(values)
    return ours, theirs


def random_model(kind: str, draw: random.Random, seed: int) -> Any:
    """Variants that real models have: with or without a forced end, scaled embeddings, unequal depths."""
    if kind in T5_KINDS:
        return tiny(kind, seed, eos_bias=draw.choice([1.0, 2.0, 3.0]), num_decoder_layers=draw.choice([1, 2]))
    overrides = {"forced_eos_token_id": draw.choice([None, 2]), "scale_embedding": draw.random() < 0.5}
    return tiny(kind, seed, eos_bias=draw.choice([1.0, 2.0, 3.0]), **overrides)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_equals_transformers(kind: str, seed: int) -> None:
    draw = random.Random(f"{kind} {seed}")
    model = random_model(kind, draw, seed)
    sources = random_sources(seed)
    for _ in range(3):
        ours, theirs = random_case(draw)
        found = search(model, sources, batch_size=draw.choice([1, 4, 6]), **ours)
        assert_same(found, reference(model, sources, **theirs))


def test_random_models_end_at_many_lengths() -> None:
    """The guard of the differential test: hypotheses must end by themselves at varied lengths."""
    lengths = [
        len(hypothesis.tokens)
        for seed in range(6)
        for found in search(tiny_model("bart", seed), random_sources(seed, 8), 30, beam=4, nbest=4)
        for hypothesis in found
    ]
    assert len(set(lengths)) >= 10
    assert sum(length < 29 for length in lengths) > len(lengths) / 3


def test_ends_without_eos_where_none_is_forced() -> None:
    model = tiny_model("bart", 3, eos_bias=-20.0, forced_eos_token_id=None)
    sources = random_sources(3)
    found = search(model, sources, 7, beam=3)
    assert_same(found, reference(model, sources, num_beams=3, max_length=7))
    assert all(len(best.tokens) == 6 and 2 not in best.tokens for (best,) in found)


def test_forced_eos_costs_nothing() -> None:
    model = tiny_model("bart", 3, eos_bias=-20.0, forced_eos_token_id=2)
    sources = random_sources(3)
    found = search(model, sources, 7, beam=3)
    assert_same(found, reference(model, sources, num_beams=3, max_length=7))
    assert all(len(best.tokens) == 6 and best.tokens[-1] == 2 for (best,) in found)


@pytest.mark.parametrize(("kind", "beam"), [("bart", 1), ("bart", 4), ("flan", 4)])
def test_prefixes_of_many_lengths_in_one_batch(kind: str, beam: int) -> None:
    model = tiny(kind, 5, eos_bias=0.5)
    start = model.generation_config.decoder_start_token_id
    sources = random_sources(5, 7)
    prefixes = [None, [5], [9, 8], [], [4, 2, 6], [11, 12], [20] * 6]
    found = search(model, sources, 14, beam=beam, nbest=beam, lenpen=0.7, prefixes=prefixes)
    for source, prefix, hypotheses in zip(sources, prefixes, found, strict=True):
        prompt = torch.tensor([[start, *(prefix or [])]])
        settings = {"length_penalty": 0.7} if beam > 1 else {}
        output = model.generate(
            input_ids=torch.as_tensor(source)[None], decoder_input_ids=prompt, num_beams=beam, do_sample=False,
            num_return_sequences=beam, max_length=14, return_dict_in_generate=True, output_scores=True, **settings,
        )  # fmt: skip
        for row, hypothesis in enumerate(hypotheses):
            tokens = output.sequences[row].tolist()[1:]
            length = len(prefix or [])
            end = tokens.index(2, length) + 1 if 2 in tokens[length:] else len(tokens)
            assert hypothesis.tokens == tuple(tokens[:end])
            if beam > 1:
                assert hypothesis.score == pytest.approx(float(output.sequences_scores[row]), abs=1e-4)


def test_a_prefix_takes_the_place_of_the_forced_first_token() -> None:
    model = tiny_model("mbart", 6)
    found = search(model, random_sources(6, 2), beam=2, forced_bos=9, prefixes=[[5, 6], []])
    assert found[0][0].tokens[:2] == (5, 6)
    assert found[1][0].tokens[0] == 9


def test_decoder_start_of_a_language() -> None:
    model = tiny_model("mbart", 7)
    sources = random_sources(7)
    found = search(model, sources, beam=3, decoder_start=13)
    assert_same(found, reference(model, sources, num_beams=3, max_length=14, decoder_start_token_id=13))


@pytest.mark.parametrize("kind", ["bart", "t5"])
def test_batching_padding_and_order_change_nothing(kind: str) -> None:
    model = tiny(kind, 8)
    sources = random_sources(8, 9, longest=30)
    expected = search(model, sources, beam=3, nbest=3, batch_size=1)
    order = list(range(9))
    random.Random(1).shuffle(order)
    for limits in ({"batch_size": 9}, {"batch_size": 2}, {"max_tokens": 40}, {"max_tokens": 1}):
        found = search(model, [sources[row] for row in order], beam=3, nbest=3, **limits)
        for row, hypotheses in zip(order, found, strict=True):
            assert [h.tokens for h in hypotheses] == [h.tokens for h in expected[row]]
            assert [h.score for h in hypotheses] == pytest.approx([h.score for h in expected[row]], abs=1e-5)


def test_longest_output_follows_each_source() -> None:
    model = tiny_model("bart", 9, eos_bias=-20.0)
    sources = random_sources(9, 5)
    found = beam_search(model, SearchConfig(beam=2, max_len_a=0.5, max_len_b=1)).generate(sources)
    assert [len(best.tokens) for (best,) in found] == [int(0.5 * len(source) + 1) + 1 for source in sources]


def test_output_stays_within_the_positions_of_the_model() -> None:
    model = tiny_model("bart", 9, eos_bias=-20.0, max_position_embeddings=16)
    (best,) = beam_search(model, SearchConfig(beam=2)).generate(random_sources(9, 1))[0]
    assert len(best.tokens) == 16 and best.tokens[-1] == 2


def test_a_t5_has_no_limit_of_positions() -> None:
    model = tiny("t5", 9)
    (source,) = random_sources(9, 1, shortest=299, longest=300)
    found = search(model, [source], 120, beam=2, min_len=118)
    assert_same(found, reference(model, [source], num_beams=2, max_length=120, min_length=119))
    assert len(found[0][0].tokens) == 119


def test_a_decoder_deeper_than_its_encoder() -> None:
    """transformers' cache is as deep as the encoder, so that it has to do without."""
    model, sources = tiny("mt5", 9, num_layers=1, num_decoder_layers=3), random_sources(9)
    found = search(model, sources, 10, beam=3)
    assert_same(found, reference(model, sources, num_beams=3, max_length=10, use_cache=False))


def test_tokens_that_a_model_must_not_write() -> None:
    """As the pad of MarianMT."""
    model, sources = tiny("bart", 2), random_sources(2)
    usual = {token for found in search(model, sources, beam=2) for token in found[0].tokens}
    model.generation_config.bad_words_ids = [[max(usual)], [5, 6]]
    model.generation_config.suppress_tokens = [min(usual - {2})]
    found = search(model, sources, beam=2)
    assert not {max(usual), min(usual - {2})} & {token for best in found for token in best[0].tokens}


def exhaustive(model: Any, source: Any, content: int) -> list[tuple[float, tuple[int, ...]]]:
    """Every output of up to ``content`` tokens and eos, with its mean log-probability from full forward passes."""
    found = []
    start = model.generation_config.decoder_start_token_id
    for length in range(content + 1):
        for body in itertools.product([token for token in range(model.config.vocab_size) if token != 2], repeat=length):
            target = torch.tensor([[*body, 2]])
            logits = model(
                input_ids=torch.as_tensor(source)[None], decoder_input_ids=torch.tensor([[start, *body]])
            ).logits.log_softmax(-1)
            steps = logits.gather(2, target[:, :, None]).flatten().tolist()
            if length == content:
                steps = steps[:-1]  # the forced end costs nothing
            found.append((math.fsum(steps) / (length + 1), (*body, 2)))
    return sorted(found, reverse=True)


@pytest.mark.parametrize("kind", ["bart", "mbart", "t5", "flan"])
@torch.no_grad()
def test_wide_beam_finds_what_exhaustive_search_finds(kind: str) -> None:
    model = tiny(kind, 1, vocab_size=5, eos_bias=-1.0)
    model.generation_config.forced_eos_token_id = 2
    source = np.array([3, 4, 0, 2])
    expected = exhaustive(model, source, 3)
    # 100 beams hold every continuation, so that nothing is ever pruned; early stopping needs 100 ended hypotheses.
    (found,) = beam_search(model, SearchConfig(beam=100, nbest=100, max_len_b=3)).generate([source])
    assert len(found) == len(expected) == 1 + 4 + 16 + 64
    assert [hypothesis.score for hypothesis in found] == pytest.approx([score for score, _ in expected], abs=1e-5)
    scores = {tokens: score for score, tokens in expected}
    assert {hypothesis.tokens for hypothesis in found} == set(scores)
    assert all(hypothesis.score == pytest.approx(scores[hypothesis.tokens], abs=1e-5) for hypothesis in found)


def test_early_stopping_takes_the_first_that_end() -> None:
    """Longer outputs score better here, so that only the rule for stopping makes them short."""
    model, sources = tiny_model("bart", 4), random_sources(4)
    settings = {"beam": 2, "lenpen": 3.0, "max_length": 30}
    lengths = {
        rule: sum(len(best.tokens) for (best,) in search(model, sources, early_stopping=rule, **settings))
        for rule in STOPPING
    }
    assert lengths["true"] < lengths["false"] <= lengths["never"]


def test_all_paths_forbidden_gives_an_empty_hypothesis() -> None:
    model = tiny_model("bart", 1, vocab_size=4, forced_eos_token_id=None)
    (found,) = search(model, [np.array([3, 2])], 20, beam=2, no_repeat_ngram_size=1)
    assert found[0].tokens == () or 2 not in found[0].tokens[:-1]


def test_leaves_mode_and_random_state_alone() -> None:
    model = tiny_model("bart", 2)
    expected = search(model, random_sources(2), beam=2)
    model.train()
    model.model.encoder.layers[0].eval()
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    assert search(model, random_sources(2), beam=2) == expected
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)


def test_caches_stay_small_and_every_slot_in_use_stays() -> None:
    """Slots are given free on the way: fewer than one for each token of each beam, and the same output."""
    beam = beam_search(tiny_model("bart", 2, eos_bias=-50.0), SearchConfig(beam=4, max_len_b=60, min_len=60))
    state: list[DecoderState] = []
    started = beam._scorer.start

    def start(*arguments: Any) -> DecoderState:
        state.append(started(*arguments))
        return state[-1]

    beam._scorer.start = start  # type: ignore[method-assign]
    beam.generate(random_sources(2)[:3])
    assert state[0].position == 61
    assert state[0].ancestry.shape[2] < 61 * 4
    seen = (state[0].ancestry == 0).sum(dim=2)
    assert bool((seen == 61).all())


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_is_near(kind: str) -> None:
    """All caches, masks and products keep the model's type; scores are summed up in fp32."""
    model, sources = tiny(kind, 3), random_sources(3)
    exact = search(model, sources, beam=3, nbest=3)
    found = search(model.to(torch.bfloat16), sources, beam=3, nbest=3)
    gaps = [abs(a[0].score - b[0].score) for a, b in zip(found, exact, strict=True)]
    assert 0 < max(gaps) < 0.2


def test_progress_counts_each_sentence() -> None:
    ticks: list[int] = []
    beam_search(tiny_model("bart", 2), SearchConfig(beam=2)).generate(random_sources(2), on_progress=ticks.append)
    assert sum(ticks) == 6


def test_no_sources_no_hypotheses() -> None:
    assert search(tiny_model("bart", 2), []) == []


def test_length_batches_keep_both_limits() -> None:
    lengths = [3, 9, 1, 7, 9, 2, 30]
    batches = list(length_batches(lengths, 20, 3))
    assert sorted(itertools.chain(*batches)) == list(range(7))
    assert batches[0] == [6]
    assert all(len(rows) * max(lengths[row] for row in rows) <= 20 for rows in batches[1:])
    assert [len(rows) for rows in length_batches(lengths, None, 3)] == [3, 3, 1]


def test_refusals() -> None:
    model = tiny_model("bart", 2)
    with pytest.raises(ConfigError, match="--nbest 3 is more than --beam 2"):
        SearchConfig(beam=2, nbest=3)
    with pytest.raises(DataError, match=r"source 2 has 65 tokens, the model takes 1 to 64"):
        search(model, [[3, 2], [3] * 65])
    with pytest.raises(DataError, match="prefix 1 has 64 tokens"):
        search(model, [[3, 2]], prefixes=[[3] * 64])
    with pytest.raises(DataError, match="1 sources but 2 prefixes"):
        search(model, [[3, 2]], prefixes=[[], []])
    model.model.decoder.__class__ = type("OtherDecoder", (type(model.model.decoder),), {})
    with pytest.raises(CheckpointError, match="'bart' decodes with OtherDecoder, but .* its BartDecoder only"):
        search(model, [[3, 2]])


def test_another_kind_of_decoder_by_its_layout() -> None:
    """MarianMT has sinusoidal positions, no norm of embeddings, and scales these itself."""
    settings = {"vocab_size": 37, "d_model": 16, "encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 24}
    heads = {"decoder_ffn_dim": 24, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "init_std": 0.4}
    special = {"pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1, "forced_eos_token_id": None}
    torch.manual_seed(3)
    model: Any = MarianMTModel(MarianConfig(**settings, **heads, **special, scale_embedding=True)).eval()
    model.final_logits_bias[0, 2] = 2.0
    like_bart = layout_of(tiny_model("bart", 1))
    layout = replace(like_bart, stack=MarianDecoder, embedding_scale="embed_scale", embedding_norm=None)
    sources = random_sources(3)
    config = SearchConfig(beam=3, max_len_b=12, no_repeat_ngram_size=2)
    found = BeamSearch(model, config, layout).generate(sources)
    assert_same(found, reference(model, sources, num_beams=3, max_length=14, no_repeat_ngram_size=2))
    assert len({best.tokens for (best,) in found}) > 2


def test_threads_may_share_a_search() -> None:
    search = beam_search(tiny("bart", 1), SearchConfig(beam=3, max_len_b=12))
    inputs = [random_sources(seed) for seed in range(6)]
    expected = [search.generate(sources) for sources in inputs]
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(search.generate, inputs)) == expected
