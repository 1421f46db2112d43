"""Internal distillation by the command itself: stages in the log, kills inside them, several processes, refusals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification, BertTokenizer

from cktk.utils.files import read_json
from cktk_cli.cache_teacher import main as cache_teacher
from tests.integration import toy
from tests.integration.test_glue import SPECIALS, WORDS, make_data

STAGED = ["--criterion", "internal_kd", "--procedure", "stacked", "--stage-epochs", "1,2"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A task of 96 pairs of sentences, and a classifier of 4 layers."""
    folder = tmp_path_factory.mktemp("internal")
    BertTokenizer(vocab={word: number for number, word in enumerate([*SPECIALS, *WORDS])}).save_pretrained(
        folder / "tokenizer"
    )
    make_data(folder, "rte", folder / "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    torch.manual_seed(3)
    sizes: dict[str, Any] = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4,
        "intermediate_size": 64, "max_position_embeddings": 32, "initializer_range": 0.2,
    }  # fmt: skip
    BertForSequenceClassification(BertConfig(**sizes)).save_pretrained(folder / "teacher")
    tokenizer.save_pretrained(folder / "teacher")
    return folder


def arguments(place: Path, run: Path, *more: str) -> list[str]:
    return [
        str(place / "rte-bin"), "--save-dir", str(run), "--task", "glue", "--arch", "bert", "--encoder-layers", "2",
        "--teacher", str(place / "teacher"), "--dropout", "0.1", "--batch-size", "8", "--lr", "1e-3",
        "--optimizer", "adamw", "--weight-decay", "0.1", "--log-interval", "5", "--no-tensorboard", *more,
    ]  # fmt: skip


def train(place: Path, run: Path, *more: str) -> Path:
    assert toy.train(arguments(place, run, *more)) == 0
    return run


def assert_same(run: Path, other: Path) -> None:
    assert (run / "log.jsonl").read_bytes() == (other / "log.jsonl").read_bytes()
    found, expected = (toy.tensors(folder / "checkpoint_last") for folder in (run, other))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


# 12 updates an epoch: stage 2 lasts from update 12 to 36.
KINDS = {
    "cosine, body frozen at the end": ["--freeze-body-at-end"],
    "CKA, threshold": ["--width", "16", "--heads", "2", "--update-freq", "2", "--cosine-threshold", "0.99"],
}


@pytest.mark.parametrize("kind", KINDS)
def test_killed_inside_the_second_stage(kind: str, place: Path, tmp_path: Path) -> None:
    more = [*STAGED, *KINDS[kind], "--max-epoch", "5", "--save-interval-updates", "3", "--keep-interval-updates", "-1"]
    whole = train(place, tmp_path / "whole", *more)
    killed = tmp_path / "killed"
    second = "checkpoint_2_9" if "threshold" in kind else "checkpoint_2_15"
    command = [sys.executable, "-m", "cktk_cli.train", *arguments(place, killed, *more)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    while process.poll() is None and not (killed / second).exists():
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL, "it ended before it could be killed"
    state = read_json(killed / second / "trainer.json")["stages"]
    assert state["stage"] == 1 and state["weight"] == 24 * (2 if "threshold" in kind else 1), "inside stage 2, epoch 2"
    train(place, killed, *more)
    assert_same(killed, whole)


def test_every_epoch_continues_to_the_same_end(place: Path, tmp_path: Path) -> None:
    """Stopped at the very end of stages, and where a limit falls on the last update of an epoch."""
    more = [*STAGED, "--freeze-body-at-end", "--lr-scheduler", "constant", "--disable-validation"]
    whole = train(place, tmp_path / "whole", *more, "--max-update", "50")
    for limit in ("12", "24", "36", "37", "50"):
        train(place, tmp_path / "parts", *more, "--max-update", limit)
    assert_same(tmp_path / "parts", whole)


def test_stages_are_seen_and_the_frozen_body_stays(
    place: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    more = [*STAGED, "--freeze-body-at-end", "--max-epoch", "5", "--keep-last-epochs", "-1"]
    # By this measure the first validation would be the best of all.
    run = train(place, tmp_path / "run", *more, "--tensorboard", "--maximize-best-checkpoint-metric")
    losses = [record["loss"] for record in toy.log(run, "valid")]
    assert max(losses[:3]) > max(losses[3:])
    assert (run / "checkpoint_best").resolve().name in ("checkpoint4", "checkpoint5"), "the head's epochs"
    begun = [(r["update"], r["epoch"], r["stage"], r["stages"], r["name"]) for r in toy.log(run, "stage")]
    assert begun == [(0, 1, 1, 3, "encoder layer 1"), (12, 2, 2, 3, "encoder layer 2"), (36, 4, 3, 3, "head")]
    assert "cls_cosine" not in toy.log(run, "stage")[0] and 0 < toy.log(run, "stage")[1]["cls_cosine"] < 2
    errors = capfd.readouterr().err
    for words in (
        "epoch 2 | stage 2 of 3 (encoder layer 2) | update 15", "epoch 4 | stage 3 of 3 (head) | update 36 | begins",
        "stages: 1 encoder layer 1; 2 encoder layer 2; 3 head", "attention of 2 blocks at a time", "MiB a matrix",
    ):  # fmt: skip
        assert words in errors, words
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("stage/stage")] == [(0, 1), (12, 2), (36, 3)]

    train_parts = {record["update"]: record.keys() for record in toy.log(run)}
    assert "ce" not in train_parts[10] and "cls_cosine/encoder 1<-2" in train_parts[10]
    assert "cls_cosine/encoder 2<-4" not in train_parts[10] and "cls_cosine/encoder 2<-4" in train_parts[20]
    assert {"ce", "kl"} <= train_parts[45] and not any("cosine" in name for name in train_parts[45])
    valid = toy.log(run, "valid")
    assert len({tuple(record) for record in valid}) == 1, "validations show the same in all stages"
    assert all(record["loss"] == pytest.approx(record["ce"] + record["kl"]) for record in valid)

    third, last = (toy.tensors(run / f"checkpoint{epoch}") for epoch in (3, 5))
    for name, tensor in last.items():
        if not name.startswith("optimizer"):
            assert torch.equal(third[name], tensor) == ("classifier" not in name and "pooler" not in name), name
    body = "optimizer.student.bert.encoder.layer.0.output.dense.weight/exp_avg"
    assert torch.equal(third[body], last[body]) and third[body].any()


@pytest.mark.distributed
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_equal_one(kind: str, place: Path, tmp_path: Path) -> None:
    """Layers that take no part have no gradient in either, so that no decay moves them."""
    more = [*STAGED, *KINDS[kind], "--dropout", "0", "--max-epoch", "4", "--disable-validation"]
    single = [argument if argument != "2" or more[i - 1] != "--update-freq" else "4" for i, argument in enumerate(more)]
    single += [] if "--update-freq" in more else ["--update-freq", "2"]
    one = train(place, tmp_path / "one", *single)
    two = train(place, tmp_path / "two", *more, "--nproc-per-node", "2")
    assert len(toy.log(two, "stage")) == len(toy.log(one, "stage")) == 3
    found, expected = (toy.tensors(run / "checkpoint_last") for run in (two, one))
    assert found.keys() == expected.keys(), "the optimizer knows the same parameters"
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=2e-3, atol=2e-5, msg=name)


def test_an_encoder_decoder_goes_through_its_sides(data: Path, teacher: Path, tmp_path: Path) -> None:
    flags = [*toy.SHAPE, "--criterion", "internal_kd", "--procedure", "progressive", "--stage-epochs", "1"]
    run = toy.run_training(data, tmp_path / "run", *flags, "--teacher", str(teacher), "--max-epoch", "4")
    names = [record["name"] for record in toy.log(run, "stage")]
    assert names == ["encoder layer 1", "encoder layer 2", "decoder layer 1", "head"]


def test_refusals(data: Path, teacher: Path, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [*toy.SHAPE, "--criterion", "internal_kd", "--procedure", "progressive", "--stage-epochs", "1"]
    tied = [*flags, "--teacher", str(teacher), "--freeze-body-at-end", "--max-update", "1"]
    assert "tied to its embeddings" in toy.error_of(capsys, *toy.flags(data, tmp_path / "tied", *tied))
    early = toy.error_of(capsys, *arguments(place, tmp_path / "early", *STAGED, "--max-epoch", "2"))
    assert "--max-epoch 2 ends before the last stage" in early and "after 3 epochs" in early
    alone = toy.error_of(capsys, *toy.flags(data, tmp_path / "alone", *flags, "--max-update", "1"))
    assert "--criterion internal_kd needs a --teacher" in alone
    cache = tmp_path / "cache"
    assert cache_teacher([str(place / "rte-bin"), "--teacher", str(place / "teacher"), "--cache-dir", str(cache),
                          "--task", "glue", "--top-k", "2", "--max-tokens", "400"]) == 0  # fmt: skip
    cached = [*arguments(place, tmp_path / "cached", *STAGED, "--max-update", "1"), "--teacher-cache", str(cache)]
    assert "attention, which the teacher cache" in toy.error_of(capsys, *cached)
    assert "first positions" in toy.error_of(capsys, *cached, "--attention-weight", "0")
    run = train(place, tmp_path / "run", *STAGED, "--max-update", "13")
    assert "training ended in stage 2 of 3 (encoder layer 2): its last stage never came" in capsys.readouterr().err
    assert toy.train(arguments(place, tmp_path / "dry", *STAGED, "--max-update", "1", "--dry-run")) == 0
    # Of layers alone there would be no KL of the head.
    assert " kl " in capsys.readouterr().out.splitlines()[-1]
    restored = arguments(place, tmp_path / "other", *STAGED, "--layer-map", "2:4", "--stage-epochs", "1",
                         "--restore-file", str(run / "checkpoint_last"), "--max-update", "14")  # fmt: skip
    assert "in 3 stages, not 2" in toy.error_of(capsys, *restored)
