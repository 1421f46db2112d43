"""Families are found through the registry, those of plug-ins too."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import BartConfig, MBartConfig

from cktk.architectures.configs import StudentConfig
from cktk.architectures.families.bart import BartFamily
from cktk.architectures.families.family import families, family_of, registered_family
from cktk.architectures.families.mbart import MBartFamily
from cktk.architectures.families.t5 import MT5Family, T5Family
from cktk.architectures.folders import model_folder
from cktk.errors import CheckpointError, ConfigError
from cktk.protocols import ModelShape, SideShape
from cktk.registry import ARCHITECTURES


class OtherFamily(BartFamily):
    model_type = "other"


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ARCHITECTURES, "_entries", dict(ARCHITECTURES._entries))


def test_families_by_model_type() -> None:
    found = {name: type(family) for name, family in families().items()}
    assert found["bart"] is BartFamily and found["mbart"] is MBartFamily
    assert found["t5"] is T5Family and found["mt5"] is MT5Family
    ARCHITECTURES.register("mine", StudentConfig)(OtherFamily)
    assert isinstance(family_of("other", "path"), OtherFamily)
    with pytest.raises(CheckpointError, match=r"^here: model type 'pegasus' .*: bart, .*mbart, .*other, .*plug-ins"):
        family_of("pegasus", "here")


def test_what_is_no_family_is_named() -> None:
    ARCHITECTURES.register("mine", StudentConfig)(dict)
    with pytest.raises(ConfigError, match="--arch mine is registered with dict: register a subclass of cktk"):
        registered_family("mine")


def test_the_hint_is_the_name_to_choose_and_not_the_model_type() -> None:
    ARCHITECTURES.register("mine", StudentConfig)(OtherFamily)
    with pytest.raises(ConfigError, match="^--arch mine does not fit the teacher, .* mbart: use --arch mbart$"):
        registered_family("mine").check_type(MBartConfig(), "the teacher")
    config = BartConfig()
    config.model_type = "other"  # type: ignore[misc]
    with pytest.raises(ConfigError, match="whose model type is other: use --arch mine$"):
        BartFamily().check_type(config, "the teacher")


def test_shape() -> None:
    config = BartConfig(
        d_model=24, encoder_layers=2, decoder_layers=4, encoder_ffn_dim=32, decoder_ffn_dim=40,
        encoder_attention_heads=4, decoder_attention_heads=2, max_position_embeddings=16,
    )  # fmt: skip
    sides = {"encoder": SideShape(2, 32, 4), "decoder": SideShape(4, 40, 2)}
    assert BartFamily().shape(config) == ModelShape(24, sides, 16)  # type: ignore[arg-type]


def test_the_folder_that_a_path_means(tmp_path: Path) -> None:
    for name in ("checkpoint1", "checkpoint2"):
        (tmp_path / name / "student").mkdir(parents=True)
        (tmp_path / name / "student" / "config.json").touch()
    with pytest.raises(CheckpointError, match=r"no config\.json in this folder"):
        model_folder(tmp_path)
    for link, target in (("checkpoint_last", "checkpoint2"), ("checkpoint_best", "checkpoint1")):
        (tmp_path / link).symlink_to(target)
        assert model_folder(tmp_path) == tmp_path / link / "student"
    assert model_folder(tmp_path / "checkpoint2") == tmp_path / "checkpoint2" / "student"
    (tmp_path / "config.json").touch()
    assert model_folder(tmp_path) == tmp_path
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json"):
        model_folder(tmp_path, "tokenizer.json")
    assert model_folder("owner/name") == "owner/name"
