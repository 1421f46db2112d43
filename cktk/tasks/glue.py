"""GLUE and tables like it: sentences, or pairs of sentences, that are classified or rated by an encoder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from cktk.data.batch_config import BatchingConfig
from cktk.data.glue import GLUE_TASKS
from cktk.data.iterators import MicroBatches
from cktk.data.mixtures.corpora import Corpora
from cktk.data.shards import DataFolder
from cktk.distributed.world import World
from cktk.errors import DataError
from cktk.protocols import IGNORED, Batch, SentenceHead, Side
from cktk.tasks.answers import AnswerScorer
from cktk.tasks.batches import check_filled, padded, shard_batches, split_batches
from cktk.tasks.configs import GlueConfig
from cktk.tasks.sentences import LABEL, SentenceFrame, SentenceRows


class GlueTask:
    """Batches for classifiers of sentences from a data folder with the columns ``text_a``, ``text_b``, ``label``.

    ``pad`` is the model's token id, ``max_positions`` the most positions that the models take. Labels (B, 1) are
    classes, or numbers where `labels` is None; rows whose label is not known are shown, but not scored. Raises
    `DataError` for a folder of another task, `ConfigError` for positions that leave no room for text.
    """

    sides: tuple[Side, ...] = ("encoder",)

    def __init__(
        self,
        config: GlueConfig,
        data: Corpora,
        *,
        pad: int,
        decoder_start: int | None = None,  # noqa: ARG002 - nothing is decoded
        max_positions: int | None = None,
    ) -> None:
        self.data = _folder(data)
        self.labels = self.data.labels
        self._config = config
        self._pad = pad
        limit = config.max_source_positions
        self.frame = SentenceFrame.of(self.data, min(limit, max_positions or limit))

    @staticmethod
    def head(config: GlueConfig, data: Corpora) -> SentenceHead:  # noqa: ARG004
        """The head that models for ``data`` have to have; see `cktk.assemble.heads.wanted_head`."""
        return SentenceHead(_folder(data).labels)

    @property
    def target_template(self) -> None:
        """None: there are no target texts."""
        return None

    @property
    def benchmark(self) -> str | None:
        """The GLUE task that the data is, if it is one."""
        return self.data.benchmark if self.data.benchmark in GLUE_TASKS else None

    def rows(self, split_name: str) -> SentenceRows:
        """The rows of a split as the models see them; raises `DataError` for a split that is not there."""
        return SentenceRows(self.data.split(split_name), self.frame)

    def describe(self) -> list[str]:
        """See `Task.describe`."""
        rows = self.rows("train")
        what = "pairs of sentences" if self.frame.pairs else "sentences"
        answer = "a number each" if self.labels is None else f"classes {', '.join(self.labels)}"
        labels = rows.labels()
        unknown = int(np.isnan(labels).sum() if self.labels is None else (labels < 0).sum())
        line = f"train: {len(rows)} {what}, {answer}; {rows.truncated()} are cut to the maximum positions"
        return [line + (f", {unknown} have no label and are not scored" if unknown else "")]

    def iterator(
        self, split_name: str, batching: BatchingConfig, shuffle: bool, seed: int, rank: int = 0, world: int = 1
    ) -> MicroBatches:
        """The micro-batches of a split; without ``shuffle`` (validation) an epoch is always the whole split."""
        rows = self.rows(split_name)
        check_filled(rows, self.data, split_name)
        return split_batches(
            rows, partial(self._load, rows), batching, shuffle=shuffle, seed=seed, rank=rank, world=world
        )

    def shard_batches(self, split_name: str, shard: int, batching: BatchingConfig) -> Iterator[Batch]:
        """See `FixedRows.shard_batches`."""
        rows = self.rows(split_name)
        return shard_batches(rows, partial(self._load, rows), shard, batching)

    def positions(self, split_name: str) -> dict[Side, int]:
        """See `FixedRows.positions`; what is scored are sentences."""
        rows = self.rows(split_name)
        labels = rows.labels()
        scored = ~np.isnan(labels) if self.labels is None else labels >= 0
        return {"encoder": rows.tokens(), "decoder": int(scored.sum())}

    def row_settings(self) -> dict[str, Any]:
        """See `FixedRows.row_settings`."""
        template = self.frame.template
        return {
            "max_source_positions": self.frame.room + self.frame.special,
            "template": [list(template.prefix), list(template.middle), list(template.suffix)],
            "token_types": template.token_types,
            "labels": None if self.labels is None else list(self.labels),
        }

    def scorer(
        self,
        model: Any,
        tokenizer: Any,  # noqa: ARG002
        split_name: str,
        world: World,
        max_tokens: int | None,
    ) -> AnswerScorer | None:
        """What a validation calls for the metrics of ``split_name``; None where they are not wanted."""
        if not self._config.eval_metrics:
            return None
        batching = BatchingConfig(max_tokens=max_tokens)
        make = partial(self.iterator, split_name, batching, False, 0, world.rank, world.size)
        what = f"{self.data.path}: split {split_name}"
        return AnswerScorer(model, make, self.rows(split_name).labels(), self.labels, world, what)

    def _load(self, rows: SentenceRows, ids: Sequence[int]) -> Batch:
        """The batch of those rows of a split."""
        found = [rows.split[index] for index in ids]
        shown = [self.frame.show(row) for row in found]
        inputs, attended = padded([row for row, _ in shown], self._pad)
        tensors = {"input_ids": inputs, "attention_mask": attended.astype(np.int64)}
        if self.frame.template.token_types:
            starts = np.array([start for _, start in shown])[:, None]
            tensors["token_type_ids"] = ((np.arange(inputs.shape[1]) >= starts) & attended).astype(np.int64)
        return Batch(
            inputs={name: torch.from_numpy(array) for name, array in tensors.items()},
            labels=torch.from_numpy(self._labels([row[LABEL] for row in found]))[:, None],
            ids=list(ids),
        )

    def _labels(self, values: Sequence[Any]) -> np.ndarray[Any, Any]:
        if self.labels is None:
            return np.array(values, np.float32)
        classes = np.array(values, np.int64)
        return np.where(classes < 0, IGNORED, classes)


def _folder(data: Corpora) -> DataFolder:
    """The one folder of sentences that ``data`` is."""
    return sentences_of(data.single("--task glue"))


def sentences_of(folder: DataFolder) -> DataFolder:
    """``folder``; raises `DataError` if it does not hold sentences with labels."""
    if LABEL not in folder.columns or folder.task != "glue":
        raise DataError(
            f"{folder.path}: was made for {folder.task} (columns {', '.join(folder.columns)}), but --task glue needs "
            "sentences with labels; make it with cktk-preprocess --task glue"
        )
    return folder
