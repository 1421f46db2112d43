"""cktk-cache-teacher, and training from what it wrote."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cktk.data.shards import DataFolder
from cktk.data.teacher_cache.reader import TeacherCache
from cktk_cli.cache_teacher import main as cache_teacher
from cktk_cli.preprocess import main as preprocess
from cktk_cli.train import main as train
from tests.integration import toy

DEPTH = ["--encoder-layers", "2", "--decoder-layers", "1"]
SHORT = [*toy.SHAPE, "--max-update", "6", "--dropout", "0", "--log-interval", "1"]


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting for the disk is not what these tests are about, and some make many files."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def make(data: Path, teacher: Path, folder: Path, *more: str) -> Path:
    """Cache in this process; returns the cache."""
    assert cache_teacher(arguments(data, teacher, folder, *more)) == 0
    return folder


def arguments(data: Path, teacher: Path, folder: Path, *more: str) -> list[str]:
    return [str(data), "--teacher", str(teacher), "--cache-dir", str(folder), "--max-tokens", "150", *more]


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert cache_teacher(list(arguments)) != 0
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("cktk-cache-teacher: error: ")
    return line


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def vocabulary(data: Path) -> str:
    return str(DataFolder(data).vocab_size)


@pytest.fixture(scope="module")
def whole(data: Path, teacher: Path, vocabulary: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All that a student of `toy.SHAPE` can ask for, unrounded."""
    flags = ["--top-k", vocabulary, "--hidden-states", *DEPTH, "--states-dtype", "float32"]
    return make(data, teacher, tmp_path_factory.mktemp("whole") / "cache", *flags)


@pytest.fixture(scope="module")
def sharded(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy corpus in shards of 20 rows."""
    folder = tmp_path_factory.mktemp("sharded") / "bin"
    prefixes = [f"--{split}-prefix={data.parent / split}" for split in ("train", "valid")]
    flags = ["--source-lang", "en", "--target-lang", "fr", "--tokenizer", str(data / "tokenizer")]
    assert preprocess([*prefixes, *flags, "--shard-size", "20", "--dest-dir", str(folder)]) == 0
    return folder


@pytest.mark.parametrize(
    "criterion",
    [
        ["kl_kd", "--divergence", "js"],
        ["cka_kd", "--update-freq", "2"],
        ["linear_kd", "--temperature", "1"],
    ],
)
def test_training_is_that_with_the_teacher(
    criterion: list[str], data: Path, teacher: Path, whole: Path, tmp_path: Path
) -> None:
    flags = [*SHORT, "--criterion", *criterion]
    live = toy.run_training(data, tmp_path / "live", *flags, "--teacher", str(teacher))
    cached = toy.run_training(data, tmp_path / "cached", *flags, "--teacher-cache", str(whole))
    assert len(toy.log(live)) == 6
    for group in ("train", "valid"):
        for record, other in zip(toy.log(live, group), toy.log(cached, group), strict=True):
            assert {**other, "group": 0} == pytest.approx({**record, "group": 0}, rel=1e-5, abs=1e-7)
    for file in ("config.json", "generation_config.json"):
        found, expected = (run / "checkpoint_last" / "student" / file for run in (cached, live))
        assert found.read_bytes() == expected.read_bytes()


def test_few_tokens_are_those_of_the_teachers_top_k(data: Path, teacher: Path, tmp_path: Path) -> None:
    cache = make(data, teacher, tmp_path / "cache", "--top-k", "5", "--temperature", "2")
    flags = [*SHORT, "--criterion", "kl_kd", "--temperature", "2", "--teacher-top-k", "5"]
    live = toy.run_training(data, tmp_path / "live", *flags, "--teacher", str(teacher))
    cached = toy.run_training(data, tmp_path / "cached", *flags, "--teacher-cache", str(cache))
    for record, other in zip(toy.log(live), toy.log(cached), strict=True):
        assert {**other, "group": 0} == pytest.approx({**record, "group": 0}, rel=1e-5, abs=1e-7)


def test_rounded_states_are_close(data: Path, teacher: Path, whole: Path, tmp_path: Path) -> None:
    flags = ["--hidden-states", *DEPTH]
    rounded = make(data, teacher, tmp_path / "cache", *flags)
    states = sum(path.stat().st_size for path in rounded.glob("train-*coder-*"))
    assert 2 * states == sum(path.stat().st_size for path in whole.glob("train-*coder-*"))
    runs = [
        toy.run_training(data, tmp_path / name, *SHORT, "--criterion", "cka_kd", "--teacher-cache", str(cache))
        for name, cache in (("rounded", rounded), ("exact", whole))
    ]
    for record, other in zip(*(toy.log(run) for run in runs), strict=True):
        assert record["cka"] == pytest.approx(other["cka"], rel=1e-2)


def test_students_learn_from_draws(data: Path, teacher: Path, tmp_path: Path) -> None:
    caches = [
        make(data, teacher, tmp_path / name, "--samples", "12", "--seed", seed)
        for name, seed in (("one", "1"), ("same", "1"), ("other", "2"))
    ]
    files = [content(cache) for cache in caches]
    assert files[0] == files[1]
    assert files[0]["train-00000.ids"] != files[2]["train-00000.ids"]
    flags = [*toy.SHAPE, "--max-update", "30", "--dropout", "0", "--criterion", "kl_kd", "--ce-weight", "0"]
    run = toy.run_training(data, tmp_path / "run", *flags, "--teacher-cache", str(caches[0]))
    assert toy.log(run)[-1]["kl"] < toy.log(run)[0]["kl"]


def test_a_teacher_beside_the_cache_gives_its_weights_only(
    data: Path, teacher: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*SHORT, "--criterion", "kl_kd", "--init", "truncate", "--teacher-cache", str(whole)]
    assert "--init truncate" in toy.error_of(capsys, *toy.flags(data, tmp_path / "run", *flags))
    run = toy.run_training(data, tmp_path / "run", *flags, "--teacher", str(teacher), "--lr", "1e-12")
    before = toy.load_file(teacher / "model.safetensors")["model.shared.weight"]
    after = toy.load_file(run / "checkpoint_last/student/model.safetensors")["model.shared.weight"]
    assert after == pytest.approx(before[:, :16].numpy(), abs=1e-6)
    capsys.readouterr()
    toy.run_training(data, tmp_path / "dry", *flags, "--teacher", str(teacher), "--dry-run")
    weights = next(line for line in capsys.readouterr().out.splitlines() if "teacher weights" in line)
    assert "0.0" in weights
    other = toy.make_teacher(tmp_path / "other", data, init_std=0.1)
    error = toy.error_of(capsys, *toy.flags(data, tmp_path / "run2", *flags, "--teacher", str(other)))
    assert "stale" in error and f"another teacher than {other}" in error


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--source-lang", "fr", "--target-lang", "en"], ["source-lang = en, now source-lang = fr"]),
        (["--max-target-positions", "9"], ["max-target-positions = 64, now max-target-positions = 9"]),
        (["--valid-subset", "test"], ["no split test", "--splits test"]),
        (["--criterion", "kl_kd", "--temperature", "2"], ["--temperature 2", "made with 1"]),
        (["--criterion", "kl_kd", "--teacher-top-k", "3"], ["--teacher-top-k 3", "leave it out"]),
        (["--criterion", "cka_kd", "--layer-map", "first:1"], ["decoder 1", "--hidden-states", "--layer-map"]),
        (["--criterion", "attention_kd"], ["attention", "--teacher"]),
        (["--teacher-states-dtype", "bfloat16"], ["--teacher-states-dtype", "--states-dtype"]),
    ],
)
def test_what_the_cache_is_not_for(
    flags: list[str], words: list[str], data: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = [*toy.SHAPE, "--max-update", "2", "--teacher-cache", str(whole)]
    error = toy.error_of(capsys, *toy.flags(data, tmp_path / "run", *common, *flags))
    assert all(word in error for word in words), error


def test_other_data_and_damage_are_refused(
    data: Path, sharded: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*toy.SHAPE, "--max-update", "2", "--criterion", "kl_kd", "--teacher-cache"]
    error = toy.error_of(capsys, *toy.flags(sharded, tmp_path / "run", *flags, str(whole)))
    assert "stale" in error and str(sharded) in error and "cktk-cache-teacher again" in error
    copy = tmp_path / "copy"
    shutil.copytree(whole, copy)
    probabilities = copy / "train-00000.logp"
    sound = probabilities.read_bytes()
    probabilities.write_bytes(sound[:100] + bytes([sound[100] ^ 1]) + sound[101:])
    error = toy.error_of(capsys, *toy.flags(data, tmp_path / "run", *flags, str(copy)))
    assert "train-00000.logp: checksum differs" in error
    probabilities.write_bytes(sound[:-4])
    error = toy.error_of(capsys, *toy.flags(data, tmp_path / "run", *flags, str(copy), "--no-verify-data"))
    assert "train-00000.logp: has" in error
    error = toy.error_of(capsys, *toy.flags(data, tmp_path / "run", *flags, str(tmp_path / "none")))
    assert "no such teacher cache" in error


FLAGS = ["--samples", "3", "--hidden-states", *DEPTH, "--layer-map", "last:1", "--no-match-embeddings"]


def test_killed_and_continued_is_uninterrupted(sharded: Path, teacher: Path, tmp_path: Path) -> None:
    expected = content(make(sharded, teacher, tmp_path / "whole", *FLAGS))
    folder = tmp_path / "killed"
    command = [sys.executable, "-m", "cktk_cli.cache_teacher", *arguments(sharded, teacher, folder, *FLAGS)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    while process.poll() is None and not (folder / "train-00001.json").exists():
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL, "it ended before it could be killed"
    assert not (folder / "manifest.json").exists()
    finished = {path: path.stat().st_mtime_ns for path in folder.glob("*.json")}
    make(sharded, teacher, folder, *FLAGS)
    assert content(folder) == expected
    assert {path: path.stat().st_mtime_ns for path in finished} == finished, "finished shards were made again"


@pytest.mark.distributed
def test_two_processes_write_what_one_does(sharded: Path, teacher: Path, tmp_path: Path) -> None:
    one = make(sharded, teacher, tmp_path / "one", *FLAGS)
    two = make(sharded, teacher, tmp_path / "two", *FLAGS, "--nproc-per-node", "2")
    assert content(two) == content(one)
    TeacherCache(two).verify()


def test_splits_are_added(data: Path, teacher: Path, tmp_path: Path) -> None:
    cache = make(data, teacher, tmp_path / "cache", "--top-k", "2", "--splits", "valid")
    before = (cache / "valid-00000.ids").stat().st_mtime_ns
    make(data, teacher, cache, "--top-k", "2", "--splits", "train")
    assert TeacherCache(cache).splits == ["valid", "train"]
    make(data, teacher, cache, "--top-k", "2")
    assert (cache / "valid-00000.ids").stat().st_mtime_ns == before


def test_it_tells_its_size_and_where_it_is(
    data: Path, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = make(data, teacher, tmp_path / "cache", "--top-k", "4", "--splits", "test", "--bf16")
    first, last = capsys.readouterr().err.strip().splitlines()
    size = sum(path.stat().st_size for path in cache.iterdir() if path.suffix in (".ids", ".logp", ".rows"))
    assert f"{size / 1e9:.3g} GB" in first and "4 most probable tokens" in first
    assert f"{size / 1e9:.3g} GB" in last and str(cache) in last
    assert json.loads((cache / "manifest.json").read_text())["key"]["precision"] == "bfloat16"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--top-k", "5", "--samples", "5"], ["--top-k", "--samples"]),
        (["--top-k", "5000"], ["--top-k 5000", "tokens"]),
        (["--splits", "train,dev"], ["--splits dev", "train, valid, test"]),
        (["--encoder-layers", "2"], ["--encoder-layers", "--hidden-states"]),
        (["--hidden-states", "--layer-map", "skip:9"], ["skip:9"]),
        (["--samples-per-epoch", "9"], ["--samples-per-epoch"]),
        (["--teacher", "/no/such/folder"], ["/no/such/folder"]),
    ],
)
def test_bad_flags_give_one_line(
    flags: list[str], words: list[str], data: Path, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = error_of(capsys, *arguments(data, teacher, tmp_path / "cache", *flags))
    assert all(word in error for word in words), error
    assert not (tmp_path / "cache").exists()


def test_a_disk_that_is_too_small_is_told_at_once(
    data: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    error = error_of(capsys, *arguments(data, teacher, tmp_path / "cache"))
    assert "GB are needed" in error and "--top-k" in error
    assert not (tmp_path / "cache").exists()


def test_the_resolved_flags_of_a_training_name_the_cache(data: Path, whole: Path, tmp_path: Path) -> None:
    flags = [*toy.SHAPE, "--max-update", "2", "--criterion", "kl_kd", "--teacher-cache", str(whole)]
    run = toy.run_training(data, tmp_path / "run", *flags)
    again = ["--config", str(run / "config.yaml"), "--save-dir", str(tmp_path / "again")]
    assert train(again) == 0
    assert (tmp_path / "again" / "log.jsonl").read_bytes() == (run / "log.jsonl").read_bytes()
