"""A line in, its output at once."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import pytest

from cktk.config.command import Command
from cktk.errors import ConfigError
from cktk.generation.configs import GenerateConfig, SearchConfig
from cktk_cli import interactive
from cktk_cli.outputs import Output


class Model:
    """Writes lines in capitals; a second output where asked for."""

    def __init__(self, settings: Any) -> None:
        self._nbest = settings.section(SearchConfig).nbest

    def translate(self, lines: Sequence[str]) -> tuple[list[list[Output]], dict[str, int]]:
        if "interrupt" in lines:
            raise KeyboardInterrupt
        nbest = [[Output(line.upper(), -0.25), Output(line, -1.0)][: self._nbest] for line in lines]
        return nbest, {"sentences": len(lines), "tokens": 3 * len(lines)}


def converse(monkeypatch: pytest.MonkeyPatch, *flags: str) -> None:
    monkeypatch.setattr(interactive, "LineModel", Model)
    command = Command("cktk-generate", "", [GenerateConfig, SearchConfig])
    interactive.converse(command.parse(["--path", "x", "--interactive", *flags]))


def on_terminal(monkeypatch: pytest.MonkeyPatch, *typed: Any) -> list[str]:
    """Let these lines be typed, or errors happen, on a terminal; the prompts end up in the list."""
    prompts: list[str] = []
    lines = iter(typed)

    def read(prompt: str) -> str:
        prompts.append(prompt)
        line = next(lines, EOFError())
        if isinstance(line, BaseException):
            raise line
        return str(line)

    monkeypatch.setattr("builtins.input", read)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    return prompts


def test_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    undecodable = UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")
    monkeypatch.setattr("sys.stdin", io.StringIO())
    typed = ["a", KeyboardInterrupt(), "", "interrupt", undecodable, "\udcff", "b"]
    prompts = on_terminal(monkeypatch, *typed)
    converse(monkeypatch)
    captured = capsys.readouterr()
    assert captured.out == "A\n\nB\n"
    assert prompts == ["> "] * 8
    assert captured.err.count("not valid UTF-8; set the terminal to UTF-8") == 2
    assert "3 sentences in" in captured.err and "latency of a sentence: median" in captured.err


def test_nbest_and_scores(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())
    for flags, expected in (
        (["--nbest", "2"], "1\t-0.2500\tA\n1\t-1.0000\ta\n2\t-0.2500\tB\n2\t-1.0000\tb\n"),
        (["--print-scores"], "1\t-0.2500\tA\n2\t-0.2500\tB\n"),
    ):
        on_terminal(monkeypatch, "a", "b")
        converse(monkeypatch, *flags)
        assert capsys.readouterr().out == expected


def test_pipe(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a\n\nb")))
    converse(monkeypatch)
    assert capsys.readouterr().out == "A\n\nB\n"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"interrupt\n")))
    with pytest.raises(KeyboardInterrupt):
        converse(monkeypatch)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"data_bin": "d"}, "the data folder d"),
        ({"input": "f"}, "--input"),
        ({"output": "f"}, "--output"),
        ({"prefix": "f"}, "--prefix"),
        ({"scoring": "rouge"}, "--scoring"),
        ({"reference": "f"}, "--reference"),
        ({"workers": 2}, "--workers"),
    ],
)
def test_what_is_refused(given: dict[str, Any], words: str) -> None:
    GenerateConfig(path="x", **given)
    with pytest.raises(ConfigError, match=f"^--interactive answers what is typed: leave {words} out$"):
        GenerateConfig(path="x", interactive=True, **given)
