"""What a teacher cache asks of the translation task."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cktk.data.batch_config import BatchingConfig
from cktk.data.shards import DataFolder, write_manifest, write_shard
from cktk.protocols import Batch
from cktk.tasks.base import FixedRows
from cktk.tasks.configs import TranslationConfig
from cktk.tasks.translation import TranslationTask
from tests.unit.data.folders import content

BOS, PAD, EOS = 0, 1, 2


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataFolder:
    """A split of three shards of 5, 0 and 8 rows."""
    folder, rng, entries = tmp_path_factory.mktemp("data"), np.random.default_rng(1), []
    for number, rows in enumerate((5, 0, 8)):
        texts = {name: [rng.integers(4, 90, rng.integers(0, 9)) for _ in range(rows)] for name in ("source", "target")}
        entries.append(write_shard(folder, f"train-{number:05d}", texts, 100))
    around = {"en": {"prefix": [BOS], "suffix": [EOS]}, "fr": {"prefix": [], "suffix": [EOS]}}
    write_manifest(folder, content({"train": entries}, templates={"source": around, "target": around}))
    return DataFolder(folder)


def task_of(data: DataFolder, decoder_start: int | None = EOS, **options: object) -> TranslationTask:
    config = TranslationConfig(**options)  # type: ignore[arg-type]
    return TranslationTask(config, data, pad=PAD, decoder_start=decoder_start, max_positions=30)


def by_row(batches: list[Batch]) -> dict[int, list[list[int]]]:
    return {
        row: [
            batch.inputs["input_ids"][at][batch.rows("encoder")[at]].tolist(),
            batch.labels[at][batch.rows("decoder")[at]].tolist(),
            batch.inputs["decoder_input_ids"][at][batch.rows("decoder")[at]].tolist(),
        ]
        for batch in batches
        for at, row in enumerate(batch.ids)
    }


OPTIONS = [{}, {"max_source_positions": 5, "max_target_positions": 4}, {"drop_first_position": True}]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("batching", [BatchingConfig(max_tokens=20), BatchingConfig(batch_size=2, num_workers=1)])
def test_shards_together_are_the_split(data: DataFolder, options: dict[str, object], batching: BatchingConfig) -> None:
    task = task_of(data, **options)
    assert isinstance(task, FixedRows)
    shards = [list(task.shard_batches("train", shard, batching)) for shard in range(3)]
    assert [sorted(row for batch in batches for row in batch.ids) for batches in shards] == [
        list(range(5)), [], list(range(5, 13)),
    ]  # fmt: skip
    again = list(task.shard_batches("train", 2, batching))
    assert all(torch.equal(batch.labels, other.labels) for batch, other in zip(shards[2], again, strict=True))
    batches = [batch for found in shards for batch in found]
    assert all(batch.inputs["input_ids"].numel() <= 20 for batch in batches) or batching.max_tokens is None
    iterator = task.iterator("train", BatchingConfig(batch_size=4), True, 1)
    trained = []
    while found := iterator.next_update(1):
        trained += found
    assert by_row(batches) == by_row(trained)
    for side in ("encoder", "decoder"):
        assert task.positions("train")[side] == sum(int(batch.rows(side).sum()) for batch in batches)


def test_settings_tell_apart_what_shows_rows_differently(data: DataFolder) -> None:
    tasks = [task_of(data, **options) for options in OPTIONS]
    tasks += [task_of(data, source_lang="fr"), task_of(data, decoder_start=None)]
    found = [task.row_settings() for task in tasks]
    assert all(one != other for at, one in enumerate(found) for other in found[:at])
    # What has no say in the rows has none here, and what the models' limit overrules neither.
    assert task_of(data, eval_bleu=True, max_source_positions=31).row_settings() == found[0]
    assert found[0]["max_source_positions"] == 30 and found[3]["target_lang"] == "en"
