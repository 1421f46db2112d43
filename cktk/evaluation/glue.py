"""The metrics of GLUE, and its average.

All figures go from 0 to 100, correlations from -100 to 100. Conventions of the average, checked against published rows:

- **leaderboard** (Wang et al., 2019): a task with two metrics counts with their mean, MNLI with the mean of its matched
  and mismatched accuracy; each task then counts once.
- **paper**, that of the CKA paper's tables: one metric a task, F1 for MRPC and QQP, Spearman for STS-B, MNLI matched.

The leaderboard's own average has nine tasks, WNLI among them; papers leave it out, and so do these.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from statistics import fmean

import numpy as np
import numpy.typing as npt

from cktk.data.glue import GLUE_TASKS
from cktk.errors import DataError

Numbers = npt.NDArray[np.float64]

#: What can be asked of classifiers and of regressions, under the names that logs and JSON have.
CLASSIFICATION = ("accuracy", "f1", "matthews")
REGRESSION = ("pearson", "spearman")

_PAPER = {"mrpc": "f1", "qqp": "f1", "stsb": "spearman"}


def metrics_of(benchmark: str | None, labels: Sequence[str] | None) -> tuple[str, ...]:
    """The metrics of data with these ``labels`` (None: numbers): the official ones of a GLUE task, else all."""
    if benchmark in GLUE_TASKS:
        return GLUE_TASKS[benchmark].metrics
    return REGRESSION if labels is None else CLASSIFICATION


def is_known(
    gold: npt.NDArray[np.float64] | npt.NDArray[np.int64], labels: Sequence[str] | None
) -> npt.NDArray[np.bool_]:
    """Which rows of ``gold`` (N,) have a label of ``labels``, or with None a number; see `score_answers`."""
    return ~np.isnan(gold) if labels is None else gold >= 0


def known_rows(
    gold: npt.NDArray[np.float64] | npt.NDArray[np.int64], labels: Sequence[str] | None, what: str
) -> npt.NDArray[np.bool_]:
    """`is_known`; raises `DataError` that names ``what`` if no row has a label."""
    known = is_known(gold, labels)
    if not known.any():
        raise DataError(f"{what} has no labels to score against; choose a split that has, e.g. valid")
    return known


def score_answers(
    gold: npt.NDArray[np.float64] | npt.NDArray[np.int64], answers: Numbers, labels: Sequence[str] | None, what: str
) -> dict[str, float]:
    """All metrics of ``answers`` (N, C), the logits of the classes ``labels`` or with None one number a row.

    Rows whose ``gold`` (N,) is -1 or NaN are not known and count for nothing; raises `DataError` that names ``what`` if
    no row is known. F1 is that of class 1 of two, of more classes the mean over those that occur. Correlations with
    what is constant are 0, as is Matthews'.
    """
    known = known_rows(gold, labels, what)
    gold, answers = gold[known], answers[known]
    # A model that came apart in training has to be told from others, not to stop all.
    if not np.isfinite(answers).all():
        return dict.fromkeys(REGRESSION if labels is None else CLASSIFICATION, math.nan)
    if labels is None:
        return _correlations(gold.astype(np.float64), answers[:, 0])
    return _agreement(gold.astype(np.int64), answers.argmax(axis=1), len(labels))


def predictions(answers: Numbers, labels: Sequence[str] | None, benchmark: str | None) -> list[str]:
    """What a leaderboard's file says for ``answers`` (N, C): the best class in the task's spelling, or the number.

    STS-B's are cut to its scale from 0 to 5 and have three digits behind the point. Raises `DataError` for answers that
    are not finite.
    """
    if not np.isfinite(answers).all():
        raise DataError(
            "the model's answers are not finite numbers: it came apart in training; take another checkpoint"
        )
    task = GLUE_TASKS.get(benchmark or "")
    if labels is None:
        return [f"{min(max(value, 0), 5):.3f}" if task else f"{value:.6g}" for value in answers[:, 0]]
    spelling = dict(zip(task.labels, task.spelling, strict=True)) if task and task.labels else {}
    return [spelling.get(labels[number], labels[number]) for number in answers.argmax(axis=1)]


def task_score(benchmark: str, figures: Mapping[str, Mapping[str, float]]) -> float:
    """A GLUE task's one figure on the leaderboard from the ``figures`` by split set ("" and, for MNLI, "mm")."""
    return fmean(fmean(found[name] for name in GLUE_TASKS[benchmark].metrics) for found in figures.values())


def paper_score(benchmark: str, figures: Mapping[str, Mapping[str, float]]) -> float:
    """The one figure that the paper's tables have of a GLUE task."""
    return figures[""][_PAPER.get(benchmark, GLUE_TASKS[benchmark].metrics[0])]


def _agreement(gold: npt.NDArray[np.int64], found: npt.NDArray[np.int64], classes: int) -> dict[str, float]:
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    average = "binary" if classes == 2 else "macro"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a split with one class, and a model that always gives the same
        values = {
            "accuracy": accuracy_score(gold, found),
            "f1": f1_score(gold, found, average=average, zero_division=0),
            "matthews": matthews_corrcoef(gold, found),
        }
    return {name: 100 * float(value) for name, value in values.items()}


def _correlations(gold: Numbers, found: Numbers) -> dict[str, float]:
    from scipy.stats import pearsonr, spearmanr

    if len(gold) < 2 or np.ptp(gold) == 0 or np.ptp(found) == 0:
        return dict.fromkeys(REGRESSION, 0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of values that are nearly constant
        values = {"pearson": pearsonr(found, gold).statistic, "spearman": spearmanr(found, gold).statistic}
    return {name: 100 * float(value) for name, value in values.items()}
