"""Sizes that are reckoned are those of models that were built."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BartConfig, BertConfig, MBartConfig, T5Config

from cktk.architectures.families.family import family_of
from cktk.architectures.sizing import StudentSizes
from cktk.protocols import Side

TEACHERS: dict[str, Any] = {
    "bart": BartConfig(),
    "mbart": MBartConfig(vocab_size=250_027, encoder_ffn_dim=512, decoder_ffn_dim=2048),
    "t5": T5Config(d_model=512, num_heads=6, d_kv=64, feed_forward_proj="gated-gelu", d_ff=1024),
    "t5-plain": T5Config(),
    "bert": BertConfig(architectures=["BertForMaskedLM"]),
    "bert-bare": BertConfig(architectures=["BertModel"]),
}


def sizes_of(kind: str) -> StudentSizes:
    teacher = TEACHERS[kind]
    if kind == "t5":
        teacher.tie_word_embeddings = False
    return StudentSizes(family_of(teacher.model_type, "the teacher"), teacher)


@pytest.mark.parametrize("kind", TEACHERS)
@settings(deadline=None, max_examples=3)
@given(width=st.sampled_from([64, 192, 512]), depth=st.tuples(st.integers(1, 7), st.integers(1, 7)))
def test_parameters_and_shape(kind: str, width: int, depth: tuple[int, int]) -> None:
    sizes = sizes_of(kind)
    layers: dict[Side, int] = dict(zip(sizes.teacher.shape.sides, depth, strict=False))
    found = sizes.of(width, layers)
    config = sizes.config(width, layers)
    family = family_of(config.model_type, "the student")
    with torch.device("meta"):
        model = family.build(config)
    assert found.parameters.total == sum(parameter.numel() for parameter in model.parameters())
    assert found.shape == family.shape(config)


def test_the_teacher_itself() -> None:
    assert sizes_of("bart").teacher.parameters.total == pytest.approx(406e6, abs=1e6)  # METHODS.md counts the same
    assert sizes_of("mbart").teacher.shape.sides["decoder"].ffn_width == 2048


@pytest.mark.parametrize(
    ("kind", "matrices", "rows"),
    [("bart", 2, 50_265), ("t5", 3, 32_128), ("t5-plain", 2, 32_128), ("bert", 2, 30_522), ("bert-bare", 2, 0)],
)
def test_matrices_and_rows(kind: str, matrices: int, rows: int) -> None:
    found = sizes_of(kind)
    assert (found.teacher.ffn_matrices, found.teacher.output_rows) == (matrices, rows)
    assert found.of(64, dict.fromkeys(found.teacher.shape.sides, 1)).ffn_matrices == matrices


def test_feed_forward_layers_as_wide_as_the_heads() -> None:
    teacher = BartConfig(d_model=64, encoder_ffn_dim=64, decoder_ffn_dim=64, encoder_layers=1, decoder_layers=1)
    assert StudentSizes(family_of("bart", "the teacher"), teacher).teacher.ffn_matrices == 2
