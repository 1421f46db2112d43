"""Summarization and sequence-level distillation from the command line's arguments to their output."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from cktk.data.shards import DataFolder
from cktk.evaluation.rouge import score_summaries
from cktk.generation.beam import BeamSearch
from cktk.hub import student
from cktk.utils.files import read_json
from cktk_cli.evaluate import main as evaluate
from cktk_cli.generate import main as generate
from cktk_cli.preprocess import main as preprocess
from tests.integration import toy

SEARCH = ["--beam", "2", "--max-len-b", "9", "--batch-size", "8", "--device", "cpu"]


def write_documents(folder: Path) -> None:
    """Tables of documents (two sentences) and their summaries (the first words of each); one document is empty."""
    draw = random.Random(3)
    for split, size in (("train", 60), ("valid", 12), ("test", 10)):
        rows = []
        for _ in range(size):
            parts = [draw.choices(list(toy.WORDS), k=draw.randint(3, 8)) for _ in range(2)]
            document = " ".join(" ".join(part).capitalize() + "." for part in parts)
            rows.append(f"{document}\t{' '.join(part[0] for part in parts).capitalize()}.\n")
        if split == "test":
            rows[4] = "\tNothing.\n"
        (folder / f"{split}.tsv").write_text("document\tsummary\n" + "".join(rows), encoding="utf-8")


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder of documents, in shards of 25 rows."""
    folder = tmp_path_factory.mktemp("documents")
    write_documents(folder)
    files = [f"--{split}-file={folder / split}.tsv" for split in ("train", "valid", "test")]
    tokenizer = ["--train-tokenizer", "unigram", "--vocab-size", "340", "--shard-size", "25"]
    assert preprocess(["--task", "summarization", *files, *tokenizer, "--dest-dir", str(folder / "bin")]) == 0
    return folder / "bin"


@pytest.fixture(scope="module")
def summariser(documents: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.make_teacher(tmp_path_factory.mktemp("models") / "summariser", documents)


def error_of(capsys: pytest.CaptureFixture[str], code: int) -> str:
    assert code != 0
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1, captured.err
    return captured.err


def test_training_keeps_the_checkpoint_of_the_best_rouge(documents: Path, summariser: Path, tmp_path: Path) -> None:
    search = ["--eval-beam", "2", "--eval-max-len-b", "8", "--eval-no-repeat-ngram-size", "2", "--eval-min-len", "2"]
    flags = ["--task", "summarization", "--teacher", str(summariser), "--criterion", "cka_kd", *toy.SHAPE]
    run = toy.run_training(
        documents, tmp_path / "run", *flags, "--max-update", "4", "--eval-rouge", *search,
        "--best-checkpoint-metric", "rouge1", "--validate-interval-updates", "2",
    )  # fmt: skip
    records = toy.log(run, "valid")
    assert len(records) > 1 and {"rouge1", "rouge2", "rougeL", "rougeLsum", "cka", "kl"} <= records[-1].keys()
    best = read_json(run / "checkpoint_best/trainer.json")["update"]
    values = {record["update"]: record["rouge1"] for record in records}
    assert values[best] == max(values.values())


def test_the_task_and_its_scores_follow_from_the_data(
    documents: Path, summariser: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, gold = tmp_path / "out", tmp_path / "gold"
    call = [str(documents), "--path", str(summariser), *SEARCH, "--no-repeat-ngram-size", "2"]
    assert generate([*call, "--scoring", "rouge", "--output", str(out)]) == 0
    printed = capsys.readouterr().out
    rows = (documents.parent / "test.tsv").read_text(encoding="utf-8").splitlines()[1:]
    sources, targets = zip(*(row.split("\t") for row in rows), strict=True)
    model = student(summariser, beam=2, max_len_b=9, no_repeat_ngram_size=2, device="cpu")
    ours = model.translate(sources)
    assert out.read_text(encoding="utf-8").splitlines() == ours and ours[4] == ""
    expected = score_summaries(ours, targets)
    assert printed == f"{expected}\n" and "stemmer:yes|lsum:sentences" in printed
    gold.write_text("".join(f"{target}\n" for target in targets), encoding="utf-8")
    files = ["--task", "summarization", "--hypothesis", str(out), "--reference", str(gold)]
    assert evaluate([*files, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [{"name": str(out), **expected.record()}]
    assert evaluate(files) == 0
    table = capsys.readouterr().out
    assert "ROUGE-Lsum" in table and f"{expected.rouge1:.1f}" in table and "BLEU" not in table
    assert evaluate([*call, "--json", "--no-rouge-stemmer", "--rouge-lsum", "lines"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    other = score_summaries(ours, targets, stemmer=False, lsum="lines")
    assert {name: row[name] for name in other.record()} == other.record() and row["sentences"] == 10
    assert evaluate([*call, "--task", "translation"]) == 0
    assert "chrF" in capsys.readouterr().out


def test_bad_calls_are_one_line(
    documents: Path, summariser: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    two, three, none = (tmp_path / name for name in ("two", "three", "none"))
    for path, lines in ((two, 2), (three, 3), (none, 0)):
        path.write_text("a b c\n" * lines)
    call = [str(documents), "--path", str(summariser)]
    new = [*call, "--dest-dir", str(tmp_path / "new")]
    files = ["--hypothesis", str(two), "--reference"]
    for command, arguments, words in (
        (generate, [*call, "--scoring", "sacrebleu"], "--scoring sacrebleu does not fit --task summarization"),
        (generate, ["--path", "x", "--scoring", "rouge"], "--scoring rouge does not fit --task translation"),
        (generate, [*call, "--context-size", "2"], "--context-size"),
        (generate, [*new, "--nbest", "2"], "--nbest and --dest-dir exclude each other"),
        (generate, [*new, "--output", "x"], "--output and --dest-dir exclude each other"),
        (generate, ["--path", "x", "--dest-dir", "y"], "--dest-dir needs a data folder"),
        (generate, [*new, "--task", "glue"], "--dest-dir belongs to --task summarization or translation"),
        (generate, [*new, "--gen-subset", "trian"], "did you mean train?"),
        (evaluate, [*files, str(three)], f"--hypothesis {two} has 2 lines, but --reference {three} has 3"),
        (evaluate, ["--hypothesis", str(none), "--reference", str(none)], "are empty"),
        (evaluate, [*files, str(two), "--task", "summarisation"], "did you mean summarization?"),
        (evaluate, [*files, str(two), "--rouge-lsum", "lines"], "--rouge-lsum belongs to --task summarization"),
    ):
        assert words in error_of(capsys, command(arguments))
    assert not (tmp_path / "new").exists()


def targets_of(folder: Path) -> list[list[int]]:
    split = DataFolder(folder).split("train")
    return [split[row]["target"].tolist() for row in range(len(split))]


def test_a_teacher_s_summaries_become_the_targets_of_cka_kd(
    documents: Path,
    summariser: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    call = [str(documents), "--path", str(summariser), "--gen-subset", "train", *SEARCH, "--buffer-size", "10"]
    dest = tmp_path / "whole"
    assert generate([*call, "--dest-dir", str(dest)]) == 0
    assert "60 rows, 0 empty outputs" in capsys.readouterr().err

    # The ids are those of the search, without special tokens: nothing is decoded and tokenised again.
    model = student(summariser, beam=2, max_len_b=9, device="cpu")
    texts = [row.split("\t")[0] for row in (documents.parent / "train.tsv").read_text("utf-8").splitlines()[1:]]
    special = set(model.tokenizer.all_special_ids) - {model.tokenizer.unk_token_id}
    expected = [[t for t in found[0].tokens if t not in special] for found in model.translate_nbest(texts)]
    assert targets_of(dest) == expected
    assert len({tuple(target) for target in expected}) > 20
    old, new = DataFolder(documents), DataFolder(dest)
    new.verify()
    assert new.split("train").shard_rows == old.split("train").shard_rows == [25, 25, 10]
    assert new.task == "summarization" and new.splits == old.splits
    valid = [folder.split("valid") for folder in (old, new)]
    assert all(np.array_equal(valid[0][row]["target"], valid[1][row]["target"]) for row in range(12))
    made = read_json(dest / "manifest.json")["rewritten"]
    assert made["teacher"] == str(summariser) and made["search"]["beam"] == 2 and len(made["fingerprint"]) == 64

    # Killed in the middle, the same command goes on, and the folder cannot be used before.
    part, generated, calls = tmp_path / "part", BeamSearch.generate, []

    def stopped(self: BeamSearch, *arguments: object, **options: object) -> object:
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return generated(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(BeamSearch, "generate", stopped)
        assert generate([*call, "--dest-dir", str(part)]) == 130
    capsys.readouterr()
    assert "run the same cktk-generate --dest-dir again" in toy.error_of(
        capsys, *toy.flags(part, tmp_path / "x", "--max-update", "1")
    )
    assert "made with search beam 2, not 3" in error_of(
        capsys, generate([*call, "--beam", "3", "--dest-dir", str(part)])
    )
    assert generate([*call, "--dest-dir", str(part)]) == 0
    assert "25 sentences in" in capsys.readouterr().err
    assert targets_of(part) == expected
    assert generate([*call, "--dest-dir", str(part)]) == 0
    assert "is finished already" in capsys.readouterr().err

    # KL and the hidden loss are there as on any other data.
    flags = ["--task", "summarization", "--teacher", str(summariser), "--criterion", "cka_kd", *toy.SHAPE]
    run = toy.run_training(part, tmp_path / "run", *flags, "--max-update", "3", "--log-interval", "1")
    records = toy.log(run)
    assert all(np.isfinite(record[name]) for record in records for name in ("ce", "kl", "cka"))
    gold = toy.run_training(documents, tmp_path / "gold", *flags, "--max-update", "3", "--log-interval", "1")
    assert records[0]["ce"] != toy.log(gold)[0]["ce"]
