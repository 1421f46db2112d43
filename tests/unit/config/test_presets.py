"""Presets stand above defaults and below everything that the user writes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from cktk.config.command import Command, Component, Settings
from cktk.config.options import option, options_of
from cktk.config.presets import Case, Preset
from cktk.criteria.configs import CkaKdConfig, KlKdConfig, LinearKdConfig
from cktk.criteria.presets import PRESETS
from cktk.errors import ConfigError
from cktk.registry import CRITERIA, TASKS, Registry
from cktk_cli.train import command as train_command


@dataclass(frozen=True)
class Run:
    """Where to run."""

    lr: float = option(0.1, help="learning rate", above=0)
    source_lang: str | None = option(None, help="source language")


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
SHAPES = Registry("shape", {})
SHAPES.register("disc", Run)(lambda: None)

TABLE = {
    "sea": Preset(
        "what the sea is like",
        {"colour": "blue", "shade": "0.75", "depth": "9", "lr": "0.5"},
        (
            Case({"colour": ("blue",), "source_lang": ("no", "fi")}, {"lr": "0.25"}),
            Case({"source_lang": ("fi",)}, {"shade": "1"}),
        ),
    ),
    "sun": Preset("red", {"colour": "red"}),
}


def parse(*argv: str) -> Settings:
    colours = Component("colour", COLOURS, "red", "which colour")
    return Command("prog", "words", [Run], [colours], presets=TABLE).parse(argv)


def write(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


def test_a_preset_chooses_components_and_sets_options() -> None:
    settings = parse("--preset", "sea")
    assert settings.component("colour") == ("blue", Blue(shade=0.75))
    assert settings.section(Run) == Run(lr=0.5)
    assert settings.values["preset"] == "sea"
    assert parse().values["preset"] is None and parse().component("colour") == ("red", Red())


def test_run_files_and_their_bases_beat_the_preset_and_flags_beat_all(tmp_path: Path) -> None:
    write(tmp_path, "base.yaml", "lr: 0.2\npreset: sun\n")
    path = write(tmp_path, "run.yaml", "base: base.yaml\npreset: sea\n")
    settings = parse("--config", path)
    assert settings.component("colour") == ("blue", Blue(shade=0.75))
    assert settings.section(Run).lr == 0.2
    settings = parse("--config", path, "--lr=0.3", "--shade", "0.1")
    assert settings.component("colour") == ("blue", Blue(shade=0.1)) and settings.section(Run).lr == 0.3
    settings = parse("--config", path, "--preset=sun")
    assert settings.component("colour") == ("red", Red()) and settings.values["preset"] == "sun"


def test_values_for_what_was_not_chosen_are_left_out() -> None:
    settings = parse("--preset", "sea", "--colour", "red")
    assert settings.component("colour") == ("red", Red(depth=9))
    assert "shade" not in settings.values and settings.section(Run).lr == 0.5


@pytest.mark.parametrize(
    ("argv", "lr", "shade"),
    [
        (["--source-lang", "no"], 0.25, 0.75),
        (["--source_lang=fi"], 0.25, 1.0),
        (["--source-lang", "de"], 0.5, 0.75),
        (["--source-lang", "no", "--lr", "1"], 1.0, 0.75),
    ],
)
def test_cases_look_at_what_was_chosen_and_written(argv: list[str], lr: float, shade: float, tmp_path: Path) -> None:
    for start in (["--preset", "sea"], ["--config", write(tmp_path, "run.yaml", "preset: sea\nsource-lang: de\n")]):
        settings = parse(*start, *argv)
        assert (settings.section(Run).lr, settings.section(Blue).shade) == (lr, shade)
    in_file = write(tmp_path, "run.yaml", "preset: sea\nsource-lang: no\n")
    assert parse("--config", in_file).section(Run).lr == 0.25
    assert parse("--config", in_file, "--colour=red").section(Run).lr == 0.5


def test_a_case_may_choose_a_later_component() -> None:
    table = {"round": Preset("", {"colour": "blue"}, (Case({"colour": ("blue",)}, {"shape": "disc"}),))}
    components = [Component("colour", COLOURS, "red", "colour"), Component("shape", SHAPES, None, "shape")]
    command = Command("prog", "words", [], components, presets=table)
    assert command.parse(["--preset", "round"]).component("shape") == ("disc", Run())
    assert command.parse(["--preset", "round", "--colour=red"]).values["shape"] is None


@pytest.mark.parametrize(
    ("argv", "text", "words"),
    [
        (["--preset", "see"], "", "^--preset: unknown name 'see'; did you mean sea. known: sea, sun$"),
        (["--preset="], "", "^--preset: unknown name ''; known: sea, sun$"),
        (["--preset"], "", "^--preset needs a value"),
        ([], "lr: 1\npreset: sum\n", "run.yaml:2: unknown name 'sum'; did you mean sun. known: sea, sun$"),
        ([], "preset: [sea, sun]\n", "run.yaml:1: unknown name .*; known: sea, sun$"),
    ],
)
def test_an_unknown_preset_is_told_with_all_names(argv: list[str], text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        parse(*argv, *(["--config", write(tmp_path, "run.yaml", text)] if text else []))
    assert "\n" not in str(caught.value)


def test_a_command_without_presets_has_no_such_flag(tmp_path: Path) -> None:
    command = Command("prog", "words", [Run])
    assert "preset" not in command.parse([]).values
    with pytest.raises(ConfigError, match="unknown flag --preset"):
        command.parse(["--preset", "sea"])
    with pytest.raises(ConfigError, match=r"run\.yaml:1: unknown name 'preset'"):
        command.parse(["--config", write(tmp_path, "run.yaml", "preset: sea\n")])


def test_help_shows_the_presets_and_their_values(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("--preset", "sea", "--help")
    shown = " ".join(capsys.readouterr().out.split())
    assert "--preset NAME" in shown and "sea (what the sea is like), sun (red)" in shown
    assert "how blue (by the preset: 0.75)" in shown and "source language" in shown


# What cktk-train ships.

BASIC = ["bin", "--max-update", "1"]


def trained(*argv: str) -> Settings:
    return train_command().parse([*BASIC, *argv])


def test_the_paper() -> None:
    name, config = trained("--preset", "paper").component("criterion")
    assert (name, config) == ("cka_kd", CkaKdConfig(cka_scope="summed", match_embeddings=False))
    assert (config.ce_weight, config.kl_weight, config.hidden_weight, config.temperature) == (1, 1, 1, 1)
    assert (config.divergence, config.cka_form, config.layer_map) == ("forward_kl", "sqrt", "uniform")


SCRIPTS = CkaKdConfig(cka_scope="micro", cka_eps=1e-8, cka_dtype="float64", match_embeddings=True)


def test_the_released_scripts() -> None:
    assert trained("--preset", "released-scripts").component("criterion") == ("cka_kd", SCRIPTS)


@pytest.mark.parametrize(
    ("languages", "divergence"),
    [
        (["--target-lang", "ro"], "reverse_kl"),
        (["--source-lang", "en_XX", "--target-lang=ro_RO"], "reverse_kl"),
        (["--source-lang", "ro", "--target-lang", "en"], "forward_kl"),
        (["--source-lang", "en"], "forward_kl"),  # the folder's other language is not known yet
        (["--target-lang", "ro", "--divergence", "js"], "js"),
    ],
)
def test_the_scripts_reverse_the_divergence_into_romanian(languages: list[str], divergence: str) -> None:
    assert trained("--preset", "released-scripts", *languages).section(KlKdConfig).divergence == divergence
    assert trained("--preset", "paper", *languages).section(KlKdConfig).divergence in ("forward_kl", "js")


def test_baselines_run_under_the_same_preset() -> None:
    name, config = trained("--preset", "released-scripts", "--criterion", "linear_kd").component("criterion")
    assert (name, config) == ("linear_kd", LinearKdConfig(projector="shared"))
    assert "cka_scope" not in trained("--preset", "paper", "--criterion", "cross_entropy").values


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("criterion", [None, *CRITERIA.names()])
@pytest.mark.parametrize("lang", ["fr", "ro"])
def test_every_preset_has_good_values_under_every_criterion(
    name: str, criterion: str | None, lang: str, tmp_path: Path
) -> None:
    chosen = ["--criterion", criterion] if criterion else []
    settings = trained("--preset", name, "--target-lang", lang, *chosen)
    assert settings.component("criterion")[0] == (criterion or "cka_kd")
    # What is written down tells everything, and gives the same settings again.
    assert yaml.safe_load(settings.to_yaml())["preset"] == name
    again = train_command().parse(["--config", write(tmp_path, "config.yaml", settings.to_yaml())])
    assert again.values == settings.values


def test_presets_speak_of_options_and_components_that_exist() -> None:
    command = train_command()
    registries = {component.name: component.registry for component in command.components}
    chosen = [registry.config(name) for registry in registries.values() for name in registry.names()]
    known = {option.name for config in (*command.sections, *chosen) for option in options_of(config)} | set(registries)
    for preset in PRESETS.values():
        assert preset.summary
        for values in (preset.values, *(case.values for case in preset.cases)):
            assert values.keys() <= known
        for case in preset.cases:
            assert case.when.keys() <= known
            assert set(case.when.get("task", ())) <= set(TASKS.names())
