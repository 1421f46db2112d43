"""Run files in YAML: what is written stays text with its line; base files are read first."""

from __future__ import annotations

from pathlib import Path

import pytest

from cktk.config.yaml_file import read_run_file
from cktk.errors import ConfigError


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def raws(path: Path) -> dict[str, object]:
    return {name: written.raw for name, written in read_run_file(path).items()}


def test_scalars_stay_as_they_were_written(tmp_path: Path) -> None:
    path = write(tmp_path, "run.yaml", "source-lang: no\nlr: 1e-4\nwidth: 0128\non_off: on\nempty:\nquoted: 'null'\n")
    assert raws(path) == {
        "source_lang": "no",
        "lr": "1e-4",
        "width": "0128",
        "on_off": "on",
        "empty": None,
        "quoted": "null",
    }


def test_lists_and_lines(tmp_path: Path) -> None:
    path = write(tmp_path, "run.yaml", "# first line\n\nbetas: [0.9, 0.98]\nlr: 1\n")
    written = read_run_file(path)
    assert written["betas"].raw == ["0.9", "0.98"] and written["betas"].where == f"{path}:3"
    assert written["lr"].where == f"{path}:4"


def test_an_empty_file_sets_nothing(tmp_path: Path) -> None:
    assert read_run_file(write(tmp_path, "run.yaml", "# only a remark\n")) == {}


def test_the_file_wins_over_its_bases_and_later_bases_over_earlier(tmp_path: Path) -> None:
    write(tmp_path, "a.yaml", "x: a\ny: a\nz: a\n")
    write(tmp_path, "sub/b.yaml", "base: ../a.yaml\ny: b\nw: b\n")
    write(tmp_path, "c.yaml", "w: c\n")
    path = write(tmp_path, "run.yaml", "base: [sub/b.yaml, c.yaml]\nz: run\n")
    assert raws(path) == {"x": "a", "y": "b", "z": "run", "w": "c"}
    assert read_run_file(path)["y"].where == f"{tmp_path / 'sub' / '../sub/b.yaml'}:2".replace("sub/../", "")


def test_one_base_may_be_reached_twice(tmp_path: Path) -> None:
    write(tmp_path, "root.yaml", "x: 1\n")
    write(tmp_path, "left.yaml", "base: root.yaml\n")
    write(tmp_path, "right.yaml", "base: root.yaml\n")
    assert raws(write(tmp_path, "run.yaml", "base: [left.yaml, right.yaml]\n")) == {"x": "1"}


@pytest.mark.parametrize("files", [{"a.yaml": "base: a.yaml"}, {"a.yaml": "base: b.yaml", "b.yaml": "base: ./a.yaml"}])
def test_circles_are_refused(tmp_path: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        write(tmp_path, name, text)
    with pytest.raises(ConfigError, match="circle"):
        read_run_file(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("lr: 1\nwidth: 2\nlr: 3\n", "run.yaml:3: lr is given twice"),
        ("max-tokens: 1\nmax_tokens: 2\n", "run.yaml:2: max_tokens is given twice"),
        ("lr: 1\nnested:\n  a: 1\n", "run.yaml:2: nested: takes a value or a list"),
        ("lists: [[1], 2]\n", "run.yaml:1: lists: takes a value or a list"),
        ("- lr\n- 1\n", "run.yaml:1: a run file is a map"),
        ("lr: 1\nwidth: [1, 2\nx: 3\n", r"run.yaml:\d: not valid YAML"),
        ("lr: 1\nbase: missing.yaml\n", "run.yaml:2: base missing.yaml: no such run file"),
    ],
)
def test_errors_name_file_and_line(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        read_run_file(write(tmp_path, "run.yaml", text))


def test_missing_folder_and_bad_encoding_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere.yaml: no such run file"):
        read_run_file(tmp_path / "nowhere.yaml")
    with pytest.raises(ConfigError, match=f"^{tmp_path}: is a folder; give a run file"):
        read_run_file(tmp_path)
    (tmp_path / "latin.yaml").write_bytes("name: caf\xe9\n".encode("latin-1"))
    with pytest.raises(ConfigError, match="latin.yaml: cannot be read"):
        read_run_file(tmp_path / "latin.yaml")
