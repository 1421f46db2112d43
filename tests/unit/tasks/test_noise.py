"""Noise keeps what it promises for every text; how often things happen is compared with the papers' figures."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cktk.protocols import IGNORED
from cktk.tasks.noise import Infilling, Masking, Reconstruct, SpanCorruption, permute_sentences, sentence_ends

MASK = 99
SENTINELS = tuple(range(120, 100, -1))
SEEDS = st.integers(0, 2**31)
TEXTS = st.lists(st.integers(0, 90), max_size=60).map(lambda ids: np.array(ids, np.int64))
RATIOS = st.floats(0.01, 1.0)
SPANS = st.floats(0.3, 8.0)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@settings(max_examples=80, deadline=None)
@given(TEXTS, RATIOS, SPANS, SEEDS)
def test_infilling_hides_its_share_and_leaves_the_rest_in_order(text, ratio, span, seed):
    source, target = Infilling(MASK, ratio, span)(text, rng(seed))
    assert target.tolist() == text.tolist() and len(source) <= max(len(text), 0)
    kept = source[source != MASK].tolist()
    hidden = len(text) - len(kept)
    assert hidden == int(np.ceil(ratio * len(text) - 1e-9))
    # What is left is a subsequence of the text, and masks do not touch.
    left = iter(text.tolist())
    assert all(token in left for token in kept)
    assert not ((source[1:] == MASK) & (source[:-1] == MASK)).any()


def test_spans_of_infilling_are_poisson():
    noise, text = Infilling(MASK, 0.3, 3.0), np.arange(90).repeat(5) % 90
    masks = [int((noise(text, rng(seed))[0] == MASK).sum()) for seed in range(300)]
    # 135 hidden tokens in spans of 3 on average, empty ones included.
    assert abs(np.mean(masks) - 135 / 3) < 1.0
    spans = [span for seed in range(300) for span in noise._spans(135, rng(seed))[0]]
    empty = sum(noise._spans(135, rng(seed))[1] for seed in range(300))
    assert abs(empty / (empty + len(spans)) - np.exp(-3)) < 0.01
    assert abs(np.mean([span == 3 for span in spans]) - np.exp(-3) * 27 / 6 / (1 - np.exp(-3))) < 0.02


def test_every_token_is_hidden_equally_often():
    noise, text = Infilling(MASK, 0.3, 3.0), np.arange(40)
    seen = np.zeros(40)
    for seed in range(2000):
        source = noise(text, rng(seed))[0]
        seen[source[source != MASK]] += 1
    # Fewer spans reach the ends, which nothing lies beyond.
    assert np.abs(1 - seen[4:-4] / 2000 - 0.3).max() < 0.06


@settings(max_examples=80, deadline=None)
@given(TEXTS, st.floats(0.01, 0.95), SPANS, SEEDS)
def test_span_corruption_can_be_put_together_again(text, ratio, span, seed):
    noise = SpanCorruption(SENTINELS, ratio, span)
    source, target = noise(text, rng(seed))
    assert noise.lengths(np.array([len(text)])).tolist() == [[len(source), len(target)]]
    if len(text) < 2:
        assert source.tolist() == target.tolist() == text.tolist()
        return
    used = [token for token in source.tolist() if token in SENTINELS]
    assert used == list(SENTINELS[: len(used)]) and target[-1] == SENTINELS[len(used)]
    assert target[0] == SENTINELS[0] and source[0] not in SENTINELS
    spans: dict[int, list[int]] = {}
    for token in target[:-1].tolist():
        if token in SENTINELS:
            spans[token] = last = []
        else:
            last.append(token)
    whole = [token for piece in source.tolist() for token in spans.get(piece, [piece])]
    assert whole == text.tolist() and all(spans.values())
    hidden = sum(map(len, spans.values()))
    assert hidden == min(max(round(len(text) * ratio), 1), len(text) - 1)


def test_t5_s_own_numbers():
    noise = SpanCorruption(tuple(range(1000, 1100)), 0.15, 3.0)
    # Raffel et al.: 568 tokens make 512 positions of source and 114 of target (with the end token of either).
    assert noise.lengths(np.array([568])).tolist() == [[511, 114]]


@settings(max_examples=100, deadline=None)
@given(TEXTS, RATIOS, st.booleans(), SEEDS)
def test_masking_changes_only_what_it_chose(text, ratio, only_chosen, seed):
    source, target = Masking(MASK, np.arange(200, 210), ratio, only_chosen)(text, rng(seed))
    assert len(source) == len(target) == len(text)
    changed = source != text
    assert ((source[changed] == MASK) | (source[changed] >= 200)).all()
    if not only_chosen:
        assert target.tolist() == text.tolist()
        return
    scored = target != IGNORED
    assert (target[scored] == text[scored]).all() and not (changed & ~scored).any()
    assert scored.sum() == min(len(text), max(1, round(len(text) * ratio)))


def test_of_the_chosen_80_percent_are_masks_and_10_percent_other_words():
    noise, text = Masking(MASK, np.arange(200, 210), 0.15, True), np.arange(80).repeat(5)
    source, target = map(np.concatenate, zip(*(noise(text, rng(seed)) for seed in range(200)), strict=True))
    chosen = target != IGNORED
    assert chosen.mean() == 0.15
    assert abs((source[chosen] == MASK).mean() - 0.8) < 0.01
    assert abs((source[chosen] >= 200).mean() - 0.1) < 0.01


@settings(max_examples=60, deadline=None)
@given(TEXTS, SEEDS)
def test_permutation_moves_whole_sentences(text, seed):
    ends = np.zeros(100, bool)
    ends[:20] = True

    def sentences(ids: np.ndarray) -> list[list[int]]:
        found: list[list[int]] = [[]]
        for token in ids.tolist():
            found[-1].append(token)
            if ends[token]:
                found.append([])
        return found

    moved = permute_sentences(text, ends, rng(seed))
    assert sorted(moved.tolist()) == sorted(text.tolist())
    whole = [sentence for sentence in sentences(text) if sentence and ends[sentence[-1]]]
    flat = "," + ",".join(map(str, moved.tolist())) + ","
    assert all("," + ",".join(map(str, sentence)) + "," in flat for sentence in whole)


def test_permutation_reaches_all_orders_and_infilling_takes_it():
    ends = np.zeros(100, bool)
    ends[9] = True
    text = np.array([1, 9, 2, 9, 3, 9])
    orders = {tuple(permute_sentences(text, ends, rng(seed)).tolist()) for seed in range(100)}
    assert len(orders) == 6
    source, target = Infilling(MASK, 1e-12, 3.0, ends)(text, rng(3))
    assert target.tolist() == text.tolist() and tuple(source.tolist()) in orders


def test_only_what_rebuilds_the_text_is_a_reconstruction():
    for noise in (Infilling(MASK, 0.3, 3.0), Masking(MASK, np.arange(3), 0.15, False)):
        assert not isinstance(noise, Reconstruct)
        assert noise.lengths(np.array([4, 9])).tolist() == [[4, 4], [9, 9]]


def test_sentences_end_with_full_stops_of_many_scripts():
    vocabulary = {"▁a": 1, "end.": 2, "?": 3, "。": 4, "।": 5, "...,": 6, "far.": 700}
    assert np.flatnonzero(sentence_ends(vocabulary, 10)).tolist() == [2, 3, 4, 5]
