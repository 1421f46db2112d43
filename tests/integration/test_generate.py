"""cktk-generate and cktk-evaluate from the command line's arguments to their output."""

from __future__ import annotations

import io
import json
import sys
from collections import Counter
from pathlib import Path

import pytest

from cktk.config.command import Command
from cktk.generation.configs import GenerateConfig
from cktk.hub import student
from cktk_cli.evaluate import main as evaluate
from cktk_cli.generate import main as generate
from cktk_cli.outputs import SplitModel
from cktk_cli.task import MODEL_SECTIONS, TEXT_SECTIONS, task_component
from tests.unit.generation.students import data_bin, save_student

LINES = ["a b c", "", "t s r q p", "k", "b b a c"]
FLAGS = ["--beam", "3", "--max-len-b", "12"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_student(tmp_path_factory.mktemp("models") / "small")


@pytest.fixture(scope="module")
def expected(folder: Path) -> list[str]:
    found = student(folder, beam=3, max_len_b=12).translate(LINES)
    assert len(set(found)) > 2
    return found


@pytest.fixture(scope="module")
def binarised(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "bin"
    data_bin(path, folder, [(line, line[::-1]) for line in LINES])
    return path


def write(path: Path, lines: list[str]) -> str:
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return str(path)


def error_of(capsys: pytest.CaptureFixture[str], code: int) -> str:
    assert code != 0
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1, captured.err
    return captured.err


def test_file_to_stdout(folder: Path, expected: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "in", LINES)
    for buffer in ("1", "2", "4096"):
        assert generate(["--path", str(folder), "--input", source, "--buffer-size", buffer, *FLAGS]) == 0
        captured = capsys.readouterr()
        assert captured.out.split("\n") == [*expected, ""]
        assert "5 sentences in" in captured.err and "1 blank sources" in captured.err


def test_stdin_to_file(folder: Path, expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\n".join(LINES).encode())))
    assert generate(["--path", str(folder), "--output", str(tmp_path / "out"), *FLAGS]) == 0
    assert (tmp_path / "out").read_text(encoding="utf-8").split("\n") == [*expected, ""]


def live(monkeypatch: pytest.MonkeyPatch, raw: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw)))


def test_a_stream_is_answered_up_to_its_error(
    folder: Path, expected: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    live(monkeypatch, "\n".join(LINES[:3]).encode() + b"\nc \xff d\nk\n")
    assert generate(["--path", str(folder), *FLAGS]) == 1
    captured = capsys.readouterr()
    assert captured.out.split("\n") == [*expected[:3], ""]
    assert captured.err.count("\n") == 1 and "stdin:4: not valid UTF-8 (byte 0xff at column 3)" in captured.err


def test_context_reaches_over_windows(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = ["a b", "c", "d a", "", "b b", "c d", "a"]
    flags = ["--context-size", "2", "--context-separator", "▁t"]
    found = []
    for more in (["--buffer-size", "1"], ["--buffer-size", "3"], [], ["--interactive"]):
        live(monkeypatch, "\n".join(lines).encode())
        assert generate(["--path", str(folder), *FLAGS, *flags, *more]) == 0
        found.append(capsys.readouterr().out)
    assert len(set(found)) == 1
    live(monkeypatch, "\n".join(lines).encode())
    assert generate(["--path", str(folder), *FLAGS]) == 0
    assert capsys.readouterr().out != found[0]


def test_interactive(
    folder: Path, expected: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    live(monkeypatch, "\n".join(LINES).encode())
    assert generate(["--path", str(folder), "--interactive", *FLAGS]) == 0
    captured = capsys.readouterr()
    assert captured.out.split("\n") == [*expected, ""]
    assert "5 sentences in" in captured.err and "latency of a sentence: median" in captured.err


def test_workers_write_the_same(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Lines in several windows, with prefixes, n-best lists and a score."""
    many = write(tmp_path / "in", [*LINES, "a b c d e f g h", *LINES[::-1]])
    begin = write(tmp_path / "begin", ["", "", "h i", "", "j", "h", *[""] * 5])
    call = ["--path", str(folder), "--input", many, "--buffer-size", "4", "--batch-size", "2", *FLAGS]
    call += ["--prefix", begin, "--nbest", "2", "--max-source-positions", "8"]
    call += ["--scoring", "sacrebleu", "--reference", many]
    found = []
    for workers in ("1", "2"):
        assert generate([*call, "--workers", workers, "--output", str(tmp_path / workers)]) == 0
        captured = capsys.readouterr()
        warnings = [line for line in captured.err.splitlines() if line.startswith("warning:")]
        found.append(((tmp_path / workers).read_bytes(), captured.out, warnings))
    assert found[0] == found[1]
    assert found[0][1].startswith("BLEU ")
    assert found[0][2] == ["warning: 1 sources were over-long and cut", "warning: 2 blank sources gave blank outputs"]


def test_parts_of_a_split_make_the_whole(folder: Path, binarised: Path) -> None:
    """What a worker does for a split."""
    flags = [str(binarised), "--path", str(folder), "--max-source-positions", "6", "--batch-size", "2", *FLAGS]
    command = Command("x", "", [GenerateConfig, *MODEL_SECTIONS], [task_component(flags, of_texts=TEXT_SECTIONS)])
    model = SplitModel(command.parse(flags))
    prefixes = ["h", "", "", "", "j"]
    whole, counts = model.translate(range(5), prefixes)
    parts = model.batches(range(5))
    assert parts == [[2, 4], [0, 3], [1]]  # by length; blank ones by themselves
    total: Counter[str] = Counter()
    for part in parts:
        outputs, counted = model.translate(part, [prefixes[row] for row in part])
        assert outputs == [whole[row] for row in part]
        total.update(counted)
    assert total == counts and counts["truncated"] == 1 and counts["empty"] == 1
    assert len(model.references()) == 5


def test_nbest_has_numbers_and_scores(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "in", LINES)
    assert generate(["--path", str(folder), "--input", source, "--nbest", "2", *FLAGS]) == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in rows] == ["1", "1", "2", "3", "3", "4", "4", "5", "5"]
    translations = student(folder, beam=3, max_len_b=12, nbest=2).translate_nbest(LINES)
    assert [(float(score), text) for _, score, text in rows] == [
        (round(found.score, 4), found.text) for group in translations for found in group
    ]


def test_split_with_score(
    folder: Path, binarised: Path, expected: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    call = [str(binarised), "--path", str(folder), "--scoring", "sacrebleu", *FLAGS]
    assert generate([*call, "--output", str(out)]) == 0
    assert out.read_text(encoding="utf-8").split("\n") == [*expected, ""]
    scores = capsys.readouterr().out
    assert scores.startswith("BLEU ") and "tok:13a" in scores
    assert generate([*call, "--reference", str(out)]) == 0
    captured = capsys.readouterr()
    assert captured.out.split("\n") == [*expected, ""]
    assert "BLEU 100.00" in captured.err


def test_reversed_direction(folder: Path, binarised: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate([str(binarised), "--path", str(folder), "--source-lang", "fr", *FLAGS]) == 0
    turned = student(folder, beam=3, max_len_b=12).translate([line[::-1] for line in LINES])
    assert capsys.readouterr().out.split("\n") == [*turned, ""]


@pytest.mark.parametrize("binary", [False, True])
def test_prefixes(
    folder: Path, binarised: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], binary: bool
) -> None:
    source = [str(binarised)] if binary else ["--input", write(tmp_path / "in", LINES)]
    prefix = write(tmp_path / "prefix", ["h i", "", "", "j", "h"])
    assert generate([*source, "--path", str(folder), "--prefix", prefix, *FLAGS]) == 0
    found = capsys.readouterr().out.split("\n")[:-1]
    assert found == student(folder, beam=3, max_len_b=12).translate(LINES, ["h i", "", "", "j", "h"])
    assert found[0].startswith("h i") and found[3].startswith("j")


def test_over_long_sources_are_counted(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "in", LINES)
    assert generate(["--path", str(folder), "--input", source, "--max-source-positions", "6", *FLAGS]) == 0
    assert "1 sources were over-long" in capsys.readouterr().err


def test_failure_leaves_no_output(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "in"
    source.write_bytes(b"a b\nc \xff d\n")
    call = ["--path", str(folder), "--input", str(source), "--output", str(tmp_path / "out"), "--buffer-size", "1"]
    assert f"{source}:2: not valid UTF-8" in error_of(capsys, generate(call))
    assert not (tmp_path / "out").exists()


def test_bad_calls_are_one_line(
    folder: Path, binarised: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write(tmp_path / "in", LINES)
    model = ["--path", str(folder)]
    calls = {
        "--scoring sacrebleu needs --reference": [*model, "--input", source, "--scoring", "sacrebleu"],
        "--beam 99 is more than the 24 tokens of the vocabulary": [*model, "--input", source, "--beam", "99"],
        "--workers and --context-size exclude each other": [*model, "--workers", "2", "--context-size", "1"],
        "--workers and --sampling of --backend ctranslate2": [
            *model,
            *["--workers", "2", "--backend", "ctranslate2", "--sampling", "--beam", "1"],
        ],
        "--workers and --dest-dir exclude": [str(binarised), *model, "--workers", "2", "--dest-dir", str(tmp_path)],
        "--interactive answers what is typed: leave --output": [*model, "--interactive", "--output", "x"],
        "--nbest 9 is more than --beam 5": [*model, "--input", source, "--nbest", "9"],
        "--min-len 9 is more than --max-len-b 3": [*model, "--input", source, "--min-len", "9", "--max-len-b", "3"],
        "exclude each other": [str(tmp_path), *model, "--input", source],
        "only looked at with --scoring": [*model, "--input", source, "--reference", source],
        "--input gone: no such file": [*model, "--input", "gone"],
        "did you mean test?": [str(binarised), *model, "--gen-subset", "tests"],
        "holds en and fr": [str(binarised), *model, "--source-lang", "de"],
        "no config.json in this folder": ["--path", str(tmp_path), "--input", source],
        "no such data folder": [str(tmp_path / "gone"), *model],
        "knows no languages": [*model, "--input", source, "--target-lang", "fr"],
        "--beam: 0 is out of range": [*model, "--beam", "0"],
    }
    for message, call in calls.items():
        assert message in error_of(capsys, generate(call))


def test_lines_are_counted_before_anything_is_loaded(
    binarised: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, short = write(tmp_path / "in", LINES), write(tmp_path / "short", ["a"])
    model, scoring = ["--path", "no model"], ["--scoring", "sacrebleu"]
    for command, call, message in (
        (generate, ["--input", source, "--prefix", short], f"--prefix {short}: 1 lines, but {source} has 5"),
        (generate, ["--input", short, "--reference", source, *scoring], f"{source}: 5 lines, but {short} has 1"),
        (generate, [str(binarised), "--prefix", short], "1 lines, but the test split has 5"),
        (generate, [str(binarised), "--reference", short, *scoring], "1 lines, but the test split has 5"),
        (evaluate, [str(binarised), "--reference", short], "1 lines, but the test split has 5"),
    ):
        assert message in error_of(capsys, command([*call, *model]))


@pytest.mark.parametrize(("prefixes", "words"), [(1, "fewer lines than the input"), (6, "more lines than the input")])
def test_lines_of_a_stream_are_counted_as_they_come(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    prefixes: int,
    words: str,
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\n".join(LINES).encode())))
    prefix, out = write(tmp_path / "prefix", ["a"] * prefixes), tmp_path / "out"
    call = ["--path", str(folder), "--prefix", prefix, "--output", str(out), *FLAGS]
    assert words in error_of(capsys, generate(call))
    assert not out.exists()


def test_tokenizer_of_the_data_has_to_be_the_model_s(
    binarised: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = save_student(tmp_path / "other")
    file = other / "tokenizer.json"
    file.write_text(file.read_text("utf-8").replace('"▁a"', '"▁A"'), encoding="utf-8")
    capsys.readouterr()
    assert "preprocess the data with" in error_of(capsys, generate([str(binarised), "--path", str(other)]))


def test_evaluate_compares_models(
    folder: Path, binarised: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = save_student(tmp_path / "other", seed=5)
    call = [str(binarised), "--path", f"{folder},{other}", *FLAGS]
    assert evaluate([*call, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == [str(folder), str(other)]
    assert rows[0]["parameters"] == student(folder).model.num_parameters()
    assert rows[0]["bytes"] > 4 * rows[0]["parameters"]
    assert rows[0]["sentences"] == 5 and rows[0]["sentences_per_second"] > 0
    assert rows[0]["chrf"] != rows[1]["chrf"]
    assert evaluate(call) == 0
    table = capsys.readouterr().out
    assert "sentences/s" in table and "tok:13a" in table and f"{rows[0]['chrf']:.1f}" in table


def test_evaluate_scores_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = write(tmp_path / "text", ["one two three four five"])
    assert evaluate(["--hypothesis", text, "--reference", text]) == 0
    assert "100.0" in capsys.readouterr().out
    assert "--hypothesis needs --reference" in error_of(capsys, evaluate(["--hypothesis", text]))
    assert "give a data folder and --path" in error_of(capsys, evaluate(["--path", "x"]))
    assert "no such file" in error_of(capsys, evaluate(["--hypothesis", text, "--reference", "gone"]))
