"""Earlier sentences of a document before a text: in batches, in what is counted, and in a cache's key."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cktk.data.batch_config import BatchingConfig
from cktk.data.framing import Context
from cktk.data.shards import DataFolder, write_manifest, write_shard
from cktk.errors import ConfigError, DataError
from cktk.protocols import IGNORED, Template
from cktk.tasks.configs import SequenceConfig
from cktk.tasks.pairs import PairCorpus, text_side
from cktk.tasks.sequence import SequenceTask
from tests.unit.data.folders import content

BOS, PAD, EOS, SEP, FR = 0, 1, 2, 90, 91
AROUND = {"en": {"prefix": [BOS], "suffix": [EOS]}, "fr": {"prefix": [BOS], "suffix": [EOS, FR]}}
KINDS = ["none", "given", "generated"]


def write_folder(folder: Path, shards: list[list[tuple[list[int], list[int], int]]]) -> DataFolder:
    """Shards of rows (source, target, document)."""
    entries = []
    for number, rows in enumerate(shards):
        columns = {name: [np.array(row[at], np.int64) for row in rows] for at, name in enumerate(("source", "target"))}
        documents = np.array([row[2] for row in rows], np.int64)
        entries.append(write_shard(folder, f"train-{number:05d}", {**columns, "document": documents}, 100))
    both = {"source": AROUND, "target": AROUND}
    columns = {"columns": ["source", "target", "document"], "kinds": {"document": "integer"}}
    write_manifest(folder, content({"train": entries}, templates=both, **columns))
    return DataFolder(folder)


def random_rows() -> list[list[tuple[list[int], list[int], int]]]:
    """Documents of some sentences, some empty, that go on from shard to shard."""
    rng = np.random.default_rng(5)
    rows = [
        (rng.integers(4, 80, rng.integers(0, 8)).tolist(), rng.integers(4, 80, rng.integers(0, 8)).tolist(), row // 6)
        for row in range(40)
    ]
    return [rows[:9], [], rows[9:25], rows[25:]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataFolder:
    return write_folder(tmp_path_factory.mktemp("data"), random_rows())


def task_of(
    data: DataFolder,
    context: Context | None,
    positions: tuple[int, int] = (100, 100),
    prompt: tuple[int, ...] = (),
    drop: bool = False,
) -> SequenceTask:
    separator = context.separator if context else None
    corpus = PairCorpus(
        "toy",
        data,
        text_side(data, "source", "source", positions[0], prompt, separator),
        text_side(data, "target", "target", positions[1], (), separator),
        context,
    )
    return SequenceTask(SequenceConfig(drop_first_position=drop), corpus, pad=PAD, decoder_start=EOS)


def expected(
    row: int, kind: str, size: int, positions: tuple[int, int], prompt: tuple[int, ...]
) -> tuple[list[int], ...]:
    """Source, target and labels of a row built by hand: one sentence more as long as both sides take it."""
    rows = [one for shard in random_rows() for one in shard]
    rooms = (positions[0] - 2 - len(prompt), positions[1] - 3)
    chosen: list[int] = []
    for before in range(row - 1, max(row - size, 0) - 1, -1):
        more = [before, *chosen]
        sides = (0, 1) if kind != "none" else (0,)
        lengths = [sum(len(rows[at][side]) + 1 for at in more) + len(rows[row][side]) for side in sides]
        if rows[before][2] != rows[row][2] or any(length > rooms[s] for s, length in zip(sides, lengths, strict=True)):
            break
        chosen = more
    sides = [[token for at in chosen for token in (*rows[at][side], SEP)] for side in (0, 1)]
    source = [BOS, *prompt, *sides[0], *rows[row][0][: rooms[0]], EOS]
    target = [BOS, *(sides[1] if kind != "none" else []), *rows[row][1][: rooms[1]], EOS, FR]
    labels = list(target)
    if kind == "given":
        labels[1 : 1 + len(sides[1])] = [IGNORED] * len(sides[1])
    return source, target, labels


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("positions", [(100, 100), (16, 100), (30, 12), (6, 6)])
@pytest.mark.parametrize("prompt", [(), (70, 71)])
def test_batches_are_those_built_by_hand(data, kind, positions, prompt):
    task = task_of(data, Context(3, SEP, kind), positions, prompt)
    rows = task.rows("train")
    lengths = rows.lengths(0, 40)
    assert lengths[7:30].tolist() == rows.lengths(7, 30).tolist()
    batch = task.collate([rows.pair(row) for row in range(40)], range(40))
    for row in range(40):
        source, target, labels = expected(row, kind, 3, positions, prompt)
        assert batch.inputs["input_ids"][row][batch.rows("encoder")[row]].tolist() == source
        assert lengths[row].tolist() == [len(source), len(target)]
        assert batch.labels[row][: len(labels)].tolist() == labels
        assert batch.inputs["decoder_input_ids"][row][: len(target)].tolist() == [EOS, *target[:-1]]
    assert task.positions("train") == {side: int(batch.rows(side).sum()) for side in ("encoder", "decoder")}


def test_generation_goes_by_the_source_alone(data):
    """The target's length, which is not known then, does not tell how much context there is."""
    roomy = task_of(data, Context(3, SEP, "given"), (100, 6)).rows("train")
    plain = task_of(data, Context(3, SEP)).rows("train")
    assert [roomy.source_ids(row).tolist() for row in range(40)] == [
        plain.pair(row).source.tolist() for row in range(40)
    ]
    assert [roomy.earlier(row) for row in range(13)] == [0, 1, 2, 3, 3, 3, 0, 1, 2, 3, 3, 3, 0]
    assert roomy.runs(14) == [range(6), range(6, 12), range(12, 14)]
    assert plain.runs(3) == [range(1), range(1, 2), range(2, 3)]
    source, target = (part for part in random_rows()[0][4][:2])
    assert roomy.reference_ids(4).tolist() == target and roomy.text_length(4) == len(source)


def test_contexts_that_are_cut_are_counted(data):
    found = task_of(data, Context(2, SEP), (9, 100)).rows("train").truncated()
    rows = [one for shard in random_rows() for one in shard]
    shorter = 0
    for row in range(40):
        whole = [at for at in range(max(0, row - 2), row) if rows[at][2] == rows[row][2]]
        shorter += sum(len(rows[at][0]) + 1 for at in whole) + len(rows[row][0]) > 7
        shorter -= bool(not whole and len(rows[row][0]) > 7)
    assert found["context"] == shorter > 0
    assert found["source"] == sum(len(row[0]) > 7 for row in rows)
    assert "have less context than there is" in task_of(data, Context(2, SEP), (9, 100)).describe_split("train", "rows")


@pytest.mark.parametrize("kind", KINDS)
def test_shards_of_a_cache_see_the_context_before_them(data, kind):
    task = task_of(data, Context(2, SEP, kind), (20, 20), drop=True)
    rows = task.rows("train")
    seen = []
    for shard in range(4):
        for batch in task.shard_batches("train", shard, BatchingConfig(batch_size=4)):
            again = task.collate([rows.pair(row) for row in batch.ids], batch.ids)
            assert all(torch.equal(tensor, again.inputs[name]) for name, tensor in batch.inputs.items())
            assert torch.equal(batch.labels, again.labels)
            seen += batch.ids
    assert sorted(seen) == list(range(40))
    batches = task.iterator("train", BatchingConfig(batch_size=40), True, 1).next_update(1)
    assert task.positions("train")["decoder"] == int(batches[0].rows("decoder").sum())


def test_settings_of_a_cache_know_prompt_and_context(data, tmp_path):
    tasks = [task_of(data, None), task_of(data, None, prompt=(70,)), task_of(data, None, prompt=(71,))]
    tasks += [task_of(data, Context(*shown)) for shown in ((2, SEP), (3, SEP), (2, 89), (2, SEP, "given"))]
    found = [task.row_settings() for task in tasks]
    assert all(one != other for at, one in enumerate(found) for other in found[:at])
    # A row of a shard that is as it was shows rows of others, which may not be.
    shards = random_rows()
    shards[0][-1] = ([44], *shards[0][-1][1:])
    (tmp_path / "changed").mkdir()
    changed = write_folder(tmp_path / "changed", shards)
    assert task_of(changed, None).row_settings() == found[0]
    assert task_of(changed, Context(2, SEP)).row_settings() != found[3]


def test_several_corpora_have_no_fixed_rows(data):
    side = text_side(data, "source", "source", 20)
    corpora = [PairCorpus(name, data, side, side) for name in ("one", "other")]
    task = SequenceTask(SequenceConfig(), *corpora, pad=PAD, decoder_start=EOS)
    with pytest.raises(ConfigError, match="a teacher cache is of one data folder in one direction"):
        task.row_settings()


def test_context_needs_documents_and_a_prompt_leaves_room(tmp_path):
    row = {name: [np.array([5])] for name in ("source", "target")}
    write_manifest(tmp_path, content({"train": [write_shard(tmp_path, "train-00000", row, 100)]}))
    data = DataFolder(tmp_path)
    with pytest.raises(DataError, match="--context-size 2 needs to know the document of each row; preprocess again"):
        task_of(data, Context(2, SEP))
    words = "--max-source-positions 6 leaves no room for text beside 4 tokens of --source-prompt and 2 special tokens"
    with pytest.raises(ConfigError, match=words):
        text_side(data, "source", "source", 6, (5, 6, 7, 8))
    side = text_side(data, "source", "source", 7, (5, 6, 7, 8))
    assert (side.room, side.template, side.special) == (1, Template((BOS,), (EOS,)), 6)
