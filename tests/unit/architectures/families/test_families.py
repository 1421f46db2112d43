"""Configurations, sizes and generation settings of the families."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import BartConfig, GenerationConfig, MBartConfig

from cktk.architectures.configs import StudentConfig
from cktk.architectures.families.bart import BartFamily
from cktk.architectures.families.mbart import MBartFamily
from cktk.architectures.spec import StudentSpec, choose_heads
from cktk.config.command import Command
from cktk.config.options import options_of
from cktk.errors import ConfigError
from cktk.protocols import Template
from cktk.registry import ARCHITECTURES
from tests.unit.architectures.models import make_model

BART_LARGE = BartConfig()
MBART_LARGE = MBartConfig(vocab_size=250_027, scale_embedding=True)


def test_the_teacher_config_is_not_touched_and_what_is_not_resized_is_kept() -> None:
    teacher = MBartConfig(
        vocab_size=250_054,
        scale_embedding=True,
        max_position_embeddings=77,
        activation_function="relu",
        encoder_layerdrop=0.2,
        dropout=0.3,
        attention_dropout=0.25,
        dtype="float16",
    )
    before = teacher.to_dict()
    config: Any = MBartFamily().student_config(teacher, StudentSpec(width=384, encoder_layers=3, decoder_layers=14))
    assert teacher.to_dict() == before
    assert (config.d_model, config.encoder_layers, config.decoder_layers) == (384, 3, 14)
    assert (config.encoder_ffn_dim, config.decoder_ffn_dim) == (1536, 1536)
    assert (config.encoder_attention_heads, config.decoder_attention_heads) == (6, 6)
    assert (config.vocab_size, config.max_position_embeddings, config.activation_function) == (250_054, 77, "relu")
    assert (config.dropout, config.attention_dropout, config.encoder_layerdrop) == (0.3, 0.25, 0)
    with torch.device("meta"):
        student: Any = MBartFamily().build(config)
    assert type(student).__name__ == "MBartForConditionalGeneration"
    assert student.dtype == torch.float32
    assert student.config.dtype is None
    assert student.training
    assert student.model.encoder.embed_tokens.embed_scale == 384**0.5
    assert student.lm_head.weight is student.model.shared.weight


def test_an_empty_spec_gives_the_teachers_sizes() -> None:
    teacher: Any = make_model("bart").config
    config: Any = BartFamily().student_config(teacher, StudentSpec())
    for name in ("d_model", "encoder_layers", "decoder_layers", "encoder_ffn_dim", "decoder_ffn_dim"):
        assert getattr(config, name) == getattr(teacher, name), name
    assert (config.encoder_attention_heads, config.decoder_attention_heads) == (4, 2)


def test_flags_win_over_the_teacher() -> None:
    spec = StudentSpec.of(
        StudentConfig(width=30, encoder_layers=1, decoder_layers=2, ffn_width=7, heads=5, dropout=0.0, init="truncate")
    )
    assert spec == StudentSpec(30, 1, 2, 7, 5, "truncate", 0.0)
    config: Any = BartFamily().student_config(BartConfig(), spec)
    assert (config.encoder_ffn_dim, config.decoder_ffn_dim, config.dropout) == (7, 7, 0.0)
    assert (config.encoder_attention_heads, config.decoder_attention_heads) == (5, 5)


@given(st.integers(1, 2048), st.sampled_from([32, 64, 80, 128]))
def test_default_heads_divide_the_width(width: int, head_width: int) -> None:
    heads = choose_heads(None, width, head_width)
    assert width % heads == 0
    if width % head_width == 0:
        assert heads == width // head_width


def test_heads_near_the_teachers_width_where_it_does_not_divide() -> None:
    assert choose_heads(None, 96, 64) == 2  # 48 is nearer to 64 than 96 is
    assert choose_heads(None, 100, 64) == 2
    assert choose_heads(None, 7, 64) == 1
    assert choose_heads(None, 105, 64) == 1  # in ratio 105 is nearer than 35, though farther in difference


@pytest.mark.parametrize(("heads", "near"), [(5, "4 or 6"), (500, "384"), (7, "6 or 8")])
def test_heads_that_do_not_divide_are_refused_with_a_suggestion(heads: int, near: str) -> None:
    with pytest.raises(ConfigError, match=f"^--heads {heads} does not divide --width 384: choose {near}$"):
        BartFamily().student_config(BART_LARGE, StudentSpec(width=384, heads=heads))


def test_a_teacher_of_another_family_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--arch bart .* mbart: use --arch mbart"):
        BartFamily().student_config(MBART_LARGE, StudentSpec())
    with pytest.raises(ConfigError, match=r"--arch mbart .* bart: use --arch bart"):
        MBartFamily().student_config(BART_LARGE, StudentSpec())


@pytest.mark.parametrize("family", [BartFamily(), MBartFamily()])
def test_training_from_scratch(family: BartFamily) -> None:
    spec = StudentSpec(width=128, encoder_layers=2, decoder_layers=1)
    ids: dict[str, Any] = {"vocab_size": 50, "pad": 3, "bos": None, "eos": 1, "max_positions": 20}
    config: Any = family.base_config(**ids, spec=spec)
    assert (config.vocab_size, config.pad_token_id, config.eos_token_id, config.bos_token_id) == (50, 3, 1, None)
    assert (config.encoder_attention_heads, config.decoder_ffn_dim, config.dropout) == (2, 512, 0.1)
    assert config.scale_embedding == (family.model_type == "mbart")
    assert family.decoder_start(config) == (1 if family.model_type == "bart" else None)
    assert family.build(config).model.encoder.embed_positions.weight.shape == (22, 128)  # type: ignore[union-attr]
    for missing, flag in (("width", "--width"), ("encoder_layers", "--encoder-layers")):
        with pytest.raises(ConfigError, match=f"^{flag} is needed"):
            family.base_config(**ids, spec=StudentSpec(**{**vars(spec), missing: None}))
    with pytest.raises(ConfigError, match="--heads 3"):
        family.base_config(**ids, spec=StudentSpec(**{**vars(spec), "heads": 3}))


def test_generation_settings_of_a_bart_student_come_from_the_teacher() -> None:
    student = make_model("bart")
    inherited = GenerationConfig(num_beams=4, max_length=14, forced_bos_token_id=0, decoder_start_token_id=2)
    BartFamily().set_generation(student, inherited, Template((0,), (2,)))
    settings = student.generation_config
    assert settings is not inherited
    assert (settings.num_beams, settings.max_length, settings.forced_bos_token_id) == (4, 14, 0)
    assert (settings.pad_token_id, settings.eos_token_id, settings.forced_eos_token_id) == (1, 2, 2)
    assert inherited.pad_token_id is None


def test_without_a_teacher_generation_is_not_cut_at_transformers_default() -> None:
    student: Any = make_model("bart")
    BartFamily().set_generation(student)
    assert student.generation_config.max_length == 16
    assert student.generation_config.decoder_start_token_id == 2
    assert student.generate(torch.tensor([[0, 5, 2]])).shape[1] <= 16


@pytest.mark.parametrize(
    ("template", "start", "forced"), [(Template((), (2, 40)), 40, None), (Template((40,), (2,)), 2, 40)]
)
def test_mbart_starts_with_its_target_language(template: Template, start: int, forced: int | None) -> None:
    """25 languages: the code ends the labels and so starts the decoder; 50: `</s>` does, and the code is forced."""
    student: Any = make_model("mbart")
    MBartFamily().set_generation(student, GenerationConfig(forced_bos_token_id=7), template)
    settings = student.generation_config
    assert (settings.decoder_start_token_id, settings.forced_bos_token_id) == (start, forced)
    generated = student.generate(torch.tensor([[5, 6, 2, 39]]), num_beams=2)[0]
    assert generated[0] == start
    if forced is not None:
        assert generated[1] == forced

    labels = torch.tensor([[*template.prefix, 8, 9, *template.suffix]])
    assert student.prepare_decoder_input_ids_from_labels(labels)[0, 0] == start


def test_mbart_keeps_the_teachers_start_when_no_language_is_given() -> None:
    student: Any = make_model("mbart")
    MBartFamily().set_generation(student, GenerationConfig(decoder_start_token_id=39))
    assert student.generation_config.decoder_start_token_id == 39


@pytest.mark.parametrize("name", ["bart", "mbart"])
def test_the_registry_and_the_flags_lead_here(name: str) -> None:
    config = ARCHITECTURES.config(name)
    assert config is StudentConfig
    assert ARCHITECTURES.target(name)().model_type == name
    assert all(option.meta("help") for option in options_of(config))
    settings = Command("x", "x", [StudentConfig]).parse(["--width", "384", "--init", "truncate", "--heads", "6"])
    student = settings.section(StudentConfig)
    assert (student.width, student.heads, student.init, student.dropout) == (384, 6, "truncate", None)
    with pytest.raises(ConfigError, match=r"--init.*did you mean truncate"):
        Command("x", "x", [StudentConfig]).parse(["--init", "trunc"])
