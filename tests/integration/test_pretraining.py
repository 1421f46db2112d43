"""Pretraining on several toy corpora from the commands' side: trained, validated one by one, continued exactly."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM

from cktk_cli.preprocess import main as preprocess
from tests.integration import toy

TABLES = {"en": list(toy.WORDS), "fr": list(toy.WORDS.values()), "de": [word[::-1] for word in toy.WORDS]}
SIZES = {"en": 60, "fr": 40, "de": 20}
ENCODER = ["--arch", "bert", "--width", "16", "--encoder-layers", "2", "--ffn-width", "32", "--heads", "2"]
COMMON = ["--task", "pretraining", "--samples-per-epoch", "40", "--dropout", "0.2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data folders en, fr and de with one tokenizer that has a mask token; en also as lines to stream."""
    folder, draw = tmp_path_factory.mktemp("pretraining"), random.Random(2)
    for lang, words in TABLES.items():
        for split, size in (("train", SIZES[lang]), ("valid", 8)):
            lines = [" ".join(draw.choice(words) for _ in range(draw.randint(2, 12))) for _ in range(size)]
            (folder / f"{split}.{lang}").write_text("".join(f"{line}.\n" for line in lines), encoding="utf-8")
    texts = [(folder / f"train.{lang}").read_text(encoding="utf-8") for lang in TABLES]
    (folder / "all").write_text("".join(texts), encoding="utf-8")
    stream = "".join(json.dumps({"text": line}) + "\n" for line in texts[0].splitlines())
    (folder / "en.jsonl").write_text(stream, encoding="utf-8")
    common = ["--task", "pretraining", "--lang"]
    learn = ["--train-tokenizer", "unigram", "--vocab-size", "330", "--dest-dir", str(folder / "learnt")]
    assert preprocess([*common, "en", "--train-prefix", str(folder / "all"), *learn]) == 0
    tokenizer = AutoTokenizer.from_pretrained(folder / "learnt" / "tokenizer")
    tokenizer.add_special_tokens({"mask_token": "<mask>"})
    tokenizer.save_pretrained(folder / "tokenizer")
    for lang in TABLES:
        prefixes = [f"--{split}-prefix={folder / split}" for split in ("train", "valid")]
        more = ["--tokenizer", str(folder / "tokenizer"), "--dest-dir", str(folder / lang)]
        assert preprocess([*common, lang, *prefixes, *more]) == 0
    return folder


@pytest.fixture(scope="module")
def bart(folder: Path) -> Path:
    return toy.make_teacher(folder / "bart", folder / "en")


@pytest.fixture(scope="module")
def bert(folder: Path) -> Path:
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    torch.manual_seed(4)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=40, pad_token_id=tokenizer.pad_token_id, initializer_range=0.2,
    )  # fmt: skip
    BertForMaskedLM(config).save_pretrained(folder / "bert")
    tokenizer.save_pretrained(folder / "bert")
    return folder / "bert"


def data(folder: Path) -> str:
    return ",".join(str(folder / lang) for lang in TABLES)


def train(folder: Path, run: Path, *more: str) -> Path:
    return toy.run_training(Path(data(folder)), run, *COMMON, *more)


def assert_same(run: Path, other: Path) -> None:
    assert toy.log(run) == toy.log(other)
    found, expected = (toy.tensors(at / "checkpoint_last") for at in (run, other))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


KINDS = {
    "stored": ["--mixture", "equal"],
    "streamed, denoised": [
        "--mixture",
        "weights",
        "--mixture-weights",
        "en=0.5,fr=0.3,de=0.2",
        "--objective",
        "denoise",
    ],
}


@pytest.mark.parametrize("kind", KINDS)
def test_interrupted_runs_go_on_bit_for_bit_with_any_number_of_workers(
    folder: Path, bart: Path, tmp_path: Path, kind: str
) -> None:
    stream = ["--stream", f"en={folder}/*.jsonl"] if "streamed" in kind else []
    more = [*toy.SHAPE, "--teacher", str(bart), "--criterion", "cka_kd", "--update-freq", "2", *KINDS[kind], *stream]
    whole = train(folder, tmp_path / "whole", *more, "--max-update", "9")
    part = tmp_path / "part"
    for limit, workers in (("2", "0"), ("5", "1"), ("9", "0")):
        train(folder, part, *more, "--max-update", limit, "--num-workers", workers)
    assert_same(part, whole)
    (*_, last) = toy.log(whole, "valid")
    for lang in TABLES:
        assert last[f"clm_kl/{lang}"] == pytest.approx(last[f"kl/{lang}"] + last[f"ce/{lang}"])
    assert last["clm_kl"] == pytest.approx(last["kl"] + last["ce"]) and "cka" in last
    assert min(last[f"kl/{lang}"] for lang in TABLES) < last["kl"] < max(last[f"kl/{lang}"] for lang in TABLES)


@pytest.mark.parametrize(
    ("objective", "more"),
    [
        ("unmasked", ["--ce-weight", "0"]),
        ("masked", ["--ce-weight", "0"]),
        ("masked", ["--scored-positions", "masked"]),
    ],
)
def test_an_encoder_learns_from_its_teacher(
    folder: Path, bert: Path, tmp_path: Path, objective: str, more: list[str]
) -> None:
    options = ["--teacher", str(bert), "--criterion", "cka_kd", "--objective", objective, *more, *ENCODER]
    options += ["--lr-scheduler", "constant", "--dropout", "0"]
    run = train(folder, tmp_path / "run", *options, "--max-update", "16", "--validate-interval-updates", "4")
    first, last = toy.log(run, "valid")[0], toy.log(run, "valid")[-1]
    assert last["loss"] < first["loss"] and last["cka"] < first["cka"]
    assert {f"kl/{lang}" for lang in TABLES} <= set(last) and "clm_kl" not in last


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--mixture", "weights", "--mixture-weights", "en=0.5,fr=0.5"], "none for de; give de=0"),
        (["--mixture", "weights", "--mixture-weights", "en=0.5,fr=0.2,de=0.2"], "sum to 0.9, not to 1"),
        (["--tokens-per-sample", "65"], "--tokens-per-sample 65: the models take 64 positions"),
        (["--objective", "unmasked"], "the student is an encoder-decoder; give reconstruct or denoise"),
        (["--stream", "en=nothing/*.jsonl", "--mixture", "equal"], "nothing/*.jsonl: no such file"),
        (["--stream", "en=en.jsonl"], "that of the stream en is not known"),
        (["--samples-per-epoch", "3"], "--samples-per-epoch 3: there are 3 corpora"),
        (["--best-checkpoint-metric", "kl/xx"], "unknown name 'kl/xx'; did you mean kl/"),
        (["--mean-span", "0.5", "--objective", "denoise"], "0.5 is out of range: must be at least 1"),
        (["--finetune-from-model", "BERT"], "does not fit the model to finetune, whose model type is bert"),
    ],
)
def test_bad_settings_are_one_clear_line(
    folder: Path,
    bart: Path,
    bert: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    message: str,
) -> None:
    common = [*toy.SHAPE, "--teacher", str(bart), "--criterion", "kl_kd", "--max-update", "2"]
    more = [part.replace("=en.jsonl", f"={folder}/en.jsonl").replace("BERT", str(bert)) for part in more]
    flags = toy.flags(Path(data(folder)), tmp_path / "run", *COMMON, *common, *more)
    assert message in toy.error_of(capsys, *flags)
    assert not (tmp_path / "run").exists()


def test_folders_of_different_tokenizers_are_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = Path(f"{folder / 'en'},{folder / 'learnt'}")
    line = toy.error_of(capsys, *toy.flags(both, tmp_path / "run", *COMMON, *toy.SHAPE, "--max-update", "2"))
    assert "have different tokenizers" in line and "--tokenizer" in line
