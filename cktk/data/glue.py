"""The tasks of the GLUE benchmark as data: columns, labels, splits and file names, as they are published.

Two publications are known: the TSV files of https://gluebenchmark.com/tasks, and the dataset ``nyu-mll/glue`` (or
``glue``) of the Hugging Face hub. Columns are given as candidates, the names of both; a number stands for the column at
that place (from 1) in files without a header, which CoLA's train and dev files are.

WNLI is not here (its train and dev sets contradict each other, and papers leave it out), nor are the diagnostics (AX).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

#: Splits beside train, valid and test: MNLI's sets of genres that training does not hold.
MISMATCHED = {"valid": "valid_mm", "test": "test_mm"}


@dataclass(frozen=True)
class GlueDataset:
    """The data of one task.

    ``text_a``, ``text_b`` and ``label`` are candidates for the column's name, best first; ``text_b`` is empty where a
    task has single sentences. ``labels`` are the names in the order of their integers, None for regression;
    ``spelling`` is what a submission calls them. ``files`` are the TSV files by split, ``hub_splits`` the hub's names
    of the splits. ``metrics`` are the official ones, `cktk.evaluation.glue` computes them.
    """

    name: str
    title: str
    text_a: tuple[str, ...]
    label: tuple[str, ...]
    metrics: tuple[str, ...]
    text_b: tuple[str, ...] = ()
    labels: tuple[str, ...] | None = None
    spelling: tuple[str, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    hub_splits: Mapping[str, str] = field(default_factory=dict)
    headless: tuple[str, ...] = ()

    @property
    def regression(self) -> bool:
        """Whether labels are numbers."""
        return self.labels is None

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that the task has, as cktk calls them."""
        return tuple(self.files)

    def submissions(self) -> dict[str, str]:
        """Split -> name of the leaderboard's file with the predictions for it."""
        if "test_mm" not in self.files:
            return {"test": f"{self.title}.tsv"}
        return {"test": f"{self.title}-m.tsv", "test_mm": f"{self.title}-mm.tsv"}


_FILES = {"train": "train.tsv", "valid": "dev.tsv", "test": "test.tsv"}
_HUB = {"train": "train", "valid": "validation", "test": "test"}
_BINARY = ("0", "1")
_INFERENCE = ("entailment", "not_entailment")

#: All tasks in the order of the leaderboard, by the name that ``--glue-task`` takes (and the hub's configuration has).
GLUE_TASKS: dict[str, GlueDataset] = {
    task.name: task
    for task in (
        GlueDataset(
            "cola",
            "CoLA",
            text_a=("sentence", "4"),
            label=("label", "2"),
            metrics=("matthews",),
            labels=("unacceptable", "acceptable"),
            spelling=_BINARY,
            files=_FILES,
            hub_splits=_HUB,
            headless=("train", "valid"),
        ),
        GlueDataset(
            "sst2",
            "SST-2",
            text_a=("sentence",),
            label=("label",),
            metrics=("accuracy",),
            labels=("negative", "positive"),
            spelling=_BINARY,
            files=_FILES,
            hub_splits=_HUB,
        ),
        GlueDataset(
            "mrpc",
            "MRPC",
            text_a=("sentence1", "#1 String"),
            text_b=("sentence2", "#2 String"),
            label=("label", "Quality"),
            metrics=("f1", "accuracy"),
            labels=("not_equivalent", "equivalent"),
            spelling=_BINARY,
            files=_FILES,
            hub_splits=_HUB,
        ),
        GlueDataset(
            "stsb",
            "STS-B",
            text_a=("sentence1",),
            text_b=("sentence2",),
            label=("label", "score"),
            metrics=("pearson", "spearman"),
            files=_FILES,
            hub_splits=_HUB,
        ),
        GlueDataset(
            "qqp",
            "QQP",
            text_a=("question1",),
            text_b=("question2",),
            label=("label", "is_duplicate"),
            metrics=("f1", "accuracy"),
            labels=("not_duplicate", "duplicate"),
            spelling=_BINARY,
            files=_FILES,
            hub_splits=_HUB,
        ),
        GlueDataset(
            "mnli",
            "MNLI",
            text_a=("premise", "sentence1"),
            text_b=("hypothesis", "sentence2"),
            label=("label", "gold_label"),
            metrics=("accuracy",),
            labels=("entailment", "neutral", "contradiction"),
            spelling=("entailment", "neutral", "contradiction"),
            files={
                "train": "train.tsv",
                "valid": "dev_matched.tsv",
                "valid_mm": "dev_mismatched.tsv",
                "test": "test_matched.tsv",
                "test_mm": "test_mismatched.tsv",
            },
            hub_splits={
                "train": "train",
                "valid": "validation_matched",
                "valid_mm": "validation_mismatched",
                "test": "test_matched",
                "test_mm": "test_mismatched",
            },
        ),
        GlueDataset(
            "qnli",
            "QNLI",
            text_a=("question",),
            text_b=("sentence",),
            label=("label",),
            metrics=("accuracy",),
            labels=_INFERENCE,
            spelling=_INFERENCE,
            files=_FILES,
            hub_splits=_HUB,
        ),
        GlueDataset(
            "rte",
            "RTE",
            text_a=("sentence1",),
            text_b=("sentence2",),
            label=("label",),
            metrics=("accuracy",),
            labels=_INFERENCE,
            spelling=_INFERENCE,
            files=_FILES,
            hub_splits=_HUB,
        ),
    )
}
