"""Translation of two corpora in both directions, with prompt and context: trained, resumed, cached and generated."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from cktk.data.shards import DataFolder
from cktk.hub import student
from cktk_cli.cache_teacher import main as cache_teacher
from cktk_cli.generate import main as generate
from cktk_cli.preprocess import main as preprocess
from tests.integration import toy

PREFIXES = ("train", "valid", "test")
SHOWN = ["--source-prompt", "to {target}: ", "--context-size", "2", "--context-separator", "▁of"]
MIXED = ["--bidirectional", "--mixture", "weights", "--mixture-weights", "news=0.7,talks=0.3"]
SHORT = [*toy.SHAPE, "--criterion", "cka_kd", "--dropout", "0.2", "--update-freq", "2", "--samples-per-epoch", "40"]


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> str:
    """``news,talks``: the toy corpus with documents of five sentences, and its first half with others."""
    folder = tmp_path_factory.mktemp("corpora")
    for name, step in (("news", 5), ("talks", 3)):
        text = folder / f"{name}-text"
        text.mkdir()
        toy.write_corpus(text)
        for split in PREFIXES:
            keep = {"train": 160, "valid": 6, "test": 12}[split] // (1 if name == "news" else 2)
            for lang in ("en", "fr"):
                lines = (text / f"{split}.{lang}").read_text().splitlines()[:keep]
                (text / f"{split}.{lang}").write_text("".join(line + "\n" for line in lines))
            (text / f"{split}.doc").write_text("".join(f"{name} {row // step}\n" for row in range(keep)))
        flags = ["--source-lang", "en", "--target-lang", "fr", "--document-column", "doc"]
        made = ["--train-tokenizer", "unigram", "--vocab-size", "370"]
        if name == "talks":
            made = ["--tokenizer", str(folder / "news" / "tokenizer")]
        prefixes = [f"--{split}-prefix={text / split}" for split in PREFIXES]
        assert preprocess([*prefixes, *flags, *made, "--dest-dir", str(folder / name)]) == 0
    return f"{folder / 'news'},{folder / 'talks'}"


@pytest.fixture(scope="module")
def news(corpora: str) -> Path:
    return Path(corpora.split(",")[0])


@pytest.fixture(scope="module")
def model(news: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.make_teacher(tmp_path_factory.mktemp("models") / "teacher", news)


def test_killed_and_started_again(corpora: str, model: Path, tmp_path: Path) -> None:
    scored = ["--eval-bleu", "--eval-bleu-sentences", "2", "--eval-beam", "1", "--eval-max-len-b", "2"]
    more = [*SHOWN, *MIXED, *SHORT, "--teacher", str(model), "--max-update", "9", "--save-interval-updates", "4"]
    more += [*scored, "--context-target", "given"]
    whole = toy.run_training(Path(corpora), tmp_path / "whole", *more)
    killed = tmp_path / "killed"
    command = [sys.executable, "-m", "cktk_cli.train", *toy.flags(Path(corpora), killed, *more)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    while process.poll() is None and not (killed / "checkpoint_last").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL, "it ended before it could be killed"
    toy.run_training(Path(corpora), killed, *more)
    assert (killed / "log.jsonl").read_bytes() == (whole / "log.jsonl").read_bytes()
    found, expected = (toy.tensors(run / "checkpoint_last") for run in (killed, whole))
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    last = toy.log(whole, "valid")[-1]
    for corpus in ("news.en-fr", "news.fr-en", "talks.en-fr", "talks.fr-en"):
        assert {f"{figure}/{corpus}" for figure in ("kl", "ce", "bleu", "chrf")} <= last.keys()
    # kl is that of all tokens together: between those of the corpora.
    kls = [value for name, value in last.items() if name.startswith("kl/")]
    assert min(kls) < last["kl"] < max(kls)


@pytest.mark.parametrize("kind", ["none", "given", "generated"])
def test_lines_and_split_give_the_same(
    news: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    """A blank line where a document ends tells of lines what the folder knows of its rows."""
    data = DataFolder(news).split("test")
    texts = (news.parent / "news-text" / "test.en").read_text().splitlines()
    lines = [[*([""] if row and row % 5 == 0 else []), text] for row, text in enumerate(texts)]
    (tmp_path / "in").write_text("".join(line + "\n" for part in lines for line in part))
    shown = ["--source-prompt", "to fr: ", *SHOWN[2:], "--context-target", kind]
    search = ["--beam", "2", "--max-len-b", "8"]
    common = ["--path", str(model), *shown, *search]
    assert generate([str(news), *common]) == 0
    split = capsys.readouterr().out.splitlines()
    assert len(split) == len(data) == 12
    assert generate(["--input", str(tmp_path / "in"), "--buffer-size", "2", *common]) == 0
    assert [line for line in capsys.readouterr().out.splitlines() if line] == [line for line in split if line]
    opened = student(
        model, device="cpu", beam=2, max_len_b=8, source_prompt="to fr: ", context_size=2, context_separator="▁of",
        context_target=kind,
    )  # fmt: skip
    assert opened.translate([line for part in lines for line in part]) == [
        line for row, text in enumerate(split) for line in (["", text] if row and row % 5 == 0 else [text])
    ]


def test_a_cache_with_other_settings_is_refused(
    news: Path, model: Path, tmp_path: Path, corpora: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "cache"
    made = [str(news), "--teacher", str(model), "--cache-dir", str(cache), "--max-tokens", "400", "--top-k", "4"]
    assert cache_teacher([*made, *SHOWN]) == 0
    run = [*toy.flags(news, tmp_path / "run"), "--teacher-cache", str(cache), *toy.SHAPE, "--max-update", "3"]
    run += ["--criterion", "kl_kd"]
    refused = {
        "source-prompt": SHOWN[2:],
        "context_size": [*SHOWN[:3], "1", *SHOWN[4:]],
        "context_separator": SHOWN[:4],
        "context_target": [*SHOWN, "--context-target", "given"],
        "source_lang": [*SHOWN, "--source-lang", "fr"],
        "--bidirectional": [*SHOWN, "--bidirectional"],
    }
    for name, flags in refused.items():
        assert name.replace("_", "-") in toy.error_of(capsys, *run, *flags), name
    assert "--teacher-cache" in toy.error_of(capsys, corpora, *run[1:], *SHOWN)
    toy.run_training(news, tmp_path / "run", *run[len(toy.flags(news, tmp_path)) :], *SHOWN)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--mixture", "weights", "--mixture-weights", "news=0.7,book=0.3"], "no corpus 'book'"),
        (["--mixture", "weights", "--mixture-weights", "news=0.7,talks=0.2"], "sum to 0.9, not to 1"),
        (["--source-lang", "de"], "--source-lang de: "),
        (["--context-size", "1", "--context-separator", "<sep>"], "--context-separator <sep>: the tokenizer has no"),
        (["--context-size", "1", "--context-target", "given"], "the end token cannot part sentences"),
        (["--context-target", "given"], "give --context-size too"),
        (
            ["--source-prompt", "to {target}: ", "--max-source-positions", "4"],
            "--max-source-positions 4 leaves no room",
        ),
    ],
)
def test_bad_settings_are_one_line(
    corpora: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], words: str
) -> None:
    run = [*toy.flags(Path(corpora), tmp_path / "run"), *toy.SHAPE, "--max-update", "1", "--criterion", "cross_entropy"]
    assert words in toy.error_of(capsys, *run, *flags)
    assert not (tmp_path / "run").exists()


def test_context_without_documents_is_refused(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = [*toy.flags(data, tmp_path / "run"), *toy.SHAPE, "--max-update", "1", "--criterion", "cross_entropy"]
    found = toy.error_of(capsys, *run, "--context-size", "1")
    assert "needs to know the document of each row; preprocess again with --document-column NAME" in found
