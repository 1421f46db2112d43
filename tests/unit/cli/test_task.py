"""``--task`` of cktk-train where nobody gives it: what the data folder was preprocessed for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cktk_cli.train import command


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "manifest.json").write_text(json.dumps({"task": "summarization"}))
    return tmp_path / "bin"


def chosen(*arguments: str) -> str:
    name: str = command(arguments).parse([*arguments, "--max-update", "1"]).component("task")[0]
    return name


def test_the_data_folder_says_it(folder: Path, tmp_path: Path) -> None:
    assert chosen(str(folder)) == "summarization"
    assert chosen(f"{folder},{tmp_path / 'other'}") == "summarization"
    (tmp_path / "run.yaml").write_text(f"data: {folder}\n")
    assert chosen("--config", str(tmp_path / "run.yaml")) == "summarization"


def test_what_is_given_goes_before_it(folder: Path) -> None:
    assert chosen(str(folder), "--task", "translation") == "translation"


@pytest.mark.parametrize("manifest", ['{"task": "unheard-of"}', "{}", "[]", "no JSON"])
def test_a_folder_that_says_nothing_known(manifest: str, folder: Path) -> None:
    (folder / "manifest.json").write_text(manifest)
    assert chosen(str(folder)) == "translation"
