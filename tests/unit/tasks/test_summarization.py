"""Documents and summaries: batches, limits, prompts, and ROUGE in validation."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cktk.data.context_config import InputConfig
from cktk.data.mixtures.corpora import Corpora
from cktk.data.shards import DataFolder, write_manifest, write_shard
from cktk.distributed.world import World
from cktk.errors import ConfigError, DataError, RegistryError
from cktk.evaluation.rouge import score_summaries
from cktk.generation.configs import ModelConfig, SearchBatchConfig, SearchConfig
from cktk.hub import open_split, student
from cktk.protocols import IGNORED
from cktk.tasks.configs import SummarizationConfig
from cktk.tasks.decoding import split_generator
from cktk.tasks.summarization import SummarizationTask
from tests.unit.data.folders import content
from tests.unit.generation.students import data_bin, save_student

#: A folder whose languages are not known.
TEMPLATE = {"": {"prefix": [0], "suffix": [2]}}
DOCUMENTS = ["a b c d", "", "t s r q p", "k", "b b a"]


def folder(path: Path, rows: list[tuple[list[int], list[int]]], **changes: Any) -> DataFolder:
    columns = {name: [np.array(row[at], np.int64) for row in rows] for at, name in enumerate(("source", "target"))}
    entry = write_shard(path, "train-00000", columns, 100)
    facts = {"task": "summarization", "languages": {}, "templates": {"source": TEMPLATE, "target": TEMPLATE}}
    write_manifest(path, content({"train": [entry]}, **{**facts, **changes}))
    return DataFolder(path)


splits_of = partial(split_generator, SummarizationTask)


def task_of(data: DataFolder | Corpora, max_positions: int | None = None, **options: Any) -> SummarizationTask:
    return SummarizationTask(SummarizationConfig(**options), data, pad=1, decoder_start=2, max_positions=max_positions)


def test_batches_hold_documents_and_summaries_up_to_their_limits(tmp_path: Path) -> None:
    rows = [(list(range(4, 10)), [50, 51, 52, 53]), ([4], [50])]
    task = task_of(Corpora.of(folder(tmp_path, rows)), max_source_positions=5, max_target_positions=4)
    found = task.rows("train")
    batch = task.collate([found.pair(0), found.pair(1)], [0, 1])
    assert batch.inputs["input_ids"].tolist() == [[0, 4, 5, 6, 2], [0, 4, 2, 1, 1]]
    assert batch.labels.tolist() == [[0, 50, 51, 2], [0, 50, 2, IGNORED]]
    assert batch.inputs["decoder_input_ids"].tolist() == [[2, 0, 50, 51], [2, 0, 50, 2]]
    assert task.describe()[0].endswith("1 sources and 1 targets are cut to the maximum positions")


def test_defaults_are_1024_and_128_and_the_model_s_limit_holds(tmp_path: Path) -> None:
    data = folder(tmp_path, [([5] * 1500, [6] * 300)])
    for most, expected in ((None, [1024, 128]), (64, [64, 64]), (2000, [1024, 128])):
        assert task_of(data, most).rows("train").lengths(0, 1).tolist() == [expected]


def test_empty_documents_are_told(tmp_path: Path) -> None:
    task = task_of(folder(tmp_path, [([], [5]), ([6], [7]), ([], [8])]))
    assert "2 documents are empty" in task.describe()[1]


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    for name in ("one", "other", "bare"):
        (tmp_path / name).mkdir()
    one, other = (folder(tmp_path / name, [([5], [6])]) for name in ("one", "other"))
    with pytest.raises(ConfigError, match="--task summarization takes one data folder, not 2"):
        task_of(Corpora({"one": one, "other": other}))
    with pytest.raises(ConfigError, match="--max-target-positions 2 leaves no room"):
        task_of(one, max_target_positions=2)
    entry = write_shard(tmp_path / "bare", "train-00000", {"text": [np.array([5])]}, 100)
    write_manifest(tmp_path / "bare", content({"train": [entry]}, columns=["text"], languages={}))
    with pytest.raises(DataError, match=r"has no column source \(but text\)"):
        task_of(DataFolder(tmp_path / "bare"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_student(tmp_path_factory.mktemp("models") / "small")


@pytest.fixture(scope="module")
def data(model: Path, tmp_path_factory: pytest.TempPathFactory) -> DataFolder:
    """References share words with what the model says, so that figures are not zero."""
    says = student(model, device="cpu", beam=2, max_len_b=8).translate(DOCUMENTS)
    pairs = [(document, " ".join(text.split()[:3])) for document, text in zip(DOCUMENTS, says, strict=True)]
    return data_bin(tmp_path_factory.mktemp("data") / "bin", model, pairs)


@pytest.mark.parametrize(
    "options",
    [{"rouge_stemmer": False}, {"eval_min_len": 3, "rouge_lsum": "lines"}, {"eval_no_repeat_ngram_size": 1}],
)
def test_validation_scores_what_the_search_of_its_options_gives(
    model: Path, data: DataFolder, options: dict[str, Any]
) -> None:
    task = task_of(data, eval_rouge=True, eval_beam=2, eval_max_len_b=8, eval_rouge_documents=4, **options)
    opened = student(model, device="cpu")
    scorer = task.scorer(opened.model, opened.tokenizer, "test", World(0, 1, torch.device("cpu")), None)
    assert scorer is not None
    search = {
        "beam": 2,
        "max_len_b": 8,
        "min_len": options.get("eval_min_len", 0),
        "no_repeat_ngram_size": options.get("eval_no_repeat_ngram_size", 0),
    }
    ours = student(model, device="cpu", **search).translate(DOCUMENTS[:4])
    expected = score_summaries(
        ours,
        splits_of(opened, data).references("test")[:4],
        stemmer=options.get("rouge_stemmer", True),
        lsum=options.get("rouge_lsum", "sentences"),
    )
    found = scorer()
    assert found == {name: value for name, value in expected.record().items() if name != "rouge_signature"}
    assert found["rouge1"] > 0


def test_no_scores_unless_asked_for(data: DataFolder) -> None:
    assert task_of(data).scorer(None, None, "test", World(0, 1, torch.device("cpu")), None) is None


def test_a_prompt_stands_before_the_document(model: Path, data: DataFolder) -> None:
    prompted = splits_of(student(model, device="cpu", beam=2), data, inputs=InputConfig(source_prompt="s t "))
    plain = splits_of(student(model, device="cpu", beam=2), data)
    ids = plain.task.rows("test").source_ids(0).tolist()
    letters = dict(plain.translator.tokenizer.get_vocab())
    assert prompted.task.rows("test").source_ids(0).tolist() == [ids[0], letters["▁s"], letters["▁t"], *ids[1:]]
    with pytest.raises(ConfigError, match="--context-size: documents to summarise"):
        splits_of(plain.translator, data, inputs=InputConfig(context_size=1))
    with pytest.raises(ConfigError, match="^--target-lang de: .* was made with another --lang, or none; leave it out"):
        splits_of(plain.translator, data, target_lang="de")


def test_a_line_break_inside_of_a_summary_is_kept_for_lsum(model: Path, data: DataFolder) -> None:
    class Spells:
        def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
            return " one\ntwo\n"

    task = task_of(data, eval_rouge=True, eval_max_len_b=4, rouge_lsum="lines")
    opened = student(model, device="cpu")
    scorer = task.scorer(opened.model, opened.tokenizer, "test", World(0, 1, torch.device("cpu")), None)
    assert scorer is not None
    scorer._tokenizer = Spells()
    assert scorer._decode([[5]]) == ["one<n>two"]
    assert scorer._score(["two<n>one"], ["one<n>two"])["rougeLsum"] == 100
    model_config, search, batches = ModelConfig(device="cpu"), SearchConfig(), SearchBatchConfig()
    for name, expected in (("summarization", "one<n>two"), ("translation", "one two")):
        split = open_split(model, str(data.path), model_config, search, batches, task=name)
        split.translator.tokenizer = Spells()
        assert split.translator.decode([5]) == expected
        lines = student(model, task=name, device="cpu")
        lines.tokenizer = Spells()
        assert lines.decode([5]) == expected


def test_students_are_of_tasks_that_write_texts(model: Path) -> None:
    with pytest.raises(ConfigError, match="^task glue: its models write no texts; give translation or summarization$"):
        student(model, task="glue")
    with pytest.raises(RegistryError, match="unknown name 'summarisation'; did you mean summarization"):
        student(model, task="summarisation")
