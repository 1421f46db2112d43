"""cktk-plan on a tiny teacher: figures that add up, commands that run, bad input as one clear line."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import transformers
from transformers import AutoTokenizer, BertConfig

from cktk.architectures.loading import load_model
from cktk_cli.plan import main
from cktk_cli.preprocess import main as preprocess
from cktk_cli.train import main as train

FAST = ["--length", "6", "--batch-size", "2", "--beam", "2"]


def planned(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    capsys.readouterr()
    assert main([*map(str, arguments), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def error_of(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    assert main(list(map(str, arguments))) != 0
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    return lines[0].removeprefix("cktk-plan: error: ")


def test_budgets(teacher: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = planned(capsys, "--teacher", teacher, "--max-params", "25K", "--measure", "0")
    whole = load_model(teacher).num_parameters()
    assert plan["teacher"]["parameters"] == whole
    for student in plan["students"]:
        assert student["parameters"] <= 25_000
        assert student["parameters"] == student["embedding_parameters"] + student["body_parameters"]
        assert student["compression"] == whole / student["parameters"]
        assert student["tokens_per_second"] is None
    assert [student["name"].partition("x")[0] for student in plan["students"]] == ["4", "2"]
    narrower = planned(capsys, "--teacher", teacher, "--compression", 3, "--max-params", "1M", "--measure", "0")
    assert max(student["parameters"] for student in narrower["students"]) <= whole / 3


def test_the_command_is_ready(
    teacher: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = planned(capsys, "--teacher", teacher, "--compression", 2, "--measure", "0", "--data", data)
    student = plan["students"][0]
    monkeypatch.chdir(tmp_path)
    program, *flags = shlex.split(student["command"])
    assert program == "cktk-train"
    assert train([*flags, "--max-update", "1", "--disable-validation", "--no-tensorboard"]) == 0
    trained = load_model(tmp_path / "runs" / student["name"])
    assert trained.num_parameters() == student["parameters"]


@pytest.mark.parametrize("head", ["BertForMaskedLM", "BertModel"])
def test_the_command_for_an_encoder_is_ready(
    head: str,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    texts = tmp_path / "texts"
    files = [f"--{split}-file={data.parent / f'{split}.tsv'}" for split in ("train", "valid")]
    for split in ("train", "valid"):
        lines = (data.parent / f"{split}.en").read_text()
        (data.parent / f"{split}.tsv").write_text("text\n" + lines)
    tokenizer = AutoTokenizer.from_pretrained(data / "tokenizer")
    assert preprocess(["--task=pretraining", *files, f"--tokenizer={data / 'tokenizer'}", f"--dest-dir={texts}"]) == 0
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        pad_token_id=tokenizer.pad_token_id, architectures=[head],
    )  # fmt: skip
    getattr(transformers, head)(config).save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    plan = planned(capsys, "--teacher", tmp_path / "bert", "--compression", 1.5, "--measure", "0", "--data", texts)
    monkeypatch.chdir(tmp_path)
    _, *flags = shlex.split(plan["students"][0]["command"])
    assert train([*flags, "--max-update", "1", "--no-tensorboard"]) == 0


def test_measured(teacher: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = planned(capsys, "--teacher", teacher, "--compression", 2, "--measure", "1", *FAST)
    first, second = plan["students"]
    assert first["tokens_per_second"] > 0 and first["latency_ms"] > 0
    assert second["tokens_per_second"] is None
    loose = planned(capsys, "--teacher", teacher, "--max-latency-ms", "1e6", "--measure", "1", *FAST)
    assert len(loose["students"]) == 1
    line = error_of(capsys, "--teacher", teacher, "--max-latency-ms", "1e-3", *FAST)
    assert line == "--max-latency-ms 0.001: even the fastest student takes longer here; allow more"


def test_table(teacher: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--teacher", str(teacher), "--compression", "2", "--measure", "1", *FAST]) == 0
    text = capsys.readouterr().out
    assert "tokens/s" in text and "2+2" in text and "# 4x" in text
    assert text.count("\ncktk-train data-bin --teacher") == 2
    assert max(map(len, text.partition("\n# ")[0].splitlines())) <= 140


def test_an_encoder_is_measured_by_what_it_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = BertConfig(
        vocab_size=90, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, architectures=["BertForMaskedLM"]
    )
    config.save_pretrained(tmp_path)
    first = planned(capsys, "--teacher", tmp_path, "--compression", 2, "--measure", "1", *FAST)["students"][0]
    assert first["encoder_layers"] == 3 and "decoder_layers" not in first
    assert "--decoder-layers" not in first["command"]
    assert "--task pretraining --objective unmasked" in first["command"]
    assert first["tokens_per_second"] > 0 and first["latency_ms"] > 0


class TestErrors:
    def test_flags(self, teacher: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert "give a budget: --max-params 80M" in error_of(capsys, "--teacher", teacher)
        common = ["--teacher", teacher, "--max-params"]
        assert "--max-params lots: not a number such as 80M" in error_of(capsys, *common, "lots")
        assert "--compression: 1 is out of range" in error_of(capsys, "--teacher", teacher, "--compression", 1)
        line = error_of(capsys, "--teacher", teacher, "--max-latency-ms", 5, "--measure", 0)
        assert "--max-latency-ms has to run students" in line
        line = error_of(capsys, *common, "20K", "--length", 63)
        assert line == "--length 63: the teacher has 64 positions; choose 62 or less"

    def test_nothing_fits(self, teacher: Path, capsys: pytest.CaptureFixture[str]) -> None:
        line = error_of(capsys, "--teacher", teacher, "--max-params", "1K")
        assert line.startswith("no student has at most 1,000 parameters: the smallest, 2x")
        assert "make the vocabulary smaller with cktk-trim-vocab" in line

    def test_no_model(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        line = error_of(capsys, "--teacher", tmp_path, "--compression", 2)
        assert line.startswith(f"{tmp_path}: no config.json in this folder")
