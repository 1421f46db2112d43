"""T5 and mT5: sizes, tied and untied heads, initialisation, generation settings."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSeq2SeqLM, GenerationConfig, MT5Config, PreTrainedModel, T5Config

from cktk.architectures.families.family import family_of
from cktk.architectures.families.t5 import MT5Family, T5Family
from cktk.architectures.fingerprint import model_fingerprint
from cktk.architectures.initialisation import initialise as initialising
from cktk.architectures.initialisation.averaging import average_students
from cktk.architectures.initialisation.initialise import initialise
from cktk.architectures.loading import load_config, load_model, save_student
from cktk.architectures.spec import StudentSpec
from cktk.errors import CheckpointError, ConfigError
from cktk.hub import build_student
from cktk.protocols import ModelShape, SideShape
from tests.unit.architectures.models import T5_KINDS, make_t5
from tests.unit.architectures.test_loading import make_tokenizer

IDS = {"input_ids": torch.tensor([[5, 7, 9, 1]]), "decoder_input_ids": torch.tensor([[0, 8, 30]])}
FLAN_XL = T5Config(
    d_model=2048, d_ff=5120, num_layers=24, num_heads=32, feed_forward_proj="gated-gelu", tie_word_embeddings=False
)
BIAS = "block.0.layer.0.SelfAttention.relative_attention_bias.weight"


@pytest.fixture(params=T5_KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def make_student(teacher: PreTrainedModel, **sizes: Any) -> Any:
    torch.manual_seed(9)
    return family_of(teacher.config.model_type, "teacher").student(teacher.config, StudentSpec(**sizes))


def is_tied(model: Any) -> bool:
    """Whether the head is the embedding; what the two stacks embed with always is."""
    assert model.encoder.embed_tokens.weight is model.shared.weight
    assert model.decoder.embed_tokens.weight is model.shared.weight
    assert model.config.tie_word_embeddings == (model.lm_head.weight is model.shared.weight)
    return bool(model.config.tie_word_embeddings)


# Sizes


def test_shape() -> None:
    config = T5Config(d_model=24, d_kv=8, d_ff=32, num_layers=2, num_decoder_layers=5, num_heads=4)
    sides = {"encoder": SideShape(2, 32, 4, 32), "decoder": SideShape(5, 32, 4, 32)}
    assert T5Family().shape(config) == ModelShape(24, sides, None)


def test_sizes_of_a_student() -> None:
    teacher = copy.deepcopy(FLAN_XL)
    before = teacher.to_dict()
    spec = StudentSpec(width=768, encoder_layers=3, decoder_layers=30, ffn_width=2048, dropout=0.2)
    config: Any = T5Family().student_config(teacher, spec)
    assert teacher.to_dict() == before
    assert (config.d_model, config.num_layers, config.num_decoder_layers, config.d_ff) == (768, 3, 30, 2048)
    assert (config.num_heads, config.d_kv, config.dropout_rate) == (12, 64, 0.2)
    assert (config.is_gated_act, config.dense_act_fn, config.dtype) == (True, "gelu_new", None)


@pytest.mark.parametrize(
    ("spec", "heads", "head_width"),
    [
        ({}, 6, 64),  # the teacher's, though they are not as wide as the model together
        ({"heads": 6}, 6, 64),
        ({"head_width": 64}, 8, 64),
        ({"heads": 8}, 8, 64),
        ({"heads": 4}, 4, 128),
        ({"heads": 3, "head_width": 40}, 3, 40),
        ({"width": 320}, 5, 64),
        ({"width": 96}, 2, 48),
        ({"width": 320, "head_width": 32}, 10, 32),
    ],
)
def test_heads(spec: dict[str, int], heads: int, head_width: int) -> None:
    teacher = T5Config(d_model=512, num_heads=6, d_kv=64)
    config: Any = T5Family().student_config(teacher, StudentSpec(**spec))  # type: ignore[arg-type]
    assert (config.num_heads, config.d_kv) == (heads, head_width)


def test_heads_that_do_not_divide() -> None:
    for spec, message in (
        (StudentSpec(width=320, heads=6), "^--heads 6 does not divide --width 320: choose 5 or 8$"),
        (StudentSpec(width=320, head_width=48), "^--head-width 48 does not divide --width 320: choose 40 or 64$"),
    ):
        with pytest.raises(ConfigError, match=message):
            T5Family().student_config(FLAN_XL, spec)


@pytest.mark.parametrize(("width", "gated", "expected"), [(768, True, 2048), (512, True, 1408), (768, False, 3072)])
def test_default_feed_forward_width(width: int, gated: bool, expected: int) -> None:
    teacher = T5Config(d_model=1024, d_ff=2816, feed_forward_proj="gated-gelu" if gated else "relu")
    config: Any = T5Family().student_config(teacher, StudentSpec(width=width))
    assert config.d_ff == expected
    same: Any = T5Family().student_config(teacher, StudentSpec(width=1024))
    assert same.d_ff == 2816


def test_a_teacher_of_another_family_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--arch t5 .* mt5: use --arch mt5"):
        T5Family().student_config(MT5Config(), StudentSpec())


# Tied and untied heads


def test_a_student_is_tied_where_its_teacher_is(kind: str) -> None:
    student = make_student(make_t5(kind), width=16, encoder_layers=1)
    assert is_tied(student) == (kind == "t5")
    assert student.lm_head.weight.shape == (41, 16) and student.lm_head.weight.requires_grad
    assert student.dtype == torch.float32 and student.training


@pytest.mark.parametrize("kind", ["t5", "t5-v1.1"])
@pytest.mark.parametrize("tied", [True, False])
def test_tying_and_scaling_are_two_things(kind: str, tied: bool, tmp_path: Path) -> None:
    """Both survive saving, with transformers and here; so do a student's."""
    for model in (make_t5(kind, tied=tied), make_student(make_t5(kind, tied=tied), width=16)):
        folder = tmp_path / str(model.config.d_model)
        save_student(model, None, folder)
        written = json.loads((folder / "config.json").read_text())
        assert (written["tie_word_embeddings"], written["scale_decoder_outputs"]) == (tied, kind == "t5")
        loaded, reopened = load_model(folder), AutoModelForSeq2SeqLM.from_pretrained(folder)
        assert is_tied(loaded) == tied
        assert (reopened.lm_head.weight is reopened.shared.weight) == tied
        assert torch.equal(loaded(**IDS).logits, model.eval()(**IDS).logits)
        assert torch.equal(reopened(**IDS).logits, model(**IDS).logits)
        assert load_config(folder).tie_word_embeddings == tied
        assert model_fingerprint(loaded) == model_fingerprint(model)


def test_weights_decide_about_the_head_and_not_the_file(kind: str, tmp_path: Path) -> None:
    """What transformers 5 itself writes says "tied" of every model; Flan-T5's files say "untied"."""
    for tied, said in ((True, True), (False, True), (False, False)):
        folder = tmp_path / f"{tied}-{said}"
        save_student(make_t5(kind, tied=tied), None, folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": said}))
        assert is_tied(load_model(folder)) == tied


def test_a_model_without_its_head_is_refused(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    save_student(make_t5(kind, tied=False), None, folder)
    weights = load_file(folder / "model.safetensors")
    equal = {**weights, "lm_head.weight": weights["shared.weight"].clone()}
    save_file(equal, folder / "model.safetensors", metadata={"format": "pt"})
    assert torch.equal(load_model(folder).get_output_embeddings().weight, weights["shared.weight"])
    del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="has no output head"):
        load_model(folder)


def test_untied_heads_survive_resizing_copying_and_retying(tmp_path: Path) -> None:
    model: Any = make_student(make_t5("t5-v1.1"), width=16)
    head = model.lm_head.weight
    model.tie_weights()
    assert not is_tied(model) and model.lm_head.weight is head
    assert not is_tied(copy.deepcopy(model))
    model.resize_token_embeddings(50)
    assert not is_tied(model)
    assert model.lm_head.weight.shape == model.shared.weight.shape == (50, 16)
    assert torch.equal(model.lm_head.weight[:41], head)
    again = T5Family().student(model.config, StudentSpec())
    again.load_state_dict(model.state_dict())
    assert not is_tied(again)
    assert torch.equal(again.eval()(**IDS).logits, model.eval()(**IDS).logits)
    save_student(model, None, tmp_path / "resized")
    assert not is_tied(load_model(tmp_path / "resized"))


def test_students_of_loaded_teachers_and_averages_of_students_stay_untied(tmp_path: Path) -> None:
    save_student(make_t5("mt5"), make_tokenizer(), tmp_path / "teacher")
    student = build_student(
        "mt5", width=16, encoder_layers=1, decoder_layers=2, ffn_width=20, teacher=tmp_path / "teacher", init="truncate"
    )
    assert not is_tied(student)
    save_student(student, make_tokenizer(), tmp_path / "student")
    average_students([tmp_path / "student", tmp_path / "student"], tmp_path / "average")
    average: Any = load_model(tmp_path / "average")
    assert not is_tied(average)
    assert torch.equal(average.lm_head.weight, student.lm_head.weight)


def test_a_random_head_gives_logits_of_unit_size() -> None:
    for kind, scale in (("t5-v1.1", 24**-0.5), ("mt5", 24**-0.5)):
        student = make_student(make_t5(kind))
        assert student.lm_head.weight.std().item() == pytest.approx(scale, rel=0.1)
    scaled = make_student(make_t5("t5", tied=False))
    assert scaled.lm_head.weight.std().item() == pytest.approx(1, rel=0.1)


def test_loading_prints_nothing(kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    save_student(make_t5(kind), None, tmp_path / "model")
    load_model(tmp_path / "model")
    assert capfd.readouterr() == ("", "")


# Initialisation


def origin(name: str, layers: dict[str, list[int]]) -> str:
    """The teacher's tensor for the student's ``name``; the position bias is always that of the first block."""
    side, block, *rest = name.split(".")
    if block != "block" or name.endswith("relative_attention_bias.weight"):
        return name
    return ".".join([side, block, str(layers[side][int(rest[0])]), *rest[1:]])


@pytest.mark.parametrize("depths", [(1, 3), (5, 7)])
def test_truncate_takes_leading_blocks_of_every_tensor(kind: str, depths: tuple[int, int]) -> None:
    teacher = make_t5(kind)
    student = make_student(
        teacher, width=16, encoder_layers=depths[0], decoder_layers=depths[1], ffn_width=20, heads=3, head_width=8
    )
    initialise(student, "truncate", teacher=teacher)
    source = teacher.state_dict()
    layers = {
        "encoder": [index * 2 // depths[0] for index in range(depths[0])],
        "decoder": [index * 4 // depths[1] for index in range(depths[1])],
    }
    names = student.state_dict()
    for name, tensor in names.items():
        block = source[origin(name, layers)]
        assert torch.equal(tensor, block[tuple(slice(size) for size in tensor.shape)]), name
    assert sum("relative_attention_bias" in name for name in names) == 2
    for side in ("encoder", "decoder"):
        assert torch.equal(names[f"{side}.{BIAS}"], source[f"{side}.{BIAS}"][:, :3])
    assert is_tied(student) == (kind == "t5")


@pytest.mark.parametrize("init", ["copy", "checkpoint"])
def test_whole_layers_are_taken(kind: str, init: str) -> None:
    source = make_t5(kind)
    student = make_student(source, encoder_layers=1, decoder_layers=6)
    initialise(student, init, **{"teacher" if init == "copy" else "checkpoint": source})
    layers = {"encoder": [0], "decoder": [0, 1, 1, 2, 2, 3]}
    tensors = source.state_dict()
    for name, tensor in student.state_dict().items():
        assert torch.equal(tensor, tensors[origin(name, layers)]), name


def test_the_position_bias_is_the_first_blocks_whatever_layer_the_first_is_taken_from(kind: str) -> None:
    teacher, student = make_t5(kind), make_student(make_t5(kind, seed=3))
    initialising._fill(student, teacher, lambda ours, theirs: [theirs - 1] * ours)
    ours, theirs = student.state_dict(), teacher.state_dict()
    for side, last in (("encoder", 1), ("decoder", 3)):
        assert torch.equal(ours[f"{side}.{BIAS}"], theirs[f"{side}.{BIAS}"])
        name = "block.{}.layer.0.SelfAttention.q.weight"
        assert torch.equal(ours[f"{side}.{name.format(0)}"], theirs[f"{side}.{name.format(last)}"])


def test_a_copy_of_equal_depth_is_the_teacher(kind: str) -> None:
    teacher = make_t5(kind)
    student = make_student(teacher)
    initialise(student, "copy", teacher=teacher)
    assert torch.equal(student.eval()(**IDS).logits, teacher(**IDS).logits)


@pytest.mark.parametrize(
    ("sizes", "init", "message"),
    [
        ({"heads": 5, "head_width": 4}, "truncate", r"encoder heads is 5 .* only 4 in the teacher: set --heads 4 or"),
        ({"heads": 4, "head_width": 9}, "truncate", r"encoder attention width is 36 .* only 32 "),
        ({"heads": 2, "head_width": 16}, "copy", r"encoder heads is 2 .* --heads 4"),
        ({"ffn_width": 8}, "checkpoint", r"encoder ffn_width is 8 .* --ffn-width 32"),
    ],
)
def test_sizes_that_do_not_fit(kind: str, sizes: dict[str, Any], init: str, message: str) -> None:
    teacher = make_t5(kind)
    with pytest.raises(ConfigError, match=message):
        initialise(make_student(teacher, **sizes), init, teacher=teacher, checkpoint=teacher)


def test_what_has_to_agree_with_a_checkpoint() -> None:
    student = make_student(make_t5("t5"))
    for other, message in (
        (make_t5("t5", tied=False), "tie_word_embeddings is True in the student but False in the checkpoint"),
        (make_t5("t5", feed_forward_proj="gated-gelu"), "feed_forward_proj is relu"),
        (make_t5("t5", relative_attention_num_buckets=16), "num_buckets is 8 in the student but 16"),
    ):
        with pytest.raises(ConfigError, match=message):
            initialise(student, "checkpoint", checkpoint=other)


# Training from scratch, and generation


@pytest.mark.parametrize("family", [T5Family(), MT5Family()])
def test_training_from_scratch(family: T5Family, tmp_path: Path) -> None:
    spec = StudentSpec(width=128, encoder_layers=2, decoder_layers=1)
    ids: dict[str, Any] = {"vocab_size": 50, "pad": 3, "bos": None, "eos": 1, "max_positions": 20}
    config: Any = family.base_config(**ids, spec=spec)
    assert (config.vocab_size, config.pad_token_id, config.eos_token_id, config.bos_token_id) == (50, 3, 1, None)
    assert (config.num_heads, config.d_kv, config.d_ff, config.dropout_rate) == (2, 64, 384, 0.1)
    assert family.decoder_start(config) == 3 and config.decoder_start_token_id == 3
    model = family.build(config)
    assert not is_tied(model)
    assert family.adapter(model).head().scale == 1
    assert model(**IDS).logits.std() < 3
    family.set_generation(model)
    assert model.generation_config.max_length == 20
    save_student(model, None, tmp_path / "model")
    assert load_config(tmp_path / "model").n_positions == 20
    for missing, flag in (("width", "--width"), ("decoder_layers", "--decoder-layers")):
        with pytest.raises(ConfigError, match=f"^{flag} is needed"):
            family.base_config(**ids, spec=StudentSpec(**{**vars(spec), missing: None}))


def test_generation_settings_are_the_teachers_completed(kind: str) -> None:
    student: Any = make_student(make_t5(kind))
    inherited = GenerationConfig(num_beams=3, max_length=14)
    family_of(student.config.model_type, "student").set_generation(student, inherited)
    settings = student.generation_config
    assert settings is not inherited and inherited.pad_token_id is None
    assert (settings.num_beams, settings.max_length, settings.decoder_start_token_id) == (3, 14, 0)
    assert (settings.pad_token_id, settings.eos_token_id) == (0, 1)
    assert student.generate(torch.tensor([[5, 7, 1]])).shape[1] <= 14


def test_a_configuration_that_names_no_decoder_start_starts_with_the_pad() -> None:
    assert T5Family().decoder_start(T5Config(pad_token_id=7)) == 7
    student = T5Family().student(T5Config(vocab_size=20, d_model=8, d_ff=8, num_layers=1, num_heads=1), StudentSpec())
    T5Family().set_generation(student)
    assert student.generation_config.decoder_start_token_id == 0
    assert student.generation_config.max_length == 512


def test_frozen_embeddings_leave_a_head_of_its_own() -> None:
    tied, untied = make_t5("t5"), make_t5("mt5")
    assert T5Family().embeddings(tied)[0] is tied.lm_head.weight
    assert [weight is untied.lm_head.weight for weight in MT5Family().embeddings(untied)] == [False]


@pytest.mark.parametrize("arch", ["t5", "mt5"])
def test_students_without_a_teacher(arch: str) -> None:
    student = build_student(arch, width=16, encoder_layers=1, decoder_layers=2, heads=3, head_width=4, vocab_size=50)
    assert not is_tied(student)
    assert (student.config.num_heads, student.config.d_kv, student.config.d_ff) == (3, 4, 64)
    assert student.generation_config.max_length == 1024


def test_students_by_name(tmp_path: Path) -> None:
    save_student(make_t5("t5"), make_tokenizer(), tmp_path / "teacher")
    student = build_student("t5_24x768", teacher=tmp_path / "teacher", width=16, encoder_layers=1)
    assert T5Family().shape(student.config) == ModelShape(
        16, {"encoder": SideShape(1, 2048, 2, 16), "decoder": SideShape(12, 2048, 2, 16)}, None
    )
