"""What training asks of a task."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, Protocol, runtime_checkable

from cktk.data.batch_config import BatchingConfig
from cktk.data.iterators import PlannedBatches
from cktk.data.mixtures.corpora import Corpora
from cktk.distributed.world import World
from cktk.protocols import Batch, Scorer, Side, Template


class Task(Protocol):
    """Makes batches of a data folder's rows, and judges a model by what it does with them.

    A task that needs models with a decoder says so by an attribute ``sides``, e.g. ``("encoder", "decoder")``. One
    whose models have to answer about sentences has a static method ``head(config, data) -> SentenceHead``, with the
    arguments of `TaskBuilder`.
    """

    @property
    def target_template(self) -> Template | None:
        """What goes around a target text; None for a task without such."""

    def describe(self) -> list[str]:
        """Lines for the start of a run: what is trained on, how much of it, and what is cut."""

    def iterator(
        self, split_name: str, batching: BatchingConfig, shuffle: bool, seed: int, rank: int, world: int
    ) -> PlannedBatches:
        """This rank's micro-batches of a split; raises `DataError` for a split that is not there.

        With ``shuffle`` they are for training, and ``batching.train_subset`` has to be followed or refused.
        """

    def scorer(
        self, model: Any, tokenizer: Any, split_name: str, world: World, max_tokens: int | None
    ) -> Scorer | None:
        """What a validation asks for figures beyond the loss; None where there are none.

        ``max_tokens`` is the budget of a batch in training.
        """


@runtime_checkable
class SeveralCorpora(Protocol):
    """What a task offers beyond `Task` if it may train on several corpora: validation of each by itself."""

    def corpora(self, split_name: str) -> list[str]:
        """The corpora that have the split, by name."""

    def corpus_pass(
        self, corpus: str, split_name: str, batching: BatchingConfig, rank: int, world: int
    ) -> PlannedBatches:
        """This rank's micro-batches of one corpus' split, whose epochs are the whole of it, not shuffled."""


@runtime_checkable
class FixedRows(Protocol):
    """What a task offers beyond `Task` if a data row always becomes the same input and labels.

    A teacher's answers to such rows can be kept (`cktk-cache-teacher`).
    """

    def row_settings(self) -> dict[str, Any]:
        """What decides how a data row is shown, under the names of the flags where there are any, as JSON values."""

    def positions(self, split_name: str) -> dict[Side, int]:
        """How many positions all rows of a split have together, as `Batch.rows` counts them."""

    def shard_batches(self, split_name: str, shard: int, batching: BatchingConfig) -> Iterator[Batch]:
        """Every row of a shard once, in batches whose order and content follow from the data and ``batching``."""


@runtime_checkable
class ChecksModels(Protocol):
    """What a row of `TASKS` offers if it suits only some models and criteria, as its options say."""

    def check_models(self, config: Any, sides: Collection[Side], scores_labels: bool) -> None:
        """Raise `ConfigError` unless models with ``sides`` may be trained, with cross entropy or without."""


class TaskBuilder(Protocol):
    """What a row of `TASKS` names.

    ``config`` are the task's own options, ``pad`` and ``decoder_start`` the model's token ids (no start: a decoder's
    input begins with the last label), ``max_positions`` the most that its models take (None: no limit).
    """

    def __call__(
        self, config: Any, data: Corpora, *, pad: int, decoder_start: int | None, max_positions: int | None
    ) -> Task: ...
