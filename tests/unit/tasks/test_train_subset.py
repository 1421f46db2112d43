"""Every task trains on the rows of a subset, and on no others."""

from __future__ import annotations

from pathlib import Path

import pytest

from cktk.data.batch_config import BatchingConfig
from cktk.data.subset import chosen_rows
from cktk.errors import ConfigError
from cktk.tasks.pretraining import PretrainingTask
from tests.unit.tasks.test_pretraining import PLAIN, make, rows_of, task_of, texts_of

SUBSET = BatchingConfig(batch_size=4, train_subset=9)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make(tmp_path / "plain", "en", 20, 4, PLAIN)


def epoch(task: PretrainingTask, batching: BatchingConfig) -> list[tuple[list[int], list[int], list[int]]]:
    return sorted(rows_of(task.iterator("train", batching, True, seed=5)))


def test_pretraining(folder: Path) -> None:
    texts, chosen = texts_of(folder), chosen_rows(20, 9, 5)
    found = [source[1:-1] for source, _, _ in epoch(task_of(folder, decoder_start=2), SUBSET)]
    assert sorted(found) == sorted(texts[number] for number in chosen)


def test_noise_is_that_of_the_row_wherever_it_stands(folder: Path) -> None:
    task = task_of(folder, objective="denoise", decoder_start=2)
    part, whole = epoch(task, SUBSET), epoch(task, BatchingConfig(batch_size=4))
    assert len(part) == 9 and all(row in whole for row in part)


def test_several_corpora_and_streams_are_refused(folder: Path, tmp_path: Path) -> None:
    other = make(tmp_path / "other", "en", 20, 5, PLAIN)
    with pytest.raises(ConfigError, match=r"takes one corpus in one direction, not 2 \(plain, other\)"):
        task_of(folder, other, decoder_start=2).iterator("train", SUBSET, True, seed=5)
    (tmp_path / "text.txt").write_text("w9 w8\n")
    streamed = task_of(folder, decoder_start=2, stream=(f"plain=text:{tmp_path / 'text.txt'}",))
    with pytest.raises(ConfigError, match="nobody has counted those of the stream plain"):
        streamed.iterator("train", SUBSET, True, seed=5)
