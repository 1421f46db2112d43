"""Names of a component that stand for a choice and for values of its options, as ``--arch mbart_12x384`` does."""

from __future__ import annotations

from pathlib import Path

import pytest

from cktk.config.command import Command, Component, Settings
from cktk.config.presets import Preset
from cktk.errors import ConfigError
from cktk_cli import train
from tests.unit.config.test_presets import COLOURS, Blue, Red, Run

NAMES = {"navy": Preset("", {"colour": "blue", "shade": "0.9"}), "wine": Preset("", {"colour": "red", "depth": "7"})}
PRESETS = {
    "night": Preset("", {"colour": "navy", "lr": "0.5"}),
    "pale": Preset("", {"colour": "navy", "shade": "0.1"}),
}


def parse(*argv: str) -> Settings:
    colours = Component("colour", COLOURS, "red", "which colour", presets=NAMES)
    return Command("prog", "words", [Run], [colours], presets=PRESETS).parse(argv)


def test_a_name_stands_for_a_choice_and_values() -> None:
    settings = parse("--colour", "navy")
    assert settings.component("colour") == ("blue", Blue(shade=0.9))
    assert parse("--colour=wine").component("colour") == ("red", Red(depth=7))
    assert parse("--colour=blue").component("colour") == ("blue", Blue(shade=0.5))
    assert "colour: blue\n" in settings.to_yaml() and "shade: 0.9\n" in settings.to_yaml()


def test_run_files_and_flags_beat_it(tmp_path: Path) -> None:
    base, file = tmp_path / "base.yaml", tmp_path / "run.yaml"
    base.write_text("colour: wine\n")
    file.write_text("base: base.yaml\ndepth: 3\n")
    assert parse("--config", str(file)).component("colour") == ("red", Red(depth=3))
    assert parse("--config", str(file), "--depth=4").component("colour") == ("red", Red(depth=4))
    assert parse("--config", str(base), "--colour", "navy").component("colour") == ("blue", Blue(shade=0.9))


def test_a_preset_may_name_it_and_goes_before_it() -> None:
    settings = parse("--preset", "night")
    assert settings.component("colour") == ("blue", Blue(shade=0.9))
    assert settings.section(Run).lr == 0.5
    assert parse("--preset", "pale").component("colour") == ("blue", Blue(shade=0.1))
    assert parse("--preset", "pale", "--colour", "wine").component("colour") == ("red", Red(depth=7))


def test_unknown_names_and_bad_values() -> None:
    with pytest.raises(
        ConfigError, match="^--colour: unknown name 'nawy'; did you mean navy. known: blue, red, navy, "
    ):
        parse("--colour", "nawy")
    colours = Component("colour", COLOURS, "red", "c", presets={"dark": Preset("", {"colour": "red", "depth": "x"})})
    with pytest.raises(ConfigError, match="^--colour dark: depth: "):
        Command("prog", "words", [Run], [colours]).parse(["--colour", "dark"])


def test_help_shows_names_and_values(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("--colour", "navy", "--help")
    shown = " ".join(capsys.readouterr().out.split())
    assert "which colour: blue, red (default: red); with sizes: navy, wine" in shown
    assert "how blue (by the preset: 0.9)" in shown


def test_students_of_cktk_train() -> None:
    settings = train.command().parse(["data", "--save-dir", "run", "--arch", "mbart_12x384", "--encoder-layers", "8"])
    name, student = settings.component("arch")
    assert name == "mbart"
    assert (student.width, student.encoder_layers, student.decoder_layers) == (384, 8, 6)
    assert (student.ffn_width, student.heads) == (1536, None)
    with pytest.raises(ConfigError, match="^--arch: unknown name 'bart_6x64'; did you mean bart_6x640"):
        train.command().parse(["data", "--save-dir", "run", "--arch", "bart_6x64"])
