"""Every run file under examples/ is accepted by the command that it is for, down to the last key."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from cktk.config.options import options_of
from cktk.errors import ConfigError
from cktk_cli.train import command

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
#: Run files are for cktk-train. One for another command would get its row here.
RECIPES = sorted(EXAMPLES.rglob("*.yaml"))
#: What a run file for others to build on may leave open.
ALWAYS = ["--max-update", "1"]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(EXAMPLES)))
def test_every_run_file_parses(path: Path) -> None:
    settings = command().parse(["--config", str(path), *ALWAYS])
    for section in command().sections:
        settings.section(section)  # runs the checks across options, too
    for component in command().components:
        settings.component(component.flag)


def test_there_are_run_files() -> None:
    names = {path.name for path in RECIPES}
    assert {"base.yaml", "teacher.yaml", "kl_kd.yaml", "linear_kd.yaml", "cka_kd.yaml", "demo.yaml"} <= names


def test_a_misspelt_key_would_be_seen(tmp_path: Path) -> None:
    text = (EXAMPLES / "debian_translation" / "base.yaml").read_text(encoding="utf-8")
    (tmp_path / "bad.yaml").write_text(text.replace("clip-norm", "clip-nrom"), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"bad\.yaml:\d+: unknown name 'clip_nrom'; did you mean clip_norm"):
        command().parse(["--config", str(tmp_path / "bad.yaml"), *ALWAYS])


def test_the_distillation_recipes_differ_in_the_criterion_only() -> None:
    found = []
    for name in ("kl_kd", "linear_kd", "cka_kd"):
        settings = command().parse(["--config", str(EXAMPLES / "debian_translation" / f"{name}.yaml")])
        chosen, config = settings.component("criterion")
        assert chosen == name and settings.values["save_dir"] == f"work/{name}"
        own = {option.name for option in options_of(type(config))} | {"criterion", "save_dir"}
        found.append({key: value for key, value in settings.values.items() if key not in own})
    assert found[0] == found[1] == found[2]


def test_the_demo_continues_the_recipe_that_made_its_student() -> None:
    folder = EXAMPLES / "debian_translation"
    demo, recipe = (command().parse(["--config", str(folder / f"{name}.yaml")]) for name in ("demo", "cka_kd"))
    assert dataclasses.asdict(demo.component("arch")[1]) == dataclasses.asdict(recipe.component("arch")[1])
    assert demo.component("criterion") == recipe.component("criterion")
    assert demo.values["finetune_from_model"] == "models/student"
