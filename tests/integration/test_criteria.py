"""Every criterion and preset through cktk-train, for a few updates on the toy corpus."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForSeq2SeqLM

from cktk.registry import CRITERIA
from cktk_cli.train import main as train
from tests.integration import toy

EQUAL_WIDTHS = ["--encoder-layers", "2", "--decoder-layers", "1", "--init", "copy"]

#: Criterion, options, and what is logged for them.
RUNS: list[tuple[str, list[str], list[str]]] = [
    ("cross_entropy", ["--label-smoothing", "0.1"], ["nll"]),
    ("kl_kd", ["--divergence", "js", "--temperature", "2"], ["js"]),
    ("kl_kd", ["--divergence", "tv", "--teacher-top-k", "8"], ["tv"]),
    ("kl_kd", ["--divergence", "skew_kl", "--skew", "0.2", "--head-loss", "dense"], ["skew_kl"]),
    ("cka_kd", ["--teacher-states", "host", "--teacher-states-dtype", "bfloat16"], ["cka", "cka/encoder 0<-0"]),
    ("cka_kd", ["--cka-scope", "summed", "--cka-form", "squared", "--no-match-embeddings"], ["cka/decoder 1<-2"]),
    ("cka_kd", ["--cka-scope", "micro", "--cka-eps", "1e-8", "--cka-dtype", "float64"], ["cka"]),
    ("cka_kd", ["--cka-scope", "running", "--cka-momentum", "0.5"], ["cka"]),
    ("cka_kd", ["--cka-form", "debiased", "--layer-map", "encoder=1:2;decoder=first:1"], ["cka/encoder 1<-2"]),
    ("cka_kd", ["--attention-match", "values,scores"], ["cka", "attention/values/cross", "attention/scores/encoder"]),
    ("procrustes_kd", ["--teacher-states", "recompute"], ["procrustes"]),
    ("procrustes_kd", ["--procrustes-scope", "micro"], ["procrustes"]),
    ("gram_kd", ["--layer-map", "last:1"], ["gram/encoder 2<-2"]),
    ("linear_kd", ["--projector", "shared"], ["linear/decoder"]),
    ("cosine_kd", [*EQUAL_WIDTHS], ["cosine/encoder"]),
    ("attention_kd", [], ["attention/values/encoder", "attention/values/decoder", "attention/values/cross"]),
    ("internal_kd", [], ["cls_cka/encoder 1<-1", "attention/probabilities/cross"]),
    ("internal_kd", [*EQUAL_WIDTHS], ["cls_cosine/decoder 1<-2", "attention/probabilities/decoder"]),
    (
        "attention_kd",
        ["--attention-match", "probabilities,queries,keys", "--relation-heads", "8", "--layer-map", "last:1"],
        ["attention/probabilities/decoder", "queries/encoder attention 2<-2"],
    ),
]


def test_no_criterion_is_forgotten() -> None:
    assert {criterion for criterion, _, _ in RUNS} == set(CRITERIA.names())


@pytest.mark.parametrize(
    ("criterion", "options", "logged"), RUNS, ids=[" ".join([name, *options]) for name, options, _ in RUNS]
)
def test_three_updates(
    criterion: str, options: list[str], logged: list[str], data: Path, teacher: Path, tmp_path: Path
) -> None:
    flags = ["--criterion", criterion, *options, "--max-update", "3", "--update-freq", "2", "--log-interval", "1"]
    if criterion != "cross_entropy":
        flags += ["--teacher", str(teacher)]
    if not {*EQUAL_WIDTHS} <= {*options}:
        flags += toy.SHAPE
    run = toy.run_training(data, tmp_path / "run", *flags)
    records = toy.log(run)
    assert len(records) == 3
    for record in (*records, toy.log(run, "valid")[-1]):
        for name in ("loss", "ce", *logged):
            assert math.isfinite(record[name]), name
        # What is minimised is the sum of all that is logged, every weight being 1: head losses and each pair's.
        head = [value for name, value in record.items() if name in ("ce", "kl", "js", "tv", "skew_kl")]
        pairs = [value for name, value in record.items() if "<-" in name]
        assert bool(pairs) == (criterion not in ("cross_entropy", "kl_kd"))
        assert record["loss"] == pytest.approx(sum(head) + sum(pairs), rel=1e-5)


@pytest.mark.parametrize(
    ("preset", "more", "expected"),
    [
        ("paper", [], {"criterion": "cka_kd", "cka_scope": "summed", "match_embeddings": False}),
        ("paper", ["--criterion", "linear_kd"], {"criterion": "linear_kd", "projector": "per_layer"}),
        ("released-scripts", [], {"cka_scope": "micro", "cka_dtype": "float64", "divergence": "forward_kl"}),
    ],
)
def test_a_preset_runs_and_runs_again_from_its_config(
    preset: str, more: list[str], expected: dict[str, object], data: Path, teacher: Path, tmp_path: Path
) -> None:
    flags = ["--teacher", str(teacher), "--preset", preset, *more, *toy.SHAPE, "--max-update", "2"]
    run = toy.run_training(data, tmp_path / "run", *flags, "--update-freq", "2", "--log-interval", "1")
    written = yaml.safe_load((run / "config.yaml").read_text())
    assert {name: written[name] for name in ("preset", *expected)} == {"preset": preset, **expected}
    again = ["--config", str(run / "config.yaml"), "--save-dir", str(tmp_path / "again")]
    assert train(again) == 0
    assert (tmp_path / "again" / "log.jsonl").read_bytes() == (run / "log.jsonl").read_bytes()


def test_the_layer_map_is_shown(data: Path, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--teacher", str(teacher), "--criterion", "cka_kd", *toy.SHAPE, "--max-update", "1", "--dry-run"]
    for layer_map, embeddings, rows in (
        ("uniform", True, ["encoder student emb 1 2", "teacher emb 1 2", "decoder student emb 1", "teacher emb 2"]),
        ("encoder=2:1;decoder=1:1,1:2", False, ["encoder student 2", "teacher 1", "student 1 1", "teacher 1 2"]),
    ):
        chosen = ["--layer-map", layer_map, "--match-embeddings" if embeddings else "--no-match-embeddings"]
        capsys.readouterr()
        assert train(toy.flags(data, tmp_path / "run", *flags, *chosen)) == 0
        lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
        start = lines.index("layer map (student state <- teacher state):")
        assert all(line.endswith(row) for line, row in zip(lines[start + 1 :], rows, strict=False))
        assert lines[start + 1 + len(rows)] == ""


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--criterion", "cka_kd", "--layer-map", "skip:3"], "--layer-map 'skip:3': encoder: "),
        (["--criterion", "cka_kd", "--layer-map", "1:9"], "there is no teacher layer 9; the teacher has layers 1 to 2"),
        (["--criterion", "cka_kd", "--layer-map", "unifrom"], "did you mean uniform"),
        (["--criterion", "attention_kd", "--attention-match", "vlaues"], "did you mean values"),
        (["--criterion", "attention_kd", "--attention-match", ""], "--attention-match: needs at least one value"),
        (["--criterion", "attention_kd", "--relation-heads", "5"], "--relation-heads 5 does not divide"),
        (
            ["--criterion", "kl_kd", "--teacher-top-k", "100000"],
            "100000 most probable tokens of a vocabulary of 340: give a smaller --top-k (--teacher-top-k in training)",
        ),
        (["--preset", "paper", "--cka-form", "debiased"], "--cka-form debiased has no --cka-scope summed"),
        (["--preset", "papers"], "--preset: unknown name 'papers'; did you mean paper"),
        (["--criterion", "cka_kd", "--cka-form", "root"], "--cka-form: unknown name 'root'"),
    ],
)
def test_what_is_impossible_is_told_in_one_line(
    options: list[str], words: str, data: Path, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--teacher", str(teacher), *toy.SHAPE, "--max-update", "1", *options]
    assert words in toy.error_of(capsys, *toy.flags(data, tmp_path / "run", *flags))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("scope", ["update", "micro"])
def test_a_broken_teacher_is_told_with_term_pair_and_rows(
    scope: str, data: Path, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = AutoModelForSeq2SeqLM.from_pretrained(teacher)
    with torch.no_grad():
        model.get_encoder().layers[1].final_layer_norm.bias[0] = float("nan")
    broken = tmp_path / "broken"
    model.save_pretrained(broken)
    for path in teacher.glob("token*"):
        (broken / path.name).write_bytes(path.read_bytes())
    flags = ["--teacher", str(broken), "--criterion", "cka_kd", "--cka-scope", scope, *toy.SHAPE, "--max-update", "1"]
    flags += ["--disable-validation", "--update-freq", "2"]
    error = toy.error_of(capsys, *toy.flags(data, tmp_path / "run", *flags))
    assert "update 1: " in error and "not finite (micro-batch of rows " in error
    assert "cka/encoder 2<-2" in error and "cka/encoder 1<-1" not in error
