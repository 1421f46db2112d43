"""Faults around a run: other processes, damaged files, full disks. One line each, and nothing is lost."""

from __future__ import annotations

import fcntl
import os
import signal
from pathlib import Path

import pytest

from cktk.engine.run_directory import claimed
from cktk.metrics.writers import JsonlWriter
from tests.integration import toy

SHORT = [*toy.SHAPE, "--max-update", "3"]


def test_two_trainings_do_not_share_a_folder(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = toy.run_training(data, tmp_path / "run", *SHORT)
    other = os.open(run, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    assert "another process" in toy.error_of(capsys, *toy.flags(data, run, *SHORT, "--max-update", "5"))
    os.close(other)
    toy.run_training(data, run, *SHORT, "--max-update", "5")


def test_a_worker_that_outlives_its_killed_parent_does_not_keep_the_folder(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    parent = os.fork()
    if parent == 0:
        with claimed(tmp_path / "run", "lr: 1", set()):
            (tmp_path / "run" / "config.yaml").write_text("lr: 1")
            worker = os.fork()
            if worker == 0:
                os.write(writer, str(os.getpid()).encode())
            signal.pause()
    worker = int(os.read(reader, 20))
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    try:
        with claimed(tmp_path / "run", "lr: 1", set()):
            os.kill(worker, 0)  # it is still there
    finally:
        os.kill(worker, signal.SIGKILL)


def test_what_a_killed_process_left_is_swept(data: Path, tmp_path: Path) -> None:
    import platform

    left = tmp_path / "run" / f".checkpoint9.{2**22 + 1}@{platform.node()}.tmp"
    left.mkdir(parents=True)
    toy.run_training(data, tmp_path / "run", *SHORT)
    assert not left.exists()


@pytest.mark.parametrize("content", [b"a: [b", b"", b"\xff\xfe", b"- 3"])
def test_a_damaged_configuration(
    content: bytes, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_bytes(content)
    assert "config.yaml" in toy.error_of(capsys, *toy.flags(data, tmp_path, *SHORT))


def test_a_flipped_byte_in_a_shard(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "bin"
    copy.mkdir()
    for file in data.iterdir():
        if file.is_file():
            (copy / file.name).write_bytes(file.read_bytes())
    (copy / "tokenizer").symlink_to(data / "tokenizer")
    shard = copy / "train-00000.source.bin"
    shard.write_bytes(bytes([shard.read_bytes()[0] ^ 1]) + shard.read_bytes()[1:])
    assert "train-00000.source.bin" in toy.error_of(capsys, *toy.flags(copy, tmp_path / "run", *SHORT))
    assert not (tmp_path / "run").exists()


def test_a_full_disk_under_the_log() -> None:
    from cktk.errors import CktkError

    log = JsonlWriter.__new__(JsonlWriter)
    log._file = open("/dev/full", "r+b", buffering=0)
    with pytest.raises(CktkError, match=r"/dev/full.*No space left"):
        log.write("train", 1, {"loss": 1.0})


def test_a_checkpoint_of_other_settings(
    data: Path, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = toy.run_training(data, tmp_path / "plain", *SHORT)
    restore = ["--restore-file", str(plain / "checkpoint_last")]
    distil = ["--teacher", str(teacher), "--criterion", "linear_kd"]
    error = toy.error_of(capsys, *toy.flags(data, tmp_path / "a", *SHORT, *distil, *restore))
    assert "--finetune-from-model" in error
    error = toy.error_of(capsys, *toy.flags(data, tmp_path / "b", *SHORT, "--freeze-encoder", *restore))
    assert "--reset-optimizer" in error
    more = ["--max-update", "5", "--reset-optimizer", "--freeze-encoder"]
    assert toy.log(toy.run_training(data, tmp_path / "b", *SHORT, *restore, *more))[-1]["update"] == 4
