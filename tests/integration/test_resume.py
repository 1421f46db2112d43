"""Interrupted and continued == uninterrupted, bit for bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from cktk.engine.checkpoint import CheckpointStore
from cktk_cli.train import main as train
from tests.integration import toy

# Log lines, checkpoints and epochs out of step, dropout, projectors and a moving average: all that has state.
KINDS = {
    "cka": ["--criterion", "cka_kd", "--update-freq", "2", "--save-interval-updates", "5"],
    "two processes": ["--criterion", "cka_kd", "--nproc-per-node", "2", "--save-interval-updates", "5"],
    "running": ["--criterion", "cka_kd", "--cka-scope", "running", "--save-interval-updates", "5"],
    "linear, two processes": ["--criterion", "linear_kd", "--nproc-per-node", "2", "--save-interval-updates", "5"],
    "linear": ["--criterion", "linear_kd", "--store-ema", "--ema-decay", "0.8", "--save-interval-updates", "3"],
}
COMMON = [*toy.SHAPE, "--dropout", "0.2", "--log-interval", "3", "--label-smoothing", "0.1"]


def arguments(kind: str, teacher: Path) -> list[str]:
    return ["--teacher", str(teacher), *KINDS[kind], *COMMON]


@pytest.fixture(scope="module")
def whole_short(data: Path, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("whole") / "run"
    return toy.run_training(data, run, *arguments("cka", teacher), "--max-epoch", "2")


def assert_same(run: Path, other: Path) -> None:
    assert (run / "log.jsonl").read_bytes() == (other / "log.jsonl").read_bytes()
    found, expected = (toy.tensors(folder / "checkpoint_last") for folder in (run, other))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("kind", KINDS)
def test_killed_and_started_again(kind: str, data: Path, teacher: Path, tmp_path: Path) -> None:
    more = [*arguments(kind, teacher), "--max-update", "26"]
    whole = toy.run_training(data, tmp_path / "whole", *more)
    killed = tmp_path / "killed"
    command = [sys.executable, "-m", "cktk_cli.train", *toy.flags(data, killed, *more)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    while process.poll() is None and not (killed / "checkpoint_last").exists():
        time.sleep(0.01)
    time.sleep(0.15)  # some updates beyond the checkpoint
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL, "it ended before it could be killed"
    toy.run_training(data, killed, *more)
    assert_same(killed, whole)


def test_every_checkpoint_continues_to_the_same_end(data: Path, teacher: Path, tmp_path: Path) -> None:
    more = [*arguments("linear", teacher), "--keep-interval-updates", "-1", "--keep-last-epochs", "-1"]
    whole = toy.run_training(data, tmp_path / "whole", *more, "--max-update", "13")
    part = tmp_path / "part"
    for limit in ("2", "3", "7", "8", "13"):
        toy.run_training(data, part, *more, "--max-update", limit)
    # Each limit adds a validation, which must leave no trace in the training.
    assert toy.log(part) == toy.log(whole)
    found, expected = (toy.tensors(run / "checkpoint_last") for run in (part, whole))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("moment", ["save", "link"])
@pytest.mark.parametrize("call", [2, 3, 4, 5])
def test_death_while_a_checkpoint_is_written_or_linked(
    moment: str,
    call: int,
    data: Path,
    teacher: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    whole_short: Path,
) -> None:
    more = [*arguments("cka", teacher), "--max-epoch", "2"]
    calls = []
    intact = getattr(CheckpointStore, moment)

    def die(self: CheckpointStore, *rest: object) -> object:
        calls.append(rest)
        if len(calls) == call:
            raise SystemExit("killed")
        return intact(self, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(CheckpointStore, moment, die)
        with pytest.raises(SystemExit):
            train(toy.flags(data, tmp_path / "run", *more))
    toy.run_training(data, tmp_path / "run", *more)
    assert_same(tmp_path / "run", whole_short)
    for link in ("checkpoint_best", "checkpoint_last"):
        assert (tmp_path / "run" / link).resolve().name == (whole_short / link).resolve().name


def test_data_from_its_beginning_and_then_on(data: Path, teacher: Path, tmp_path: Path) -> None:
    more = [*arguments("cka", teacher), "--keep-last-epochs", "-1", "--samples-per-epoch", "40"]
    run = toy.run_training(data, tmp_path / "run", *more, "--max-epoch", "3")
    updates = toy.log(run)[-1]["update"]
    toy.run_training(data, run, *more, "--max-epoch", "1", "--reset-dataloader")
    assert toy.log(run)[-1]["epoch"] == 1
    assert toy.log(run)[-1]["update"] > updates
    toy.run_training(data, run, *more, "--max-epoch", "2")
    assert toy.log(run)[-1]["epoch"] == 2


def test_a_damaged_newest_checkpoint_costs_only_its_updates(
    data: Path, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = [*arguments("cka", teacher), "--max-update", "12"]
    whole = toy.run_training(data, tmp_path / "whole", *more)
    run = toy.run_training(data, tmp_path / "run", *more)
    file = run / "checkpoint_last" / "student" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    toy.run_training(data, run, *more)
    message = capsys.readouterr().err
    assert "model.safetensors" in message and "damaged" in message
    assert_same(run, whole)


@pytest.mark.distributed
@pytest.mark.parametrize("processes", ["1", "2"])
def test_sigterm_saves_and_leaves(processes: str, data: Path, teacher: Path, tmp_path: Path) -> None:
    more = [*arguments("cka", teacher), "--max-update", "2000", "--nproc-per-node", processes]
    command = [sys.executable, "-m", "cktk_cli.train", *toy.flags(data, tmp_path / "run", *more)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"})
    while process.poll() is None and not (tmp_path / "run" / "checkpoint_last").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 0
    assert process.stderr is not None
    assert b"Traceback" not in process.stderr.read()
    last = (tmp_path / "run" / "checkpoint_last").resolve()
    assert last.name.startswith("checkpoint") and toy.tensors(last)


def test_another_configuration_is_refused_and_limits_may_grow(
    data: Path, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = [*arguments("cka", teacher), "--max-update", "4"]
    run = toy.run_training(data, tmp_path / "run", *more)
    before = toy.tensors(run / "checkpoint_last")
    assert train(toy.flags(data, run, *more, "--lr", "0.5")) != 0
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "lr = 0.01" in error and "lr = 0.5" in error and "--save-dir" in error
    assert all(torch.equal(t, before[n]) for n, t in toy.tensors(run / "checkpoint_last").items())
    toy.run_training(data, run, *more, "--max-update", "6")
    assert toy.log(run)[-1]["update"] == 6


def test_a_folder_with_other_files_is_refused(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    assert train(toy.flags(data, tmp_path, *toy.SHAPE, "--max-update", "1")) != 0
    assert "--save-dir" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
