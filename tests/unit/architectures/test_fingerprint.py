from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cktk.architectures.fingerprint import model_fingerprint
from cktk.architectures.loading import load_model, save_student
from tests.unit.architectures.models import make_model


@pytest.mark.parametrize("kind", ["bart", "mbart"])
def test_it_survives_saving(kind: str, tmp_path: Path) -> None:
    model = make_model(kind)
    save_student(model, None, tmp_path / "model")
    assert model_fingerprint(load_model(tmp_path / "model")) == model_fingerprint(model)


def test_every_tensor_and_the_configuration_enter() -> None:
    model: Any = make_model("bart")
    seen = {model_fingerprint(model)}
    tensors = [*dict(model.named_parameters()).values(), model.final_logits_bias]
    for tensor in tensors:
        with torch.no_grad():
            tensor.view(-1)[-1] += 0.5
        seen.add(model_fingerprint(model))
    model.config.activation_function = "relu"
    seen.add(model_fingerprint(model))
    assert len(seen) == len(tensors) + 2


def test_where_it_lay_does_not_enter() -> None:
    model: Any = make_model("bart")
    before = model_fingerprint(model)
    model.config._name_or_path = "elsewhere"
    model.config.architectures = ["Other"]
    assert model_fingerprint(model) == before
