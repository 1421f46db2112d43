"""Every run file under examples/ is accepted by the command that it is for, down to the last key."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BartConfig, BertConfig, MBartConfig, T5Config

from cktk.architectures.families.family import registered_family
from cktk.architectures.spec import StudentSpec
from cktk.config.command import Settings
from cktk.config.options import options_of
from cktk.config.yaml_file import read_run_file
from cktk.errors import ConfigError
from cktk_cli.train import command
from tests.unit.architectures.test_parameter_counts import PRINTED

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
#: Run files are for cktk-train. What others build on names no folder to save to.
RECIPES = sorted(
    path
    for path in EXAMPLES.rglob("*.yaml")
    if "work" not in path.relative_to(EXAMPLES).parts and "save_dir" in read_run_file(path)
)
ALWAYS = ["--max-update", "1"]


def encoder(**sizes: Any) -> Any:
    return BertConfig(architectures=["BertForMaskedLM"], **sizes)


def untied_t5(**sizes: Any) -> Any:
    """Loaded, it has a head of its own; a configuration alone is tied in transformers 5."""
    config = T5Config(feed_forward_proj="gated-gelu", **sizes)
    config.tie_word_embeddings = False
    return config


#: Configurations of the models that recipes name, as their publishers have them.
PUBLISHED: dict[str, Any] = {
    "facebook/bart-large": BartConfig(),
    "facebook/bart-large-cnn": BartConfig(vocab_size=50_264),
    "facebook/bart-large-xsum": BartConfig(vocab_size=50_264),
    "facebook/mbart-large-en-ro": MBartConfig(vocab_size=250_027, scale_embedding=True),
    "facebook/mbart-large-50": MBartConfig(vocab_size=250_054, scale_embedding=True),
    "google/flan-t5-base": untied_t5(d_model=768, d_ff=2048, num_layers=12, num_heads=12),
    "google/flan-t5-large": untied_t5(d_model=1024, d_ff=2816, num_layers=24, num_heads=16),
    "google/flan-t5-xl": untied_t5(d_model=2048, d_ff=5120, num_layers=24, num_heads=32),
    "google-bert/bert-base-uncased": encoder(),
}
#: Models that recipes make, and of which kind they are.
PUBLISHED["work/teacher"] = PUBLISHED["facebook/mbart-large-50"]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(EXAMPLES)))
def test_every_run_file_parses(path: Path) -> None:
    settings = command().parse(["--config", str(path), *ALWAYS])
    for section in command().sections:
        settings.section(section)  # runs the checks across options, too
    for component in command().components:
        settings.component(component.flag)


def models_of(path: Path) -> tuple[Any, Any]:
    """Family and configuration of the student that a recipe makes, at full size."""
    settings = command().parse(["--config", str(path), *ALWAYS])
    arch, config = settings.component("arch")
    base = settings.values["teacher"] or settings.values["finetune_from_model"] or config.init_checkpoint
    if base not in PUBLISHED:  # fine-tuned from what another recipe made of a published model
        base = {"bert": "google-bert/bert-base-uncased"}[arch]
    family = registered_family(arch)
    return family, family.student_config(PUBLISHED[base], StudentSpec.of(config))


FAMILIES = ("bart", "mbart", "flan", "bert", "internal")
_COUNTS: dict[tuple[str, str], float] = {}
PAPER = [
    path for path in RECIPES if (path.parent / "run.sh").exists() and path.parent.name.partition("_")[0] in FAMILIES
]


@pytest.mark.parametrize("path", PAPER, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_models_of_full_size_are_built(path: Path) -> None:
    """On the meta device; their sizes are those that the paper prints."""
    family, config = models_of(path)
    key = family.model_type, repr(config.to_dict())
    if key not in _COUNTS:
        with torch.device("meta"):
            model = family.build(config)
        assert all(parameter.is_meta for parameter in model.parameters())
        _COUNTS[key] = model.num_parameters() / 1e6
    size = re.search(r"\d+x\d+", path.stem)
    if size is None:  # a teacher, or a task
        return
    shape = family.shape(config)
    assert size[0] == f"{sum(side.layers for side in shape.sides.values())}x{shape.width}"
    printed, tolerance = PRINTED[f"{family.model_type}_{size[0]}"]
    assert _COUNTS[key] == pytest.approx(printed, abs=tolerance)


def chosen(path: Path) -> Settings:
    return command([]).parse(["--config", str(path), *ALWAYS])


def test_what_comes_before_is_made_by_a_recipe_with_the_same_loss() -> None:
    made = {(path.parent / chosen(path).values["save_dir"]).resolve(): path for path in RECIPES}
    wired = 0
    for path in RECIPES:
        settings = chosen(path)
        before = getattr(settings.component("arch")[1], "init_checkpoint", None)
        if before is None or before.startswith("google/"):
            continue
        earlier = made[(path.parent / before).resolve()]
        wired += 1
        if settings.component("task")[0] != "glue":
            assert settings.component("criterion")[0] == chosen(earlier).component("criterion")[0], path
    assert wired > 40


@pytest.mark.parametrize("recipe", ["bart_xsum/6x640", "mbart_en_ro/12x384", "bert_c4/6x384"])
def test_losses_are_compared_on_the_same_pairs(recipe: str) -> None:
    cka, linear = (chosen(EXAMPLES / f"{recipe}_{loss}.yaml").component("criterion")[1] for loss in ("cka", "linear"))
    assert (cka.match_embeddings, cka.layer_map) == (linear.match_embeddings, linear.layer_map)
    assert (cka.ce_weight, cka.kl_weight, cka.divergence) == (linear.ce_weight, linear.kl_weight, linear.divergence)


def test_there_are_run_files() -> None:
    names = {path.name for path in RECIPES}
    assert {"teacher.yaml", "kl_kd.yaml", "linear_kd.yaml", "cka_kd.yaml", "demo.yaml"} <= names


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
