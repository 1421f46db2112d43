from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cktk.architectures.families.family import families
from cktk.data.batch_config import BatchingConfig
from cktk.data.mixtures.corpora import Corpora
from cktk.data.shards import DataFolder
from cktk.data.teacher_cache.reader import row_digests
from cktk.distributed.world import World
from cktk.errors import ConfigError, DataError
from cktk.protocols import IGNORED, Batch, SentenceHead, StateRequest
from cktk.tasks.base import FixedRows
from cktk.tasks.configs import GlueConfig
from cktk.tasks.glue import GlueTask
from cktk.tasks.sentences import kept_tokens
from tests.unit.architectures.encoders import KINDS, make_encoder
from tests.unit.data.folders import make as make_pairs
from tests.unit.tasks.sentences import LETTERS, make_folder, make_tokenizer

CPU = World(0, 1, torch.device("cpu"))


def text(draw: random.Random, most: int) -> str:
    return " ".join(draw.choice(LETTERS) for _ in range(draw.randint(0, most)))


def pairs(count: int, seed: int = 1) -> list[tuple[str, str, int]]:
    draw = random.Random(seed)
    return [(text(draw, 9), text(draw, 9), draw.randrange(2)) for _ in range(count)]


def singles(count: int) -> list[tuple[str, Any]]:
    draw = random.Random(4)
    return [(text(draw, 12), draw.randrange(-1, 2)) for _ in range(count)]


def task_of(data: DataFolder, **options: Any) -> GlueTask:
    return GlueTask(GlueConfig(**options), Corpora.of(data), pad=1)


def one_batch(task: GlueTask, rows: int) -> Batch:
    """All rows in one batch, in order."""
    return task._load(task.rows("train"), range(rows))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("positions", [7, 8, 16])
def test_pairs_are_what_the_tokenizer_makes(kind: str, positions: int, tmp_path: Path) -> None:
    """Template, kinds of sentence, and the cutting of the longer text."""
    tokenizer, rows = make_tokenizer(kind), pairs(30)
    batch = one_batch(task_of(make_folder(tmp_path, tokenizer, {"train": rows}), max_source_positions=positions), 30)
    firsts, seconds, labels = map(list, zip(*rows, strict=True))
    expected = tokenizer(
        firsts, seconds, truncation="longest_first", max_length=positions, padding=True, return_tensors="pt"
    )
    assert set(expected) <= set(batch.inputs) | {"token_type_ids"}
    for name in batch.inputs:
        assert torch.equal(batch.inputs[name], expected[name]), name
    assert ("token_type_ids" in batch.inputs) == (kind == "bert")
    assert batch.labels.tolist() == [[label] for label in labels]


@pytest.mark.parametrize("kind", KINDS)
def test_single_texts_are_what_the_tokenizer_makes(kind: str, tmp_path: Path) -> None:
    tokenizer, rows = make_tokenizer(kind), singles(20)
    batch = one_batch(task_of(make_folder(tmp_path, tokenizer, {"train": rows}), max_source_positions=9), 20)
    expected = tokenizer([row[0] for row in rows], truncation=True, max_length=9, padding=True, return_tensors="pt")
    assert torch.equal(batch.inputs["input_ids"], expected["input_ids"])
    assert torch.equal(batch.inputs["attention_mask"], expected["attention_mask"])
    assert batch.labels.flatten().tolist() == [IGNORED if label < 0 else label for _, label in rows]
    assert batch.counts()["target_token"] == sum(label >= 0 for _, label in rows) < 20


@given(st.integers(0, 30), st.integers(0, 30), st.integers(1, 30))
def test_the_longer_text_is_cut_first(first: int, second: int, room: int) -> None:
    """Against one token at a time from the longer text, and of equal ones in an order that only the end decides."""
    a, b = first, second
    while a + b > room:
        if a > b or (a == b and first > second):
            a -= 1
        else:
            b -= 1
    ours = tuple(int(n) for n in kept_tokens(np.array(first), np.array(second), room))
    assert sum(ours) == min(first + second, room)
    assert sorted(ours) == sorted((a, b))
    assert all(kept <= had for kept, had in zip(ours, (first, second), strict=True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("head", ["classes", "numbers"])
def test_forward_equals_transformers(kind: str, head: str, tmp_path: Path) -> None:
    """Logits by the adapter's path in training and by the scorer's, on pairs, against the class itself."""
    labels = None if head == "numbers" else ("a", "b", "c")
    tokenizer, rows = make_tokenizer(kind), [(a, b, 0.5 * c if labels is None else c) for a, b, c in pairs(12)]
    data = make_folder(tmp_path, tokenizer, {"train": rows}, labels)
    model: Any = make_encoder(kind, "classification", num_labels=len(labels or "1"))
    task = task_of(data, max_source_positions=16)
    firsts, seconds, _ = map(list, zip(*rows, strict=True))
    inputs = tokenizer(
        firsts, seconds, truncation=True, max_length=16, padding=True, return_tensors="pt",
        return_token_type_ids=kind == "bert",
    )  # fmt: skip
    with torch.no_grad():
        expected = model(**inputs).logits
        batch = one_batch(task, 12)
        adapter = families()[kind].adapter(model)
        states, params = adapter(batch, StateRequest(head=True)).head_input, adapter.head()
    assert params.bias is not None and states is not None
    torch.testing.assert_close(states @ params.weight.T + params.bias, expected)

    scorer = task.scorer(model, None, "train", CPU, 40)
    assert scorer is not None
    gold = np.array([row[2] for row in rows])
    found = scorer()
    if labels is None:
        assert found["pearson"] == pytest.approx(100 * np.corrcoef(expected[:, 0].numpy(), gold)[0, 1], abs=1e-3)
        assert set(found) == set(scorer.figures) == {"pearson", "spearman"}
    else:
        assert found["accuracy"] == pytest.approx(100 * float((expected.argmax(1).numpy() == gold).mean()))
        assert set(found) == set(scorer.figures) == {"accuracy", "f1", "matthews"}
    # A deaf model would not be noticed otherwise.
    assert expected.std(0).min() > 1e-3


def test_batches_keep_to_the_budget_and_show_every_row_once(tmp_path: Path) -> None:
    rows = pairs(60)
    task = task_of(make_folder(tmp_path, make_tokenizer("bert"), {"train": rows}, shards=3))
    assert isinstance(task, FixedRows)
    seen: list[int] = []
    for shard, part in enumerate((20, 20, 20)):
        ids = [i for batch in task.shard_batches("train", shard, BatchingConfig(max_tokens=80)) for i in batch.ids]
        assert len(ids) == part
        seen += ids
    assert sorted(seen) == list(range(60))

    batches = task.iterator("train", BatchingConfig(max_tokens=80), True, 3)
    epoch = []
    while taken := batches.next_update(2):
        epoch += taken
    assert sorted(i for batch in epoch for i in batch.ids) == list(range(60))
    assert len(epoch) > 8 and max(batch.inputs["input_ids"].numel() for batch in epoch) <= 80
    # What a teacher cache goes by: tokens and scored rows, and digests that do not depend on the batch.
    assert task.positions("train")["encoder"] == sum(int(b.inputs["attention_mask"].sum()) for b in epoch)
    assert task.positions("train")["decoder"] == 60
    digests = {row: digest for batch in epoch for row, digest in zip(batch.ids, row_digests(batch), strict=True)}
    assert [digests[row] for row in range(60)] == row_digests(one_batch(task, 60)).tolist()


def test_settings_and_description(tmp_path: Path) -> None:
    rows = [("a b c d e f g h", "a b", 1), ("a", "b", -1)]
    task = task_of(make_folder(tmp_path, make_tokenizer("bert"), {"train": rows}), max_source_positions=8)
    (line,) = task.describe()
    assert line.startswith("train: 2 pairs of sentences, classes no, yes; 1 are cut to the maximum positions")
    assert line.endswith(", 1 have no label and are not scored")
    assert task.positions("train") == {"encoder": 8 + 5, "decoder": 1}
    assert task.row_settings() == {
        "max_source_positions": 8,
        "template": [[2], [3], [3]],
        "token_types": True,
        "labels": ["no", "yes"],
    }
    assert GlueTask.head(GlueConfig(), Corpora.of(task.data)) == SentenceHead(("no", "yes"))


def test_numbers_may_be_unknown(tmp_path: Path) -> None:
    rows = [("a b", 2.5), ("c", float("nan")), ("", -1.0)]
    task = task_of(make_folder(tmp_path, make_tokenizer("roberta"), {"train": rows}, labels=None))
    batch = one_batch(task, 3)
    assert batch.labels.dtype == torch.float32
    assert batch.labels[batch.rows("decoder")].tolist() == [2.5, -1.0]
    assert task.positions("train")["decoder"] == 2
    assert "a number each" in task.describe()[0] and "1 have no label" in task.describe()[0]
    assert batch.inputs["input_ids"][2].tolist()[:2] == [0, 2]


def test_folders_of_other_tasks_and_too_few_positions(tmp_path: Path) -> None:
    other = make_pairs(tmp_path, [[[5, 6]]])
    with pytest.raises(DataError, match=r"was made for translation \(columns source, target\).*--task glue"):
        task_of(other)
    data = make_folder(tmp_path / "glue", make_tokenizer("bert"), {"train": pairs(3), "test": [("a", "b", -1)]})
    with pytest.raises(ConfigError, match="--max-source-positions 3 leaves no room for text beside 3 special"):
        task_of(data, max_source_positions=3)
    with pytest.raises(ConfigError, match="--task glue takes one data folder, not 2"):
        GlueTask(GlueConfig(), Corpora({"a": data, "b": data}), pad=1)
    model = make_encoder("bert", "classification", num_labels=2)
    with pytest.raises(DataError, match="split test has no labels to score against"):
        task_of(data).scorer(model, None, "test", CPU, None)
    assert task_of(data, eval_metrics=False).scorer(model, None, "test", CPU, None) is None
    task = GlueTask(GlueConfig(), Corpora.of(data), pad=1, max_positions=5)
    assert task.row_settings()["max_source_positions"] == 5
