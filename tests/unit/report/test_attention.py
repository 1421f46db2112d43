"""Attention maps against transformers' own, and their divergences against a plain sum."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertTokenizer,
    T5Config,
    T5ForConditionalGeneration,
)

from cktk.errors import ConfigError
from cktk.report.attention import Maps, attention_maps
from cktk.report.configs import AttentionConfig
from cktk.report.runs import Run

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "plot", "is", "thin", "$", "but", "never", "dull"]
TEXT = "the plot is thin $"


def save(model: Any, folder: Path) -> str:
    model.save_pretrained(folder)
    BertTokenizer(vocab={word: number for number, word in enumerate(WORDS)}).save_pretrained(folder)
    return str(folder)


def bert(folder: Path, layers: int, seed: int, heads: int = 4, **changes: Any) -> str:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "num_hidden_layers": layers, "num_attention_heads": heads, "intermediate_size": 16}
    settings: dict[str, Any] = {"vocab_size": len(WORDS), "max_position_embeddings": 80, "initializer_range": 0.8}
    return save(BertForSequenceClassification(BertConfig(**{**sizes, **settings, **changes})), folder / str(seed))


def t5(folder: Path, layers: int, seed: int) -> str:
    torch.manual_seed(seed)
    sizes = {"d_model": 16, "d_kv": 4, "d_ff": 16, "num_layers": layers, "num_decoder_layers": layers, "num_heads": 4}
    config = T5Config(
        vocab_size=len(WORDS), decoder_start_token_id=0, eos_token_id=3, relative_attention_num_buckets=4, **sizes
    )
    model = T5ForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    return save(model, folder / str(seed))


def run(path: str, teacher: str | None, **config: Any) -> tuple[str, str, Run]:
    return "kl", path, Run(Path(path), {"teacher": teacher, **config}, [], None, [])


def maps(*runs: tuple[str, str, Run], **options: Any) -> Maps:
    return attention_maps(runs, AttentionConfig(attention_text=options.pop("attention_text", TEXT), **options))


def eager(path: str, kind: type[Any], name: str, **inputs: Any) -> np.ndarray:
    """transformers' attention (layers, heads, queries, keys) of one sentence."""
    model = kind.from_pretrained(path, attn_implementation="eager").eval()
    with torch.no_grad():
        found = model(**inputs, output_attentions=True)[name]
    return torch.stack(found)[:, 0].double().numpy()


def naive(teacher: np.ndarray, student: np.ndarray) -> float:
    """Mean over rows, and whatever stands before, of KL(teacher || student)."""
    total = 0.0
    for one, other in zip(teacher.reshape(-1, teacher.shape[-1]), student.reshape(-1, student.shape[-1]), strict=True):
        total += sum(p * math.log(p / q) for p, q in zip(one, other, strict=True) if p > 0)
    return total / math.prod(teacher.shape[:-1])


def test_a_head_of_a_classifier(tmp_path: Path) -> None:
    teacher, student = bert(tmp_path, 4, 1), bert(tmp_path, 2, 2)
    found = maps(run(student, teacher), layer=1, head=3)
    inputs = AutoTokenizer.from_pretrained(student)(TEXT, return_tensors="pt")
    theirs, own = (eager(path, BertForSequenceClassification, "attentions", **inputs) for path in (teacher, student))
    assert found.queries == found.keys == ["[CLS]", "the", "plot", "is", "thin", "$", "[SEP]"]
    first, second = found.maps
    assert (first.name, first.layer, second.name, second.layer) == ("teacher", 2, "kl", 1)
    np.testing.assert_allclose(first.weights, theirs[1, 2], atol=1e-5)
    np.testing.assert_allclose(second.weights, own[0, 2], atol=1e-5)
    assert second.kl == pytest.approx(naive(theirs[1, 2], own[0, 2]), rel=1e-4)
    assert list(second.layers) == ["encoder attention 1<-2", "encoder attention 2<-4"]
    assert list(second.layers.values()) == pytest.approx(
        [naive(theirs[i], own[j]) for i, j in ((1, 0), (3, 1))], rel=1e-4
    )


def test_pairs_means_over_heads_and_equal_models(tmp_path: Path) -> None:
    teacher, other = bert(tmp_path, 2, 1), bert(tmp_path, 2, 2, heads=2)
    found = maps(run(teacher, teacher), run(other, teacher), attention_pair="never dull")
    inputs = AutoTokenizer.from_pretrained(teacher)(TEXT, "never dull", return_tensors="pt")
    theirs, own = (eager(path, BertForSequenceClassification, "attentions", **inputs) for path in (teacher, other))
    first, same, second = found.maps
    assert found.keys[-3:] == ["never", "dull", "[SEP]"] and found.head is None and first.layer == 2
    np.testing.assert_allclose(second.weights, own[1].mean(0), atol=1e-5)
    assert second.kl == pytest.approx(naive(theirs[1].mean(0), own[1].mean(0)), rel=1e-4)
    assert second.layers["encoder attention 1<-1"] == pytest.approx(naive(theirs[0].mean(0), own[0].mean(0)), rel=1e-4)
    assert same.kl == 0.0 and list(same.layers.values()) == pytest.approx([0.0, 0.0], abs=1e-6)


@pytest.mark.parametrize("kind", ["encoder", "decoder", "cross"])
def test_every_attention_of_an_encoder_decoder(kind: str, tmp_path: Path) -> None:
    teacher, student = t5(tmp_path, 2, 1), t5(tmp_path, 1, 2)
    found = maps(run(student, teacher), attention_kind=kind, attention_pair="never dull", head=2)
    tokenizer = AutoTokenizer.from_pretrained(student)
    source, target = tokenizer(TEXT, return_tensors="pt")["input_ids"], tokenizer("never dull")["input_ids"]
    inputs = {"input_ids": source, "decoder_input_ids": torch.tensor([[0, *target[:-1]]])}
    name = f"{kind}_attentions"
    theirs, own = (eager(path, T5ForConditionalGeneration, name, **inputs) for path in (teacher, student))
    first, second = found.maps
    np.testing.assert_allclose(first.weights, theirs[1, 1], atol=1e-5)
    np.testing.assert_allclose(second.weights, own[0, 1], atol=1e-5)
    assert second.kl == pytest.approx(naive(theirs[1, 1], own[0, 1]), rel=1e-3)
    assert second.layers == {f"{kind} attention 1<-2": pytest.approx(naive(theirs[1], own[0]), rel=1e-3)}
    shown = ["[PAD]", "[CLS]", "never", "dull"]
    assert found.queries == (found.keys if kind == "encoder" else shown)
    assert (found.keys == shown) == (kind == "decoder")


def test_what_cannot_be_shown(tmp_path: Path) -> None:
    teacher, student, narrow = bert(tmp_path, 4, 1), bert(tmp_path, 2, 2), bert(tmp_path, 2, 3, heads=2)
    own = run(student, teacher)
    cases: list[tuple[list[Any], dict[str, Any], str]] = [
        ([own], {"layer": 3}, "--layer 3: .* has no such layer that is matched with one of its teacher; give 1, 2"),
        ([own], {"head": 5}, "--head 5: the teacher has 4; give one from 1 to 4"),
        ([run(narrow, teacher)], {"head": 1}, "kl has 2 heads and its teacher 4, so none belong together"),
        ([own], {"attention_kind": "cross", "attention_pair": "a"}, "a bert has no decoder; leave it out"),
        ([own], {"attention_text": "the " * 70}, "has 72 tokens, which nobody could read; give 60 at most"),
        ([run(student, None)], {}, "the runs have no teacher in memory; give one with --teacher PATH"),
        ([own, run(narrow, student)], {}, "the runs have different teachers"),
        ([own, run(narrow, teacher, layer_map="2:1")], {}, "is matched with layer 1 of the teacher, that of the run"),
        ([run(student, bert(tmp_path, 2, 4, vocab_size=90))], {}, "have different vocabularies; give its teacher"),
    ]
    for runs, options, message in cases:
        with pytest.raises(ConfigError, match=message):
            maps(*runs, **options)
    # The teacher's own run is left out beside those of students.
    assert len(maps(run(teacher, None), own).maps) == 2
    assert len(maps(run(student, None), teacher=teacher).maps) == 2


def test_a_teacher_is_found_beside_its_run(tmp_path: Path) -> None:
    found = run(str(tmp_path / "work/kl"), "work/teacher", save_dir="work/kl")[2]
    assert found.locate("work/teacher") == "work/teacher"
    (tmp_path / "work/teacher").mkdir(parents=True)
    assert found.locate("work/teacher") == str(tmp_path / "work/teacher")
    elsewhere = dataclasses.replace(found, config={"save_dir": "runs/kl"})
    assert elsewhere.locate("work/teacher") == "work/teacher"
