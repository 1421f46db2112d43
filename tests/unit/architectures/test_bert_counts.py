"""Parameter counts of encoder-only models on the meta device, where models of full size take no memory: by head, by
hand, and of DistilBERT's own kind. Students with a name are counted in test_parameter_counts.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import BertConfig, DistilBertConfig, RobertaConfig

from cktk.architectures.configs import HeadKind
from cktk.architectures.families.bert import BertFamily
from cktk.architectures.families.distilbert import DistilBertFamily
from cktk.architectures.families.encoder_family import EncoderFamily
from cktk.architectures.families.roberta import RobertaFamily
from cktk.architectures.spec import StudentSpec

BERT_BASE = BertConfig(architectures=["BertForMaskedLM"])
DISTILBERT_BASE = DistilBertConfig(architectures=["DistilBertForMaskedLM"])
ROBERTA_BASE = RobertaConfig(architectures=["RobertaForMaskedLM"], max_position_embeddings=514, type_vocab_size=1)


def millions(family: EncoderFamily, teacher: Any, **sizes: Any) -> float:
    with torch.device("meta"):
        student = family.student(teacher, StudentSpec(**sizes))
    return sum(parameter.numel() for parameter in student.parameters()) / 1e6


@pytest.mark.parametrize(("layers", "printed"), [(4, 52.2), (6, 66.9)])
def test_distilbert_of_the_paper(layers: int, printed: float) -> None:
    assert millions(DistilBertFamily(), DISTILBERT_BASE, encoder_layers=layers) == pytest.approx(printed, abs=1)


@pytest.mark.parametrize(("head", "expected"), [("masked_lm", 22.75), ("classification", 22.71), ("bare", 22.71)])
def test_heads_of_bert_6x384(head: HeadKind, expected: float) -> None:
    """With transform and bias of the vocabulary, or with the pooler."""
    found = millions(BertFamily(), BERT_BASE, width=384, encoder_layers=6, head=head)
    assert found == pytest.approx(expected, abs=0.01)


def test_teachers_of_full_size() -> None:
    assert millions(BertFamily(), BERT_BASE) == pytest.approx(109.5, abs=0.1)
    assert millions(BertFamily(), BERT_BASE, head="bare") == pytest.approx(109.48, abs=0.01)
    assert millions(RobertaFamily(), ROBERTA_BASE) == pytest.approx(124.7, abs=0.1)
    large = BertConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096)
    assert millions(BertFamily(), large) == pytest.approx(335.1, abs=0.1)


def test_sizes_by_hand() -> None:
    """12 x 384: embeddings, layers of four attention matrices and two of the feed-forward, transform and bias."""
    vocabulary, positions, width, ffn = 30_522, 512, 384, 1536
    layer = 4 * (width * width + width) + 2 * width * ffn + ffn + width + 4 * width
    embeddings = (vocabulary + positions + 2) * width + 2 * width
    head = width * width + width + 2 * width + vocabulary
    found = millions(BertFamily(), BERT_BASE, width=width, encoder_layers=12)
    assert found * 1e6 == pytest.approx(embeddings + 12 * layer + head, abs=0.5)
