"""Every tensor of every initialisation against an independent statement of where it comes from."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from cktk.architectures.families.family import families
from cktk.architectures.initialisation.initialise import initialise
from cktk.architectures.spec import StudentSpec
from cktk.errors import ConfigError
from tests.unit.architectures.models import make_model

#: Evenly spread layers with the first and the last, written out.
SPREAD = {
    (3, 2): [0, 1, 1],
    (4, 2): [0, 0, 1, 1],
    (2, 4): [0, 3],
    (6, 4): [0, 1, 1, 2, 2, 3],
}


def make_student(teacher: PreTrainedModel, **sizes: Any) -> PreTrainedModel:
    torch.manual_seed(9)
    return families()[teacher.config.model_type].student(teacher.config, StudentSpec(**sizes))


def tensors_of(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def layer_of(name: str) -> tuple[str, int] | None:
    parts = name.split(".")
    return (parts[1], int(parts[3])) if len(parts) > 3 and parts[2] == "layers" else None


def renumbered(name: str, layer: int) -> str:
    parts = name.split(".")
    parts[3] = str(layer)
    return ".".join(parts)


def assert_tied(model: Any) -> None:
    assert model.lm_head.weight is model.model.shared.weight
    assert model.model.encoder.embed_tokens.weight is model.model.shared.weight
    assert model.model.decoder.embed_tokens.weight is model.model.shared.weight


def test_random_leaves_the_student_as_built(kind: str) -> None:
    teacher = make_model(kind)
    student = make_student(teacher, width=12)
    before = tensors_of(student)
    initialise(student, "random", teacher=teacher)
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())
    assert student.model.encoder.layernorm_embedding.weight.eq(1).all()
    assert student.get_output_embeddings().weight.std().item() == pytest.approx(0.3, rel=0.2)  # the teacher's init_std
    assert_tied(student)


@pytest.mark.parametrize("depths", [(1, 2), (2, 4), (5, 7)])
def test_truncate_takes_leading_blocks_of_every_tensor(kind: str, depths: tuple[int, int]) -> None:
    teacher = make_model(kind)
    student: Any = make_student(
        teacher, width=18, encoder_layers=depths[0], decoder_layers=depths[1], ffn_width=20, heads=3, init="truncate"
    )
    initialise(student, "truncate", teacher=teacher)
    source, taken = teacher.state_dict(), student.state_dict()
    teacher_depth = {"encoder": 2, "decoder": 4}
    student_depth = dict(zip(("encoder", "decoder"), depths, strict=True))
    for name, tensor in taken.items():
        origin = name
        if found := layer_of(name):
            side, layer = found
            origin = renumbered(name, math.floor(layer * teacher_depth[side] / student_depth[side]))
        if tensor.dim() == 2 and "final_logits_bias" not in name:
            block = source[origin][: tensor.shape[0], : tensor.shape[1]]
        elif "final_logits_bias" in name:
            block = source[origin]
        else:
            block = source[origin][: len(tensor)]
        assert torch.equal(tensor, block), name
    # The tensors whose handling is easily got wrong, spelled out.
    assert torch.equal(student.lm_head.weight, teacher.model.shared.weight[:, :18])
    assert student.model.encoder.embed_positions.weight.shape == (16 + 2, 18)  # BART's offset of 2
    assert torch.equal(
        student.model.decoder.embed_positions.weight, teacher.model.decoder.embed_positions.weight[:, :18]
    )
    assert torch.equal(
        student.model.encoder.layernorm_embedding.bias, source["model.encoder.layernorm_embedding.bias"][:18]
    )
    assert torch.equal(student.final_logits_bias, teacher.final_logits_bias)
    assert student.model.encoder.layers[0].fc1.weight.shape == (20, 18)
    if kind == "mbart":
        assert torch.equal(student.model.decoder.layer_norm.weight, teacher.model.decoder.layer_norm.weight[:18])
        assert student.model.decoder.embed_tokens.embed_scale == pytest.approx(18**0.5)
    else:
        assert student.model.decoder.embed_tokens.embed_scale == 1
    assert_tied(student)


@pytest.mark.parametrize(("init", "encoder_layers", "decoder_layers"), [
    ("copy", 1, 2), ("copy", 3, 6), ("checkpoint", 4, 2), ("checkpoint", 1, 6),
])  # fmt: skip
def test_copy_and_checkpoint_take_whole_layers(kind: str, init: str, encoder_layers: int, decoder_layers: int) -> None:
    source_model = make_model(kind, decoder_ffn_dim=32, decoder_attention_heads=4)
    student = make_student(source_model, encoder_layers=encoder_layers, decoder_layers=decoder_layers)
    if init == "copy":
        initialise(student, "copy", teacher=source_model)
    else:
        initialise(student, "checkpoint", teacher=make_model(kind, seed=4), checkpoint=source_model)
    source = source_model.state_dict()
    maps = {
        "encoder": [0] if encoder_layers == 1 else SPREAD[encoder_layers, 2],
        "decoder": SPREAD[decoder_layers, 4],
    }
    for name, tensor in student.state_dict().items():
        found = layer_of(name)
        origin = renumbered(name, maps[found[0]][found[1]]) if found else name
        assert torch.equal(tensor, source[origin]), name
    assert_tied(student)


def test_a_copy_of_equal_depth_is_the_teacher(kind: str) -> None:
    teacher = make_model(kind)
    student = make_student(teacher)
    initialise(student, "copy", teacher=teacher)
    ids = torch.tensor([[0, 5, 9, 2]])
    assert torch.equal(
        student.eval()(input_ids=ids, decoder_input_ids=ids).logits,
        teacher(input_ids=ids, decoder_input_ids=ids).logits,
    )


def test_an_untied_teacher_gives_an_untied_student(kind: str) -> None:
    teacher = make_model(kind, tie_word_embeddings=False)
    student: Any = make_student(teacher, width=12, ffn_width=20)
    initialise(student, "truncate", teacher=teacher)
    assert student.lm_head.weight is not student.model.shared.weight
    assert torch.equal(student.lm_head.weight, teacher.lm_head.weight[:, :12])
    assert torch.equal(student.model.shared.weight, teacher.model.shared.weight[:, :12])


@pytest.mark.parametrize(
    ("sizes", "init", "message"),
    [
        (
            {"width": 12},
            "copy",
            r"^--init copy .* width is 12 in the student and 24 in the teacher: set --width 24, or",
        ),
        ({"ffn_width": 8}, "copy", r"encoder ffn_width is 8 .* --ffn-width 32"),
        ({"heads": 3}, "copy", r"encoder heads is 3 .* --heads 4"),
        ({"width": 12}, "checkpoint", r"^--init checkpoint .* 24 in the checkpoint: set --width 24$"),
        ({"width": 48}, "truncate", r"^--init truncate .* width is 48 .* --width 24 or less"),
        ({"ffn_width": 50}, "truncate", r"encoder ffn_width is 50 .* --ffn-width 32 or less"),
        ({}, "truncated", r"^--init truncated: unknown name; known: random, truncate, copy, checkpoint"),
    ],
)
def test_sizes_that_do_not_fit(kind: str, sizes: dict[str, Any], init: str, message: str) -> None:
    teacher = make_model(kind)
    student = make_student(teacher, **sizes)
    before = tensors_of(student)
    with pytest.raises(ConfigError, match=message):
        initialise(student, init, teacher=teacher, checkpoint=teacher)
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())


def test_a_source_with_other_ids_or_of_another_family_is_refused() -> None:
    student = make_student(make_model("bart"))
    for source, message in (
        (make_model("bart", vocab_size=42), "vocab_size is 41 in the student but 42 in the checkpoint"),
        (make_model("bart", max_position_embeddings=9), "number of positions is 16"),
        (make_model("mbart"), "model_type is bart in the student but mbart"),
    ):
        with pytest.raises(ConfigError, match=message):
            initialise(student, "checkpoint", checkpoint=source)


@pytest.mark.parametrize(
    ("init", "flag"), [("truncate", "--teacher"), ("copy", "--teacher"), ("checkpoint", "--init-checkpoint")]
)
def test_a_source_is_needed(init: str, flag: str) -> None:
    with pytest.raises(ConfigError, match=f"^--init {init} .*give {flag}$"):
        initialise(make_model("bart"), init)
