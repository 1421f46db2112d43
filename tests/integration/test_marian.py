"""A MarianMT teacher with its own tokenizer, from the commands' side: preprocessed, distilled, translated with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, MarianConfig, MarianMTModel

from cktk_cli.generate import main as generate
from cktk_cli.preprocess import main as preprocess
from tests.integration import toy
from tests.unit.architectures.marian import save_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:Recommended")


def test_distilled_and_translated_as_transformers_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toy.write_corpus(tmp_path)
    texts = [(tmp_path / f"train.{lang}").read_text(encoding="utf-8").splitlines() for lang in ("en", "fr")]
    tokenizer = save_tokenizer(tmp_path / "tokenizer", texts[0], texts[1], 120)
    pad = tokenizer.pad_token_id
    torch.manual_seed(9)
    teacher = MarianMTModel(
        MarianConfig(
            vocab_size=pad + 1, d_model=32, encoder_layers=2, decoder_layers=2, encoder_ffn_dim=64, decoder_ffn_dim=64,
            encoder_attention_heads=4, decoder_attention_heads=4, init_std=0.2, scale_embedding=True,
            max_position_embeddings=64, pad_token_id=pad, decoder_start_token_id=pad,
        )
    )  # fmt: skip
    teacher.generation_config.bad_words_ids = [[pad]]
    teacher.save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    prefixes = [f"--{split}-prefix={tmp_path / split}" for split in ("train", "valid", "test")]
    languages = ["--source-lang", "en", "--target-lang", "fr"]
    data = tmp_path / "bin"
    assert preprocess([*prefixes, *languages, "--tokenizer", str(tmp_path / "teacher"), "--dest-dir", str(data)]) == 0

    flags = ["--arch", "marian", *toy.SHAPE, "--teacher", str(tmp_path / "teacher"), "--init", "truncate"]
    for updates in ("4", "8"):  # the second time it is resumed
        run = toy.run_training(
            data, tmp_path / "run", *flags, "--criterion", "cka_kd", "--max-update", updates, "--update-freq", "2"
        )
    records = toy.log(run)
    assert records[-1]["ce"] < records[0]["ce"] and records[-1]["cka"] < records[0]["cka"]
    capsys.readouterr()
    assert generate([str(data), "--path", str(run), "--beam", "3", "--max-len-b", "20", "--print-alignment"]) == 0
    found = [line.split("\t") for line in capsys.readouterr().out.splitlines()]

    folder = run / "checkpoint_last" / "student"
    student: Any = AutoModelForSeq2SeqLM.from_pretrained(folder)
    reopened: Any = AutoTokenizer.from_pretrained(folder)
    sources = (tmp_path / "test.en").read_text(encoding="utf-8").splitlines()
    inputs = reopened(sources, padding=True, return_tensors="pt")
    output = student.generate(**inputs, num_beams=3, max_length=22, early_stopping=False)
    assert [text for text, _ in found] == [
        text.strip() for text in reopened.batch_decode(output, skip_special_tokens=True)
    ]
    lengths = [len(reopened(text).input_ids) - 1 for text in sources]
    for (_, pairs), length in zip(found, lengths, strict=True):
        places = [tuple(map(int, pair.split("-"))) for pair in pairs.split()]
        assert [target for _, target in places] == list(range(len(places)))
        assert all(0 <= source < length for source, _ in places)
