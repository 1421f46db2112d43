"""One path from defaults, base files, run file and flags to typed settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from cktk.config.command import Command, Component
from cktk.config.options import Raw, option
from cktk.errors import ConfigError
from cktk.registry import Registry


@dataclass(frozen=True)
class Run:
    """Where to run."""

    data: str = option(help="data folder", positional=True)
    lr: float = option(0.1, help="learning rate, 50% of it later", above=0)
    source_lang: str | None = option(None, help="source language")
    resume_log: bool = option(True, help="keep the log")
    betas: tuple[float, ...] = option((0.9, 0.98), help="betas")
    num_workers: int = option(0, help="workers", minimum=0, resume="free")


@dataclass(frozen=True)
class Red:
    """Red."""

    depth: int = option(1, help="how red", minimum=1)


@dataclass(frozen=True)
class Blue:
    """Blue."""

    shade: float = option(0.5, help="how blue")


COLOURS = Registry("colour", {})
COLOURS.register("red", Red)(lambda: None)
COLOURS.register("blue", Blue)(lambda: None)


def command(load_plugins: Callable[[str | None], None] | None = None) -> Command:
    return Command("prog", "words", [Run], [Component("colour", COLOURS, "red", "which colour")], load_plugins)


def write(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


def test_flags_beat_the_run_file_which_beats_its_base_which_beats_defaults(tmp_path: Path) -> None:
    write(tmp_path, "base.yaml", "lr: 0.2\nsource-lang: en\nbetas: [0.1, 0.2]\nnum-workers: 3\n")
    path = write(tmp_path, "run.yaml", "base: base.yaml\nlr: 0.3\nsource_lang: no\n")
    run = command().parse(["bin", "--config", path, "--lr", "4e-1"]).section(Run)
    assert run == Run(data="bin", lr=0.4, source_lang="no", betas=(0.1, 0.2), num_workers=3)


def test_defaults_and_booleans(tmp_path: Path) -> None:
    assert command().parse(["bin"]).section(Run) == Run(data="bin")
    assert command().parse(["bin", "--no-resume-log"]).section(Run).resume_log is False
    off = write(tmp_path, "off.yaml", "resume-log: no\ndata: bin\n")
    assert command().parse(["--config", off]).section(Run).resume_log is False
    assert command().parse(["--config", off, "--resume-log"]).section(Run).resume_log is True


def test_the_chosen_component_brings_its_flags(tmp_path: Path) -> None:
    assert command().parse(["bin", "--depth", "3"]).component("colour") == ("red", Red(depth=3))
    assert command().parse(["bin", "--colour", "blue", "--shade", "1"]).component("colour") == ("blue", Blue(shade=1.0))
    path = write(tmp_path, "run.yaml", "colour: blue\nshade: 0.25\n")
    assert command().parse(["bin", "--config", path]).component("colour") == ("blue", Blue(shade=0.25))
    with pytest.raises(ConfigError, match="shade belongs to --colour blue, which was not chosen"):
        command().parse(["bin", "--config", path, "--colour", "red"])


def test_a_component_may_be_told_by_what_was_given(tmp_path: Path) -> None:
    def by_shade(given: Mapping[str, Raw]) -> str | None:
        return "blue" if "shade" in given else None

    told = Command("prog", "words", [Run], [Component("colour", COLOURS, "red", "which colour", by_shade)])
    path = write(tmp_path, "run.yaml", "shade: 0.25\n")
    assert told.parse(["bin"]).component("colour") == ("red", Red())
    assert told.parse(["bin", "--shade=0.75"]).component("colour") == ("blue", Blue(shade=0.75))
    assert told.parse(["bin", "--config", path]).component("colour") == ("blue", Blue(shade=0.25))
    with pytest.raises(ConfigError, match="--shade belongs to --colour blue"):
        told.parse(["bin", "--colour", "red", "--shade", "1"])


def test_the_written_settings_give_the_same_settings_again(tmp_path: Path) -> None:
    first = command().parse(["bin", "--colour", "blue", "--lr", "1e-4", "--betas", "0.9,0.999", "--source-lang", "no"])
    again = command().parse(["--config", write(tmp_path, "again.yaml", first.to_yaml())])
    assert again.values == first.values
    assert again.to_yaml() == first.to_yaml()


def test_a_value_may_begin_with_a_dash(tmp_path: Path) -> None:
    assert command().parse(["bin", "--source-lang=-x"]).section(Run).source_lang == "-x"
    assert command().parse(["bin", "--source-lang", "-"]).section(Run).source_lang == "-"


def test_what_may_change_on_resume_is_marked() -> None:
    assert command().parse(["bin"]).free_on_resume() == {"num_workers", "preset"}


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "DATA is required: data folder"),
        (["bin", "--lr", "fast"], "--lr: 'fast' is not a number"),
        (["bin", "--lr", "0"], "--lr: 0 is out of range: must be above 0"),
        (["bin", "--learning-rate", "1"], "unknown flag --learning-rate"),
        (["bin", "--num-worker", "1"], "unknown flag --num-worker; did you mean --num-workers"),
        (["bin", "--num", "1"], "unknown flag --num"),
        (["bin", "--colour", "bleu"], "--colour: unknown name 'bleu'; did you mean blue"),
        (["bin", "--colour", "green"], "plug-ins are loaded with --user-dir"),
        (["bin", "--shade", "1"], "--shade belongs to --colour blue, which was not chosen"),
        (["bin", "more"], "unexpected argument 'more'"),
        (["bin", "--lr"], "^--lr needs a value"),
        (["bin", "--lr", "-1"], "--lr: -1 is out of range: must be above 0"),
        (["bin", "--lr=-1e-3"], "--lr: -1e-3 is out of range: must be above 0"),
        (["bin", "--lr", "-1e-3"], "^--lr needs a value .one that begins with a dash is joined to it: --lr=-VALUE.$"),
        (["bin", "--colour", "--lr=1"], "^--colour needs a value"),
        (["bin", "--source-lang", "-x"], "^--source-lang needs a value"),
        (["bin", "--config", "a.yaml", "--lr=1", "--config=b.yaml"], "^--config is given twice, a.yaml and b.yaml"),
        (["bin", "--config", "--lr=1"], "^--config needs a value"),
        (["bin", "-lr", "1"], "^unknown flag -lr; did you mean --lr"),
    ],
)
def test_bad_flags_get_one_clear_line(argv: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        command().parse(argv)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("lr: 1\nnum-wrokers: 2\n", "run.yaml:2: unknown name 'num_wrokers'; did you mean num_workers"),
        ("# remark\nlr: fast\n", "run.yaml:2: lr: 'fast' is not a number"),
        ("num_workers: -1\n", "run.yaml:1: num_workers: -1 is out of range: must be at least 0"),
        ("lr:\n", "run.yaml:1: lr: needs a value, not null"),
        ("colour: bleu\n", "run.yaml:1: unknown name 'bleu'; did you mean blue"),
    ],
)
def test_bad_run_files_get_file_and_line(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        command().parse(["bin", "--config", write(tmp_path, "run.yaml", text)])


def test_plugins_are_loaded_before_names_are_read(tmp_path: Path) -> None:
    asked: list[str | None] = []
    command(asked.append).parse(["bin"])
    command(asked.append).parse(["bin", "--user-dir", "here"])
    command(asked.append).parse(["bin", "--config", write(tmp_path, "run.yaml", "user-dir: there\n")])
    assert asked == [None, "here", "there"]


def test_two_sections_cannot_share_a_flag() -> None:
    @dataclass(frozen=True)
    class Also:
        """Also."""

        lr: float = option(1.0, help="again")

    with pytest.raises(ConfigError, match="--lr is declared by Run and by Also"):
        Command("prog", "words", [Run, Also]).parse(["bin"])


def test_help_shows_the_flags_of_what_was_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        command().parse(["--colour", "blue", "--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert "--shade X" in shown and "how blue (default: 0.5)" in shown and "--depth" not in shown
    assert "DATA" in shown and "50% of it later" in shown and "blue, red" in shown


@pytest.mark.parametrize(("flag", "shown"), [("--mode", "{low,high}"), ("--modes", "NAME,..")])
def test_help_shows_what_a_value_looks_like(flag: str, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    @dataclass(frozen=True)
    class Modes:
        """Modes."""

        mode: Literal["low", "high"] = option("low", help="one")
        modes: tuple[Literal["low", "high"], ...] = option((), help="any of them")

    with pytest.raises(SystemExit):
        Command("prog", "words", [Modes]).parse(["--help"])
    assert f"{flag} {shown}" in capsys.readouterr().out
