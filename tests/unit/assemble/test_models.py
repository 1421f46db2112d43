"""What is frozen, and which models are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel

from cktk.architectures.families.family import families
from cktk.architectures.loading import save_student
from cktk.assemble.models import ModelLoader, freeze
from cktk.engine.configs import UpdateConfig
from cktk.errors import CheckpointError, ConfigError
from tests.unit.architectures.models import make_model
from tests.unit.generation.models import tiny_model
from tests.unit.generation.students import bart_tokenizer, data_bin
from tests.unit.generation.students import save_student as save_tiny


def frozen(kind: str, tied: bool, **flags: bool) -> tuple[PreTrainedModel, set[str]]:
    """A model frozen as ``flags`` say, and the names of its parameters that do not train (aliases left out)."""
    model = make_model(kind, tie_word_embeddings=tied)
    freeze(families()[kind], model, UpdateConfig(max_update=1, **flags))
    return model, {name for name, parameter in model.named_parameters() if not parameter.requires_grad}


@pytest.mark.parametrize("kind", ["bart", "mbart"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_frozen_encoder_is_all_of_it_but_what_others_use(kind: str, tied: bool) -> None:
    model: Any
    model, found = frozen(kind, tied, freeze_encoder=True)
    used = {id(p) for p in (*model.model.decoder.parameters(), *model.lm_head.parameters())}
    inside = {id(p): name for name, p in model.named_parameters() if id(p) in map(id, model.model.encoder.parameters())}
    assert {name for key, name in inside.items() if key not in used} == found
    assert {"model.encoder.embed_positions.weight", "model.encoder.layernorm_embedding.bias"} <= found
    assert "model.encoder.layers.1.fc2.weight" in found
    assert model.lm_head.weight.requires_grad
    assert model.model.decoder.embed_tokens.weight.requires_grad


def test_frozen_embeddings() -> None:
    model, found = frozen("bart", True, freeze_embeddings=True)
    names = {"model.shared.weight", "model.encoder.embed_positions.weight", "model.decoder.embed_positions.weight"}
    assert found == names
    assert not model.get_output_embeddings().weight.requires_grad  # type: ignore[no-untyped-call, union-attr]


def test_both() -> None:
    model, found = frozen("mbart", True, freeze_embeddings=True, freeze_encoder=True)
    encoder = {name for name, _ in model.named_parameters() if name.startswith("model.encoder.")}
    assert found == encoder | {"model.shared.weight", "model.decoder.embed_positions.weight"}


def test_nothing_is_frozen_by_default() -> None:
    assert frozen("bart", True)[1] == set()


def test_a_loaded_model_shares_family_and_vocabulary_with_the_run(tmp_path: Path) -> None:
    good = save_tiny(tmp_path / "good")
    data = data_bin(tmp_path / "bin", good, [("a b", "b a")])
    load = ModelLoader(families()["bart"], data, allow_bin_weights=False)
    assert load("the teacher", good).config.vocab_size == data.vocab_size
    tokenizer = bart_tokenizer()
    save_student(tiny_model("mbart", 1, vocab_size=data.vocab_size), tokenizer, tmp_path / "mbart")
    with pytest.raises(ConfigError, match="--arch bart does not fit the init checkpoint, .* use --arch mbart"):
        load("the init checkpoint", tmp_path / "mbart")
    save_tiny(tmp_path / "other")
    file = tmp_path / "other" / "tokenizer.json"
    file.write_text(file.read_text().replace('"▁a"', '"▁A"'), encoding="utf-8")
    with pytest.raises(ConfigError, match="unknown in the teacher .*other: preprocess"):
        load("the teacher", tmp_path / "other")
    weights = tmp_path / "good" / "model.safetensors"
    weights.rename(weights.with_name("pytorch_model.bin"))
    with pytest.raises(CheckpointError, match="--allow-bin-weights"):
        load("the teacher", good)
