"""cktk-export and cktk-generate --backend ctranslate2, from the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cktk_cli.export import main as export
from cktk_cli.generate import main as generate
from tests.unit.export.folders import LINES, student
from tests.unit.generation.students import data_bin

pytest.importorskip("ctranslate2")
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return student(tmp_path_factory.mktemp("export") / "student", "bart")


@pytest.fixture
def sample(tmp_path: Path) -> str:
    (tmp_path / "sample.txt").write_text("\n".join(LINES) + "\n", encoding="utf-8")
    return str(tmp_path / "sample.txt")


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    assert export([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out


def error(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    assert export([str(argument) for argument in arguments]) != 0
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("cktk-export: error: ")
    return lines[-1]


@pytest.mark.parametrize("format_", ["ctranslate2", "onnx"])
def test_what_was_written_is_compared(
    format_: str, folder: Path, sample: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / format_
    told = run(capsys, folder, "--format", format_, "--output", out, "--sample", sample, "--max-len-b", 20)
    assert "7 of 7 outputs are equal" in told and "100.00% of the tokens agree" in told
    assert (out / "tokenizer.json").is_file()
    assert {path.name for path in out.parent.iterdir()} == {format_}


def test_backend_writes_as_ours_does(folder: Path, sample: str, tmp_path: Path) -> None:
    out = tmp_path / "ct2"
    assert export([str(folder), "--format", "ctranslate2", "--output", str(out), "--max-len-b", "20"]) == 0
    common = ["--input", sample, "--beam", "4", "--max-len-b", "20", "--device", "cpu", "--early-stopping", "true"]
    texts = []
    for name, path, backend in (("a", folder, "cktk"), ("b", folder, "ctranslate2"), ("c", out, "ctranslate2")):
        file = tmp_path / name
        assert generate([*common, "--path", str(path), "--backend", backend, "--output", str(file)]) == 0
        texts.append(file.read_text(encoding="utf-8"))
    assert texts[0] == texts[1] == texts[2]
    assert texts[0].splitlines()[LINES.index("")] == ""


def test_a_data_folder_as_sample(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.unit.generation.students import save_student

    small = save_student(tmp_path / "s")
    data_bin(tmp_path / "data", small, [("a b c", "d"), ("", "e"), ("f g", "h")])
    told = run(
        capsys, small, "--format", "ctranslate2", "--output", tmp_path / "out", "--data-bin", tmp_path / "data",
        "--gen-subset", "test", "--beam", 1,
    )  # fmt: skip
    assert "2 of 2 outputs are equal" in told


def test_int8_folder_generates(folder: Path, sample: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "int8"
    told = run(
        capsys, folder, "--format", "int8", "--output", out, "--sample", sample, "--min-agreement", 0, "--max-len-b", 9
    )
    assert "of the tokens agree, BLEU" in told
    assert generate(["--path", str(out), "--input", sample, "--output", str(tmp_path / "text"), "--device", "cpu"]) == 0
    assert len((tmp_path / "text").read_text(encoding="utf-8").splitlines()) == len(LINES)


@pytest.mark.parametrize("format_", ["ctranslate2", "onnx", "int8"])
def test_what_does_not_agree_is_not_kept(
    format_: str, folder: Path, sample: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Weights that change on the way to the file."""
    import cktk_cli.export as command

    write = command._write

    def damaged(config: object, model: torch.nn.Module, target: Path) -> None:
        with torch.no_grad():
            model.get_decoder().layers[0].fc2.weight.neg_()  # type: ignore[operator, union-attr]
        write(config, model, target)  # type: ignore[arg-type]

    monkeypatch.setattr(command, "_write", damaged)
    told = error(
        capsys, folder, "--format", format_, "--output", tmp_path / "out", "--sample", sample, "--max-len-b", 20,
        "--min-agreement", 0.999,
    )  # fmt: skip
    if format_ != "onnx":
        assert "does not do what the student does, nothing was kept" in told and "--min-agreement" in told
    assert [path.name for path in tmp_path.iterdir()] == ["sample.txt"]


def test_bad_input(folder: Path, sample: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    basic = [folder, "--format", "int8", "--output", out]
    assert "exists already" in error(capsys, folder, "--format", "int8", "--output", tmp_path)
    assert "--quantization belongs to" in error(capsys, *basic, "--quantization", "int8")
    assert "no such file" in error(capsys, *basic, "--sample", tmp_path / "none")
    (tmp_path / "blank").write_text("\n \n", encoding="utf-8")
    assert "no line that is not blank" in error(capsys, *basic, "--sample", tmp_path / "blank")
    assert "exclude each other" in error(capsys, *basic, "--sample", sample, "--data-bin", tmp_path)
    assert "no such folder" in error(capsys, tmp_path / "none", "--format", "onnx", "--output", out)
    assert "--format" in error(capsys, folder, "--format", "tflite", "--output", out)
    assert not out.exists()
