"""ROUGE against the formulas of Lin (2004), written down a second time."""

from __future__ import annotations

import random
import re
from collections import Counter
from functools import cache

import pytest

from cktk.errors import DataError
from cktk.evaluation.configs import RougeConfig
from cktk.evaluation.rouge import rouge_scorer, score_summaries, sentences

WORDS = ["the", "cat", "sat", "on", "mat", "library", "for"]


def words(text: str) -> list[str]:
    return re.findall("[a-z0-9]+", text.lower())


def f_measure(matched: float, ours: int, theirs: int) -> float:
    """The harmonic mean of precision and recall."""
    return 2 * matched / (ours + theirs) if matched else 0.0


def naive_n(hypothesis: str, reference: str, n: int) -> float:
    grams = [Counter(zip(*(text[i:] for i in range(n)), strict=False)) for text in map(words, (hypothesis, reference))]
    return f_measure(sum((grams[0] & grams[1]).values()), grams[0].total(), grams[1].total())


def common(left: tuple[str, ...], right: tuple[str, ...]) -> list[tuple[int, ...]]:
    """All longest common subsequences, as places in ``left``."""

    @cache
    def best(i: int, j: int) -> frozenset[tuple[int, ...]]:
        if i == len(left) or j == len(right):
            return frozenset({()})
        found = best(i + 1, j) | best(i, j + 1)
        if left[i] == right[j]:
            found |= {(i, *rest) for rest in best(i + 1, j + 1)}
        longest = max(map(len, found))
        return frozenset(way for way in found if len(way) == longest)

    return sorted(best(0, 0))


def naive_l(hypothesis: str, reference: str) -> float:
    ours, theirs = words(hypothesis), words(reference)
    return f_measure(len(common(tuple(ours), tuple(theirs))[0]), len(ours), len(theirs))


def naive_lsum(hypothesis: list[str], reference: list[str]) -> set[float]:
    """Summary-level ROUGE-L over every choice of longest common subsequences, each word counted at most as often as
    it occurs on either side."""
    ours, theirs = [tuple(words(text)) for text in hypothesis], [tuple(words(text)) for text in reference]
    limit = Counter(word for text in ours for word in text) & Counter(word for text in theirs for word in text)
    chosen = []
    for text in theirs:
        unions: set[frozenset[int]] = {frozenset()}
        for other in ours:
            unions = {union | frozenset(way) for union in unions for way in common(text, other)}
        chosen.append({_hashable(Counter(text[place] for place in union)) for union in unions})
    totals: set[tuple[tuple[str, int], ...]] = {()}
    for options in chosen:
        totals = {_hashable(Counter(dict(total)) + Counter(dict(option))) for total in totals for option in options}
    sizes = (sum(map(len, ours)), sum(map(len, theirs)))
    return {round(f_measure((Counter(dict(total)) & limit).total(), *sizes), 9) for total in totals}


def _hashable(counts: Counter[str]) -> tuple[tuple[str, int], ...]:
    return tuple(sorted(counts.items()))


def texts(seed: int) -> list[str]:
    draw = random.Random(seed)
    return [
        " ".join(
            " ".join(draw.choices(WORDS, k=draw.randint(1, 6))).capitalize() + draw.choice([".", "!", "?"])
            for _ in range(draw.randint(1, 3))
        )
        for _ in range(12)
    ]


def test_scores_are_the_published_formulas() -> None:
    for hypothesis, reference in zip(texts(1), texts(2), strict=True):
        found = score_summaries([hypothesis], [reference], stemmer=False)
        assert found.rouge1 == pytest.approx(100 * naive_n(hypothesis, reference, 1))
        assert found.rouge2 == pytest.approx(100 * naive_n(hypothesis, reference, 2))
        assert found.rougeL == pytest.approx(100 * naive_l(hypothesis, reference))
        sides = [re.findall(r"[^.!?]+", text) for text in (hypothesis, reference)]
        possible = naive_lsum(*sides)
        assert any(found.rougeLsum == pytest.approx(100 * value) for value in possible)


def test_a_corpus_is_the_mean_of_its_documents() -> None:
    pairs = list(zip(texts(3), texts(4), strict=True))
    alone = [score_summaries([h], [r]) for h, r in pairs]
    whole = score_summaries([h for h, _ in pairs], [r for _, r in pairs])
    for name in ("rouge1", "rouge2", "rougeL", "rougeLsum"):
        values = [getattr(score, name) for score in alone]
        assert len(set(values)) > 3
        assert getattr(whole, name) == pytest.approx(sum(values) / len(values))


def test_a_text_by_hand() -> None:
    found = score_summaries(["the cat sat"], ["the small cat sat down"], stemmer=False)
    assert (found.rouge1, found.rouge2) == (pytest.approx(75.0), pytest.approx(100 * 2 * 1 / (2 + 4)))
    assert found.rougeL == found.rougeLsum == pytest.approx(75.0)
    perfect = score_summaries(["a cat."], ["a cat."])
    assert perfect.figures() == {"ROUGE-1": 100, "ROUGE-2": 100, "ROUGE-L": 100, "ROUGE-Lsum": 100}
    assert score_summaries([""], ["a cat"]).figures() == dict.fromkeys(perfect.figures(), 0)


def test_the_stemmer_takes_endings_off() -> None:
    pair = ["libraries running"], ["library runs"]
    assert score_summaries(*pair).rouge1 == pytest.approx(100)
    assert rouge_scorer(RougeConfig(rouge_stemmer=False))(*pair).figures()["ROUGE-1"] == 0


def test_where_sentences_end_is_seen_by_lsum_alone() -> None:
    hypothesis, reference = "A dog ran. The cat sat.", "The cat sat. A dog ran."
    split, lines = (score_summaries([hypothesis], [reference], lsum=lsum) for lsum in ("sentences", "lines"))
    assert split.rougeLsum == 100 and lines.rougeLsum == lines.rougeL == pytest.approx(50)
    assert split.rougeL == lines.rougeL
    for mark in ("\n", "<n>"):
        broken = [text.replace(". ", mark) for text in (hypothesis, reference)]
        assert score_summaries(broken[:1], broken[1:], lsum="lines").rougeLsum == 100


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three?  Four", ["One.", "Two!", "Three?", "Four"]),
        ('He said "no." Then he left.', ['He said "no."', "Then he left."]),
        ("Version 2.5 of libc.so is out.", ["Version 2.5 of libc.so is out."]),
        ("It is i.e. small, e.g. tiny.", ["It is i.e. small, e.g. tiny."]),
        ("C’est fini… Évidemment. 3 more.", ["C’est fini…", "Évidemment.", "3 more."]),
        ("a\n\nb<n>c ", ["a", "b", "c"]),
        ("", []),
    ],
)
def test_sentences(text: str, expected: list[str]) -> None:
    assert sentences(text) == expected


def test_the_signature_names_the_settings() -> None:
    assert "stemmer:no|lsum:lines|version:" in str(score_summaries(["a"], ["a"], stemmer=False, lsum="lines"))


def test_lines_that_do_not_pair() -> None:
    with pytest.raises(DataError, match="2 hypotheses but 1 references"):
        score_summaries(["a", "b"], ["a"])
    with pytest.raises(DataError, match="no references"):
        score_summaries([], [])
