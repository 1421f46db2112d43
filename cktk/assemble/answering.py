"""A trained classifier or regression, and the data folder that it answers about."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cktk.architectures.families.family import family_of
from cktk.architectures.loading import load_config
from cktk.assemble.heads import check_answers
from cktk.assemble.models import ModelLoader
from cktk.data.batch_config import BatchingConfig
from cktk.data.glue import GLUE_TASKS, MISMATCHED
from cktk.data.mixtures.corpora import Corpora
from cktk.data.shards import DataFolder
from cktk.distributed import world as distributed
from cktk.errors import ConfigError, DataError
from cktk.evaluation.glue import is_known, known_rows, metrics_of, paper_score, score_answers, task_score
from cktk.tasks.answers import answers
from cktk.tasks.configs import GlueConfig
from cktk.tasks.glue import GlueTask, sentences_of
from cktk.tasks.sentences import LABEL

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answers:
    """What a model says of the rows of a split: logits (N, C), C = 1 for numbers; how long it took, how many were cut.

    ``figures`` are those of `score_answers`.
    """

    split: str
    found: npt.NDArray[np.float64]
    seconds: float
    truncated: int
    figures: Callable[[], dict[str, float]]


def scored_split(folders: Sequence[str], asked: str | None) -> str:
    """The split on which models are scored: the one ``asked`` for, else test, or valid if some test has no labels.

    Raises `ConfigError` for folders of the same task of GLUE, whose average has each task once, and `DataError` for one
    without sentences, without that split, or without labels there.
    """
    found = [sentences_of(DataFolder(folder)) for folder in folders]
    by_task: dict[str, DataFolder] = {}
    for data in found:
        if data.benchmark in by_task:
            raise ConfigError(
                f"{by_task[data.benchmark].path} and {data.path} are both {GLUE_TASKS[data.benchmark].title}, which an "
                "average has once; score one of them by itself"
            )
        if data.benchmark in GLUE_TASKS:
            by_task[data.benchmark] = data
    split = asked or ("test" if all(_has_labels(data, "test") for data in found) else "valid")
    for data in found:
        for name in _with_mismatched(data, split):
            known_rows(_labels(data, name), data.labels, f"{data.path}: split {name}")
        if data.benchmark == "mnli" and split in MISMATCHED and MISMATCHED[split] not in data.splits:
            logger.warning("%s: has no split %s: MNLI counts by its matched set alone", data.path, MISMATCHED[split])
    return split


def _labels(data: DataFolder, split: str) -> npt.NDArray[Any]:
    found = data.split(split)
    return found.values(LABEL, 0, len(found))


def _has_labels(data: DataFolder, split: str) -> bool:
    return split in data.splits and bool(is_known(_labels(data, split), data.labels).any())


def _with_mismatched(data: DataFolder, split: str) -> list[str]:
    """``split`` and, where there is one, MNLI's mismatched set beside it."""
    mismatched = MISMATCHED.get(split)
    return [split, mismatched] if mismatched in data.splits else [split]


class SentenceModel:
    """The model ``path`` and the data folder ``data_bin`` of sentences.

    ``max_positions`` cuts texts (None: to what the model takes). Raises `ConfigError` where the two do not fit: other
    tokenizers, or other labels. Labels in another order are put in that of the data.
    """

    def __init__(
        self,
        path: str,
        data_bin: str,
        *,
        device: str = "auto",
        max_positions: int | None = None,
        batching: BatchingConfig | None = None,
        allow_bin_weights: bool = False,
    ) -> None:
        self.path, self.data = path, DataFolder(data_bin)
        corpora = Corpora.of(self.data)
        head = GlueTask.head(GlueConfig(), corpora)
        config: Any = load_config(path)
        family = family_of(config.model_type, path)
        otherwise = "; give a model that was trained on such data"
        check_answers(family, config, head, f"the model {path}", otherwise)
        self._world = distributed.start(device)
        loaded: Any = ModelLoader(family, self.data, allow_bin_weights, head)("the model", path)
        self.model = loaded.to(self._world.device).eval()
        limit = family.shape(config).positions
        settings = GlueConfig(max_source_positions=max_positions or limit or GlueConfig.max_source_positions)
        self.task = GlueTask(settings, corpora, pad=config.pad_token_id, max_positions=limit)
        self._batching = batching or BatchingConfig()

    @property
    def title(self) -> str:
        """What the data is called: GLUE's name of the task, or that of the folder."""
        return GLUE_TASKS[self.task.benchmark].title if self.task.benchmark else self.data.path.resolve().name

    def answer(self, split: str, done: Callable[[int], None] | None = None) -> Answers:
        """Let the model answer all rows of ``split``; ``done`` is called with the rows just answered."""
        rows = self.task.rows(split)
        started = time.perf_counter()
        batches = self.task.iterator(split, self._batching, False, 0)
        found = answers(self.model, batches, len(rows), self._world, done)
        seconds = time.perf_counter() - started

        def figures() -> dict[str, float]:
            return score_answers(rows.labels(), found, self.task.labels, f"{self.data.path}: split {split}")

        return Answers(split, found, seconds, rows.truncated(), figures)

    def prediction_files(self, split: str) -> dict[str, str]:
        """Which splits to predict where ``split`` is asked for, and what the leaderboard calls their files.

        Its name stands for the test splits; others go by title and split.
        """
        names = {split: f"{self.title}-{split}.tsv"}
        if self.task.benchmark is not None and split == "test":
            names = GLUE_TASKS[self.task.benchmark].submissions()
        found = {name: file for name, file in names.items() if name in self.data.splits}
        if not found:
            raise DataError(
                f"{self.data.path}: no such split: {split}; choose with --gen-subset among: "
                f"{', '.join(self.data.splits)}"
            )
        return found

    def score(self, split: str, answer: Callable[[str], Answers]) -> dict[str, Any]:
        """What is to be said of the model on ``split``, and on MNLI's mismatched one with it, as JSON values.

        ``answer`` is `answer`, perhaps with something around it. Tasks of GLUE have their ``score`` on the leaderboard,
        and that of the paper; MNLI's mismatched set by itself has neither. `scored_split` looks for labels beforehand.
        """
        splits = dict(zip(("", "mm"), _with_mismatched(self.data, split), strict=False))
        found = {key: answer(name) for key, name in splits.items()}
        figures = {key: answers.figures() for key, answers in found.items()}
        benchmark = self.task.benchmark
        entry: dict[str, Any] = {
            "task": self.title,
            "model": self.path,
            "data": str(self.data.path),
            "parameters": self.model.num_parameters(),
            "rows": len(found[""].found),
            "rows_per_second": len(found[""].found) / found[""].seconds,
            "truncated": sum(answers.truncated for answers in found.values()),
            "metrics": list(metrics_of(benchmark, self.task.labels)),
            "splits": {name: figures[key] for key, name in splits.items()},
        }
        if benchmark is not None and split not in MISMATCHED.values():
            entry |= {"score": task_score(benchmark, figures), "paper_score": paper_score(benchmark, figures)}
        return entry
