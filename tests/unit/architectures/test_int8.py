"""int8 weights: what they stand for, and folders that hold them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cktk.architectures.int8 import WEIGHTS, dequantised, quantised
from cktk.architectures.loading import load_model, load_tokenizer, write_int8_student
from cktk.errors import CheckpointError
from tests.unit.generation.models import tiny
from tests.unit.generation.students import bart_tokenizer


def test_rows_have_their_own_scale() -> None:
    weight = torch.tensor([[1.0, -2.0, 0.0], [1e-4, 5e-5, -1e-4], [0.0, 0.0, 0.0]])
    ints, scale = quantised(weight)
    assert ints.tolist() == [[64, -127, 0], [127, 64, -127], [0, 0, 0]]
    assert torch.allclose(scale, torch.tensor([2 / 127, 1e-4 / 127, 1.0]))
    assert ((dequantised(ints, scale) - weight).abs() <= scale[:, None] / 2 + 1e-9).all()


def test_twice_is_once() -> None:
    weight = torch.randn(40, 30, generator=torch.Generator().manual_seed(1))
    ints, scale = quantised(weight)
    again, same = quantised(dequantised(ints, scale))
    assert torch.equal(again, ints)
    assert torch.allclose(same, scale)


@pytest.mark.parametrize("kind", ["bart", "marian", "mbart", "t5", "flan"])
def test_a_folder_opens_as_what_it_stands_for(kind: str, tmp_path: Path) -> None:
    model = tiny(kind, 1, vocab_size=3000)
    write_int8_student(model, bart_tokenizer(), tmp_path)
    assert len(load_tokenizer(tmp_path)) == 24
    opened = load_model(tmp_path)
    assert not opened.training
    matrices = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Linear)}
    matrices.add(id(model.get_input_embeddings().weight))
    before, after = dict(model.named_parameters()), dict(opened.named_parameters())
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert after[name].dtype == torch.float32
        expected = dequantised(*quantised(tensor)) if id(tensor) in matrices else tensor
        assert torch.equal(after[name], expected), name
    assert (opened.lm_head.weight is opened.get_input_embeddings().weight) == (
        model.lm_head.weight is model.get_input_embeddings().weight
    )
    if kind == "bart":
        assert torch.equal(opened.final_logits_bias, model.final_logits_bias)
    assert opened.generation_config.to_dict() == model.generation_config.to_dict()
    model.save_pretrained(tmp_path / "fp32")
    small, whole = ((tmp_path / name).stat().st_size for name in (WEIGHTS, "fp32/model.safetensors"))
    assert small < 0.45 * whole  # rows are 16 wide here, so that scales weigh a quarter of the int8


def test_missing_and_damaged_weights(tmp_path: Path) -> None:
    write_int8_student(tiny("bart", 1), None, tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    del tensors["model.encoder.layers.0.fc1.bias"]
    save_file(tensors, tmp_path / WEIGHTS)
    with pytest.raises(CheckpointError, match=r"1 tensors are missing, model\.encoder\.layers\.0\.fc1\.bias"):
        load_model(tmp_path)
    (tmp_path / WEIGHTS).write_bytes(b"x" * 50)
    with pytest.raises(CheckpointError, match="weights cannot be loaded"):
        load_model(tmp_path)
