from __future__ import annotations

import math
import random

import numpy as np
import pytest

from cktk.data.glue import GLUE_TASKS
from cktk.errors import DataError
from cktk.evaluation.glue import metrics_of, paper_score, score_answers, task_score


def naive_pearson(x: list[float], y: list[float]) -> float:
    mx, my = sum(x) / len(x), sum(y) / len(y)
    above = sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True))
    return above / math.sqrt(sum((a - mx) ** 2 for a in x) * sum((b - my) ** 2 for b in y))


def naive_ranks(x: list[float]) -> list[float]:
    """Ties share the mean of their ranks."""
    return [sum(b < a for b in x) + (sum(b == a for b in x) + 1) / 2 for a in x]


def naive_binary(gold: list[int], found: list[int]) -> dict[str, float]:
    pairs = list(zip(gold, found, strict=True))
    tp, tn, fp, fn = (pairs.count(pair) for pair in ((1, 1), (0, 0), (0, 1), (1, 0)))
    root = math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    return {
        "accuracy": 100 * (tp + tn) / len(pairs),
        "f1": 200 * tp / (2 * tp + fp + fn),
        "matthews": 100 * (tp * tn - fp * fn) / root,
    }


def logits(found: list[int], classes: int) -> np.ndarray:
    draw = np.random.default_rng(1).normal(size=(len(found), classes))
    draw[np.arange(len(found)), found] += 10
    return draw


def test_two_classes_against_the_definitions() -> None:
    draw = random.Random(5)
    gold = [draw.randrange(2) for _ in range(60)]
    found = [label if draw.random() < 0.7 else 1 - label for label in gold]
    expected = naive_binary(gold, found)
    scores = score_answers(np.array(gold), logits(found, 2), ("no", "yes"), "data")
    assert scores == pytest.approx(expected)
    assert len({round(value, 6) for value in expected.values()}) == 3


def test_three_classes() -> None:
    gold, found = [0, 0, 1, 1, 2, 2, 2], [0, 1, 1, 1, 2, 0, 2]
    scores = score_answers(np.array(gold), logits(found, 3), ("a", "b", "c"), "data")
    assert scores["accuracy"] == pytest.approx(500 / 7)
    assert scores["f1"] == pytest.approx(100 * (1 / 2 + 4 / 5 + 4 / 5) / 3)


def test_correlations_against_the_definitions() -> None:
    draw = random.Random(2)
    gold = [draw.choice([0.0, 1.0, 2.5, 4.0, 5.0]) for _ in range(40)]
    found = [value**3 + draw.gauss(0, 20) for value in gold]
    scores = score_answers(np.array(gold), np.array(found)[:, None], None, "data")
    assert scores["pearson"] == pytest.approx(100 * naive_pearson(gold, found))
    assert scores["spearman"] == pytest.approx(100 * naive_pearson(naive_ranks(gold), naive_ranks(found)))
    assert scores["pearson"] != pytest.approx(scores["spearman"])


def test_rows_without_a_label_count_for_nothing() -> None:
    some = score_answers(np.array([1, -1, 0]), logits([1, 0, 1], 2), ("no", "yes"), "data")
    assert some["accuracy"] == 50
    numbers = np.array([1.0, float("nan"), 2.0, 3.0])
    assert score_answers(numbers, np.array([[1.0], [-99], [2], [3]]), None, "data")["pearson"] == pytest.approx(100)
    for gold, labels in ((np.array([-1, -1]), ("no", "yes")), (np.array([float("nan")] * 2), None)):
        with pytest.raises(DataError, match="^bin: split test has no labels"):
            score_answers(gold, np.zeros((2, 2)), labels, "bin: split test")


def test_constant_and_broken_answers() -> None:
    same = score_answers(np.array([0, 1, 0]), logits([0, 0, 0], 2), ("no", "yes"), "data")
    assert same["matthews"] == 0 and same["f1"] == 0
    assert score_answers(np.array([1.0, 2.0]), np.zeros((2, 1)), None, "data") == {"pearson": 0.0, "spearman": 0.0}
    broken = score_answers(np.array([0, 1]), np.array([[0.0, float("nan")], [1, 2]]), ("no", "yes"), "data")
    assert all(math.isnan(value) for value in broken.values())


def test_averages_of_a_published_row() -> None:
    """BERT-large as on the leaderboard (80.5 with WNLI's 65.1), and in its paper's convention for two metrics."""
    figures = {
        "cola": {"": {"matthews": 60.5}},
        "sst2": {"": {"accuracy": 94.9}},
        "mrpc": {"": {"f1": 89.3, "accuracy": 85.4}},
        "stsb": {"": {"pearson": 87.6, "spearman": 86.5}},
        "qqp": {"": {"f1": 72.1, "accuracy": 89.3}},
        "mnli": {"": {"accuracy": 86.7}, "mm": {"accuracy": 85.9}},
        "qnli": {"": {"accuracy": 92.7}},
        "rte": {"": {"accuracy": 70.1}},
    }
    assert list(figures) == list(GLUE_TASKS)
    scores = [task_score(name, found) for name, found in figures.items()]
    assert round((sum(scores) + 65.1) / 9, 1) == 80.5
    paper = {name: paper_score(name, found) for name, found in figures.items()}
    # BERT's paper: 82.1, with MNLI's two sets counted as two tasks.
    assert round((sum(paper.values()) + 85.9) / 9, 1) == 82.1


def test_metrics_of_other_tables() -> None:
    assert metrics_of("mrpc", ("a", "b")) == ("f1", "accuracy")
    assert metrics_of(None, ("a", "b")) == ("accuracy", "f1", "matthews")
    assert metrics_of(None, None) == metrics_of("stsb", None) == ("pearson", "spearman")
