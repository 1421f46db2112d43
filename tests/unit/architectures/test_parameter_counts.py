"""Parameter counts printed in "Improving Language Model Distillation through Hidden State Matching", for every student
that has a name, on the meta device: neither teachers nor students of full size take memory or time there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import BartConfig, BertConfig, MBartConfig, T5Config

from cktk.architectures.configs import StudentConfig
from cktk.architectures.families.family import registered_family
from cktk.architectures.presets import STUDENTS
from cktk.architectures.spec import StudentSpec


def flan_t5_xl() -> Any:
    """Loaded, it has a head of its own; a configuration alone is tied in transformers 5."""
    config = T5Config(
        d_model=2048, d_ff=5120, num_layers=24, num_heads=32, feed_forward_proj="gated-gelu", tie_word_embeddings=False
    )
    config.tie_word_embeddings = False
    return config


TEACHERS: dict[str, Any] = {
    "bart": BartConfig(),
    "mbart": MBartConfig(vocab_size=250_027, scale_embedding=True),
    "t5": flan_t5_xl(),
    "bert": BertConfig(architectures=["BertForMaskedLM"]),
}

#: Millions as printed (BART-large, the distilBART rows and T5 12x768: as counted), and how far off a count may be.
PRINTED: dict[str, tuple[float, float]] = {
    "bart_6x640": (80, 1),
    "bart_6x768": (100, 1),
    "bart_12x768": (140, 1),
    "bart_24x768": (239, 1),
    "bart_2x1024": (83, 1),
    "bart_4x1024": (112, 1),
    "bart_6x1024": (142, 1),
    "bart_12x1024": (230, 1),
    "mbart_12x384": (122, 1),
    "mbart_12x512": (173, 1),
    "mbart_24x512": (217, 1),
    "mbart_24x640": (300, 1),
    "mbart_2x1024": (287, 1),
    "mbart_4x1024": (317, 1),
    "t5_12x768": (148.5, 0.1),
    "t5_24x768": (250, 0.025 * 250),
    "t5_24x1024": (425, 0.025 * 425),
    "t5_48x1024": (780, 0.025 * 780),
    "bert_6x384": (22.0, 1),
    "bert_12x384": (33.0, 1),
    "bert_8x512": (49.8, 1),
    "bert_12x512": (66.5, 1),
    "bert_4x768": (52.2, 1),
    "bert_6x768": (66.9, 1),
}


def millions(arch: str, spec: StudentSpec, **changes: Any) -> float:
    teacher = TEACHERS[arch]
    for name, value in changes.items():
        teacher = type(teacher).from_dict({**teacher.to_dict(), name: value})
    with torch.device("meta"):
        student = registered_family(arch).student(teacher, spec)
    assert all(parameter.is_meta for parameter in student.parameters())
    return sum(parameter.numel() for parameter in student.parameters()) / 1e6


def named(name: str) -> tuple[str, StudentSpec]:
    values = dict(STUDENTS[name].values)
    return values.pop("arch"), StudentSpec(**{size: int(text) for size, text in values.items()})


def test_every_name_has_a_figure() -> None:
    assert PRINTED.keys() == STUDENTS.keys()


@pytest.mark.parametrize("name", STUDENTS)
def test_students(name: str) -> None:
    printed, tolerance = PRINTED[name]
    assert millions(*named(name)) == pytest.approx(printed, abs=tolerance)


def test_t5_12x768_is_near_what_is_printed() -> None:
    assert millions(*named("t5_12x768")) == pytest.approx(145, rel=0.025)


@pytest.mark.parametrize(("arch", "printed"), [("bart", 406), ("mbart", 610), ("t5", 2850), ("bert", 109.5)])
def test_teachers(arch: str, printed: float) -> None:
    assert millions(arch, StudentSpec()) == pytest.approx(printed, abs=1)


def test_a_tied_t5_is_a_head_smaller() -> None:
    spec = named("t5_24x768")[1]
    untied = millions("t5", spec)
    tied = registered_family("t5")
    with torch.device("meta"):
        student = tied.student(T5Config(feed_forward_proj="gated-gelu"), spec)
    assert untied - sum(p.numel() for p in student.parameters()) / 1e6 == pytest.approx(32_128 * 768 / 1e6)


def test_fifty_languages_are_27_more_rows() -> None:
    """mBART-50 is a model of the same family with a language code instead of the mask, and 27 more of them."""
    spec = named("mbart_12x384")[1]
    more = millions("mbart", spec, vocab_size=250_054) - millions("mbart", spec)
    assert more * 1e6 == pytest.approx(27 * 384)


def test_a_name_sets_sizes_and_nothing_else() -> None:
    for name, preset in STUDENTS.items():
        arch, layers, width = name.replace("_", "x").split("x")
        values = preset.values
        assert (values["arch"], values["width"]) == (arch, width)
        total = int(values["encoder_layers"]) + int(values.get("decoder_layers", 0))
        assert total == int(layers)
        assert values.keys() <= {"arch", *StudentConfig.__dataclass_fields__}
        assert values.get("decoder_layers") == (None if arch == "bert" else values["encoder_layers"])
