"""cktk-generate --print-alignment: fields of lines and of n-best lists, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from cktk.hub import student
from cktk_cli.generate import main as generate
from tests.unit.generation.students import data_bin, save_student

LINES = ["a b c", "", "t s r q p", "b b a c"]
FLAGS = ["--beam", "3", "--max-len-b", "12", "--print-alignment"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_student(tmp_path_factory.mktemp("models") / "small")


def fields(folder: Path, layer: int | None = None) -> list[list[str]]:
    """For each line the n-best outputs, each with its pairs."""
    translator = student(folder, beam=3, nbest=3, max_len_b=12)
    translator.align(layer)
    return [
        [f"{one.text}\t{' '.join(f'{a}-{b}' for a, b in one.alignment or ())}" for one in nbest]
        for nbest in translator.translate_nbest(LINES)
    ]


def test_lines_and_splits(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected, second = fields(folder), fields(folder, 2)
    assert expected[1] == ["\t"] and expected != second
    (tmp_path / "in").write_text("".join(line + "\n" for line in LINES), encoding="utf-8")
    arguments = ["--path", str(folder), "--input", str(tmp_path / "in"), *FLAGS]
    assert generate(arguments) == 0
    assert capsys.readouterr().out.splitlines() == [nbest[0] for nbest in expected]
    assert generate([*arguments, "--nbest", "3", "--alignment-layer", "2"]) == 0
    lines = [line.split("\t", 2) for line in capsys.readouterr().out.splitlines()]
    numbered = [(number, one) for number, nbest in enumerate(second, start=1) for one in nbest]
    assert [(int(number), rest) for number, _, rest in lines] == numbered
    data_bin(tmp_path / "bin", folder, [(line, line[::-1]) for line in LINES])
    assert generate([str(tmp_path / "bin"), "--path", str(folder), *FLAGS]) == 0
    assert capsys.readouterr().out.splitlines() == [nbest[0] for nbest in expected]


def test_refusals(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (["--alignment-layer", "2"], "--alignment-layer is only looked at with --print-alignment; add it"),
        (["--print-alignment", "--alignment-layer", "9"], "--alignment-layer 9: the decoder has the layers 1 to 2;"),
        (["--print-alignment", "--dest-dir", str(tmp_path / "new"), str(tmp_path)], "--print-alignment and --dest-dir"),
    ):
        (tmp_path / "in").write_text("a\n", encoding="utf-8")
        given = [] if "--dest-dir" in arguments else ["--input", str(tmp_path / "in")]
        assert generate(["--path", str(folder), *given, *arguments]) != 0
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, error
