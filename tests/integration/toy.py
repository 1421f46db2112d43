"""A small corpus, its data folder and a random teacher, made by the commands themselves."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, BartConfig, BartForConditionalGeneration

from cktk_cli.preprocess import main as preprocess
from cktk_cli.train import main as train

WORDS = {
    "the": "le", "library": "bibliothèque", "shared": "partagée", "of": "de", "this": "ce", "package": "paquet",
    "contains": "contient", "files": "fichiers", "for": "pour", "development": "développement", "a": "un",
    "simple": "simple", "game": "jeu", "with": "avec", "many": "beaucoup", "levels": "niveaux", "and": "et",
    "music": "musique", "server": "serveur", "to": "à", "read": "lire", "mail": "courrier",
}  # fmt: skip

SHAPE = ["--width", "16", "--encoder-layers", "2", "--decoder-layers", "1", "--ffn-width", "32", "--heads", "2"]


def write_corpus(folder: Path) -> None:
    """train, valid and test in English and word-for-word French; sentences of 2 to 12 words."""
    draw = random.Random(1)
    for split, size in (("train", 160), ("valid", 24), ("test", 12)):
        lines = [[draw.choice(list(WORDS)) for _ in range(draw.randint(2, 12))] for _ in range(size)]
        for lang, table in (("en", dict(zip(WORDS, WORDS, strict=True))), ("fr", WORDS)):
            text = "".join(" ".join(table[word] for word in line) + ".\n" for line in lines)
            (folder / f"{split}.{lang}").write_text(text, encoding="utf-8")


def make_data(folder: Path) -> Path:
    """A data folder of the toy corpus with a tokenizer learned from it."""
    write_corpus(folder)
    prefixes = [f"--{split}-prefix={folder / split}" for split in ("train", "valid", "test")]
    flags = ["--source-lang", "en", "--target-lang", "fr", "--train-tokenizer", "unigram", "--vocab-size", "340"]
    assert preprocess([*prefixes, *flags, "--dest-dir", str(folder / "bin")]) == 0
    return folder / "bin"


def make_teacher(folder: Path, data: Path, **changes: Any) -> Path:
    """A random BART with the data's tokenizer, in the format that users have theirs in."""
    tokenizer = AutoTokenizer.from_pretrained(data / "tokenizer")
    torch.manual_seed(9)
    settings: dict[str, Any] = {
        "vocab_size": len(tokenizer), "max_position_embeddings": 64, "d_model": 32, "encoder_layers": 2,
        "decoder_layers": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "encoder_attention_heads": 4,
        "decoder_attention_heads": 4, "dropout": 0.1, "init_std": 0.2,
    }  # fmt: skip
    model = BartForConditionalGeneration(BartConfig(**{**settings, **changes}))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def flags(data: Path, run: Path, *more: str) -> list[str]:
    """The arguments of a short training."""
    return [
        str(data), "--save-dir", str(run), "--max-tokens", "200", "--lr", "1e-2", "--warmup-updates", "3",
        "--log-interval", "2", "--no-tensorboard", *more,
    ]  # fmt: skip


def run_training(data: Path, run: Path, *more: str) -> Path:
    """Train in this process; returns the run directory."""
    assert train(flags(data, run, *more)) == 0
    return run


def log(run: Path, group: str = "train") -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [record for record in records if record["group"] == group]


def tensors(checkpoint: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint: the student's and the trainer's."""
    return {**load_file(checkpoint / "student/model.safetensors"), **load_file(checkpoint / "trainer.safetensors")}


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert train(list(arguments)) != 0
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("cktk-train: error: ")
    return line
