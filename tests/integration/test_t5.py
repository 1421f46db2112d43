"""A T5 with a head of its own as teacher, from the commands' side: distilled, resumed, and recorded in a cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, T5Config, T5ForConditionalGeneration

from cktk.architectures.loading import load_model
from cktk_cli.cache_teacher import main as cache_teacher
from cktk_cli.generate import main as generate
from tests.integration import toy

SHAPE = ["--arch", "t5", "--width", "16", "--encoder-layers", "1", "--decoder-layers", "1", "--ffn-width", "32"]


@pytest.fixture(scope="module")
def t5_teacher(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As transformers itself writes it: config.json says "tied", the weights hold two matrices."""
    folder = tmp_path_factory.mktemp("t5") / "teacher"
    tokenizer = AutoTokenizer.from_pretrained(data / "tokenizer")
    torch.manual_seed(9)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=32, num_layers=2, d_ff=64, num_heads=4, d_kv=8,
        feed_forward_proj="gated-gelu", tie_word_embeddings=False, pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id, decoder_start_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model: Any = T5ForConditionalGeneration(config)
    model.lm_head.weight = torch.nn.Parameter(0.3 * torch.randn_like(model.shared.weight))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def is_untied(student: Any) -> bool:
    return student.lm_head.weight is not student.shared.weight


def test_a_student_stays_untied_from_the_first_update_to_the_last(
    data: Path, t5_teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where it is resumed with another dropout, which makes its modules anew."""
    flags = [*SHAPE, "--teacher", str(t5_teacher), "--init", "truncate", "--criterion", "cka_kd", "--update-freq", "2"]
    toy.run_training(data, tmp_path / "run", *flags, "--max-update", "6", "--dropout", "0.1")
    run = toy.run_training(data, tmp_path / "run", *flags, "--max-update", "12", "--dropout", "0.1")
    records = toy.log(run)
    assert records[-1]["update"] == 12
    assert records[-1]["ce"] < records[0]["ce"] and records[-1]["cka"] < records[0]["cka"]
    student = load_model(run / "checkpoint_last")
    assert is_untied(student)
    reopened = AutoModelForSeq2SeqLM.from_pretrained(run / "checkpoint_last" / "student")
    assert is_untied(reopened)
    generated = reopened.generate(torch.tensor([[5, 6, 7]]), num_beams=2)
    assert generated[0, 0] == reopened.config.pad_token_id
    finetuned = toy.run_training(
        data, tmp_path / "fine", "--arch", "t5", "--finetune-from-model", str(run / "checkpoint_last"),
        "--max-update", "2", "--dropout", "0.3",
    )  # fmt: skip
    student = load_model(finetuned / "checkpoint_last")
    assert is_untied(student) and student.config.dropout_rate == 0.3


def test_a_recorded_teacher_has_untied_students(data: Path, t5_teacher: Path, tmp_path: Path) -> None:
    """There a configuration is all that is left of the teacher."""
    cache = tmp_path / "cache"
    assert cache_teacher([str(data), "--teacher", str(t5_teacher), "--cache-dir", str(cache), "--top-k", "8"]) == 0
    run = toy.run_training(
        data, tmp_path / "run", *SHAPE, "--teacher-cache", str(cache), "--criterion", "kl_kd", "--max-update", "2"
    )
    assert is_untied(load_model(run / "checkpoint_last"))


def test_validated_by_translating_and_generating_as_transformers_does(
    data: Path, t5_teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = toy.run_training(
        data, tmp_path / "run", *SHAPE, "--max-update", "4", "--validate-interval-updates", "2", "--eval-bleu",
        "--eval-bleu-sentences", "8", "--teacher", str(t5_teacher), "--criterion", "kl_kd",
    )  # fmt: skip
    assert all({"bleu", "chrf"} <= record.keys() for record in toy.log(run, "valid"))
    flags = [str(data), "--path", str(run), "--max-len-b", "15", "--device", "cpu"]
    out = tmp_path / "out.txt"
    assert generate([*flags, "--beam", "3", "--repetition-penalty", "1.2", "--output", str(out)]) == 0
    student = AutoModelForSeq2SeqLM.from_pretrained(run / "checkpoint_best" / "student").eval()
    tokenizer = AutoTokenizer.from_pretrained(data / "tokenizer")
    texts = (data.parent / "test.en").read_text().splitlines()
    inputs = tokenizer(texts, return_tensors="pt", padding=True)
    ids = student.generate(
        input_ids=inputs.input_ids, attention_mask=inputs.attention_mask, num_beams=3, max_length=17,
        repetition_penalty=1.2,
    )  # fmt: skip
    expected = [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]
    assert out.read_text().splitlines() == expected
    assert len(set(expected)) > 1
    for search in (["--sampling", "--beam", "1"], ["--beam", "4", "--diverse-beam-groups", "2"]):
        assert generate([*flags, *search, "--nbest", "2", "--output", str(out)]) == 0
        assert len(out.read_text().splitlines()) == 2 * len(texts)
    for search, words in ((["--sampling"], "add --beam 1"), (["--beam", "9999"], "is more than the")):
        capsys.readouterr()
        assert generate([*flags, *search, "--output", str(out)]) != 0
        error = capsys.readouterr().err.strip().splitlines()
        assert error[-1].startswith("cktk-generate: error: ") and words in error[-1]
