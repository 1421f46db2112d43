from __future__ import annotations

import math
from collections import Counter

import pytest

from cktk.errors import DataError
from cktk.evaluation.bleu import score_translations

REFERENCES = ["the cat sat on the mat today", "there is a blue house on the hill"]
HYPOTHESES = ["the cat sat on a mat today", "there is a house on the blue hill"]


def naive_bleu(hypotheses: list[str], references: list[str]) -> float:
    """Papineni et al., 2002, over texts whose tokens are separated by blanks, without smoothing."""
    pairs = [(h.split(), r.split()) for h, r in zip(hypotheses, references, strict=True)]
    logs = []
    for n in range(1, 5):
        matched = total = 0
        for ours, theirs in pairs:
            counts, limits = (Counter(tuple(t[i : i + n]) for i in range(len(t) - n + 1)) for t in (ours, theirs))
            matched += sum((counts & limits).values())
            total += sum(counts.values())
        logs.append(math.log(matched / total))
    length, reference = (sum(len(pair[side]) for pair in pairs) for side in (0, 1))
    return 100 * min(1.0, math.exp(1 - reference / length)) * math.exp(sum(logs) / 4)


def test_bleu_is_the_published_formula() -> None:
    assert score_translations(HYPOTHESES, REFERENCES).bleu == pytest.approx(naive_bleu(HYPOTHESES, REFERENCES))


def test_perfect_and_hopeless() -> None:
    perfect = score_translations(REFERENCES, REFERENCES)
    assert perfect.bleu == pytest.approx(100)
    assert perfect.chrf == pytest.approx(100)
    assert score_translations(["", ""], REFERENCES).bleu == 0


def test_signatures_name_the_settings() -> None:
    text = str(score_translations(HYPOTHESES, REFERENCES))
    assert "BLEU" in text and "tok:13a" in text and "smooth:exp" in text and "nc:6" in text


def test_lines_that_do_not_pair() -> None:
    with pytest.raises(DataError, match="2 hypotheses but 1 references"):
        score_translations(HYPOTHESES, REFERENCES[:1])
    with pytest.raises(DataError, match="no references"):
        score_translations([], [])
