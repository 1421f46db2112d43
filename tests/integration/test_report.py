"""Training on a part of the rows, and reports of such runs, by the commands themselves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM

from cktk_cli.cache_teacher import main as cache_teacher
from cktk_cli.evaluate import main as evaluate
from cktk_cli.report import main as report
from tests.integration import toy

KL = ["--criterion", "kl_kd"]
STAGED = ["--criterion", "internal_kd", "--procedure", "stacked", "--stage-epochs", "1"]


@pytest.fixture(scope="module")
def runs(data: Path, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Standard and internal distillation on 20 and 40 rows."""
    folder = tmp_path_factory.mktemp("runs")
    for name, criterion in (("kl", KL), ("sid", STAGED)):
        for rows in ("20", "40"):
            run = folder / name / f"subset-{rows}" / "seed-1"
            more = [*toy.SHAPE, "--teacher", str(teacher), *criterion, "--train-subset", rows, "--max-epoch", "4"]
            toy.run_training(data, run, *more)
    return folder


def test_a_part_of_the_rows_is_continued_exactly(data: Path, teacher: Path, tmp_path: Path) -> None:
    more = [*toy.SHAPE, "--teacher", str(teacher), *KL, "--train-subset", "20", "--dropout", "0.1"]
    whole = toy.run_training(data, tmp_path / "whole", *more, "--max-update", "9")
    for limit in ("4", "9"):
        part = toy.run_training(data, tmp_path / "part", *more, "--max-update", limit)
    found, expected = (toy.tensors(run / "checkpoint_last") for run in (part, whole))
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert toy.log(whole)[-1]["epoch"] > 1  # 160 rows would not have been gone through once


def test_a_report_of_a_series(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = [str(path) for path in sorted(runs.glob("*/*/*"))]
    attention = ["--attention-text", "the library of this package", "--attention-pair", "le jeu", "--layer", "1"]
    capsys.readouterr()
    assert report([*found, "--json", "--output", str(tmp_path), *attention, "--attention-kind", "cross"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [(run["name"], run["training_rows"]) for run in said["runs"]] == [
        ("kl", 20),
        ("kl", 40),
        ("sid", 20),
        ("sid", 40),
    ]
    names = ["encoder layer 1", "encoder layer 2", "decoder layer 1", "head"]
    begins = [(stage["name"], stage["begins"]) for stage in said["runs"][-1]["stages"]]
    assert begins == [(name, float(epoch)) for epoch, name in enumerate(names)]
    assert said["metric"] == "loss" and said["runs"][0]["shape"] == "3x16"
    sizes = {run["parameters"] for run in said["runs"]}
    assert sizes == {
        AutoModelForSeq2SeqLM.from_pretrained(runs / found[0] / "checkpoint_best/student").num_parameters()
    }
    assert [Path(path).name for path in said["figures"]] == ["training-rows.svg", "convergence.svg", "attention.svg"]
    assert {"layer", "kl", "kl_of_layers", "name"} == set(said["attention"]["students"][0])
    words = (tmp_path / "attention.svg").read_text()
    assert "Cross-attention, mean over heads" in words and "KL(teacher" in words
    assert "encoder layer 1" in (tmp_path / "convergence.svg").read_text()


def test_scores_of_the_test_split(runs: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = [str(path) for path in sorted(runs.glob("kl/*/*"))]
    capsys.readouterr()
    assert evaluate([str(data), "--path", ",".join(found), "--beam", "1", "--json"]) == 0
    (tmp_path / "test.json").write_text(scores := capsys.readouterr().out)
    assert report([*found, str(tmp_path / "test.json"), "--metric", "chrf", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [run["value"] for run in said["runs"]] == [row["chrf"] for row in json.loads(scores)]
    assert report([*found, str(tmp_path / "test.json")]) != 0
    assert "test.json: " in (error := capsys.readouterr().err) and "has no such figure; known: bleu, chrf" in error


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ["--train-subset", "161"],
            "--train-subset 161: the training split has 160 rows; give no more, or leave it out",
        ),
        (["--train-subset", "0"], "--train-subset: 0 is out of range: must be at least 1"),
        (["--train-subset", "10,20"], "--train-subset: '10,20' is not a number"),
        (["--train-subset", "9", "--bidirectional"], "--train-subset takes one corpus in one direction, not 2"),
    ],
)
def test_subsets_that_cannot_be(
    more: list[str], message: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in toy.error_of(capsys, *toy.flags(data, tmp_path / "run", *toy.SHAPE, "--max-epoch", "1", *more))
    assert not (tmp_path / "run").exists()


def test_a_cache_is_of_all_rows(data: Path, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [str(data), "--teacher", str(teacher), "--cache-dir", str(tmp_path / "cache")]
    assert cache_teacher([*given, "--train-subset", "9"]) != 0
    assert "--train-subset: a cache is made of whole splits" in capsys.readouterr().err
    assert cache_teacher(given) == 0
    run = toy.run_training(
        data, tmp_path / "run", *toy.SHAPE, *KL, "--teacher-cache", str(tmp_path / "cache"), "--train-subset", "20",
        "--max-epoch", "1",
    )  # fmt: skip
    assert toy.log(run, "valid")
