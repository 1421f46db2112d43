"""Starting weights through cktk-train: what a student is before it has learned anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from cktk_cli.preprocess import main as preprocess
from tests.integration import toy

START = ["--criterion", "kl_kd", "--dropout", "0", "--max-update", "1", "--lr", "1e-9", "--log-interval", "1"]


def first_kl(data: Path, run: Path, *flags: str) -> float:
    """KL of the student as it starts, on the first micro-batch."""
    return float(toy.log(toy.run_training(data, run, *START, *flags))[0]["kl"])


def test_pca_of_full_size_is_the_teacher(data: Path, teacher: Path, tmp_path: Path) -> None:
    found = first_kl(data, tmp_path / "run", "--teacher", str(teacher), "--init", "pca")
    assert abs(found) < 1e-4


def test_pca_starts_nearer_to_the_teacher_than_truncate(data: Path, teacher: Path, tmp_path: Path) -> None:
    flags = ["--teacher", str(teacher), "--width", "24", "--heads", "3", "--ffn-width", "64"]
    pca, truncate = (first_kl(data, tmp_path / init, *flags, "--init", init) for init in ("pca", "truncate"))
    assert pca < truncate


def test_pca_takes_the_same_sample_in_every_process(data: Path, teacher: Path, tmp_path: Path) -> None:
    flags = ["--teacher", str(teacher), *toy.SHAPE, "--init", "pca"]
    alone = first_kl(data, tmp_path / "alone", *flags, "--update-freq", "2")
    together = first_kl(data, tmp_path / "together", *flags, "--nproc-per-node", "2")
    assert together == pytest.approx(alone, rel=1e-5)


def test_pca_needs_a_teacher(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = toy.error_of(capsys, *toy.flags(data, tmp_path / "run", *toy.SHAPE, "--max-update", "1", "--init", "pca"))
    assert "--init pca" in error and "--teacher" in error


def test_an_earlier_student_may_have_another_vocabulary(data: Path, teacher: Path, tmp_path: Path) -> None:
    """As mBART's students that were pretrained with the vocabulary of mBART-50: same tokens, other ids."""
    larger = tmp_path / "larger"
    flags = ["--source-lang", "en", "--target-lang", "fr", "--train-tokenizer", "unigram", "--vocab-size", "360"]
    prefixes = [f"--{split}-prefix={data.parent / split}" for split in ("train", "valid")]
    assert preprocess([*prefixes, *flags, "--dest-dir", str(larger)]) == 0
    shape = ["--width", "16", "--encoder-layers", "2", "--decoder-layers", "2", "--ffn-width", "32", "--heads", "2"]
    limits = ["--max-update", "20", "--max-positions", "64"]
    earlier = toy.run_training(larger, tmp_path / "earlier", *shape, *limits)
    common = ["--teacher", str(teacher), "--criterion", "cross_entropy", "--max-update", "1", "--lr", "1e-9"]
    losses = []
    # The earlier student's sizes need not be repeated.
    for start in ([*shape, "--init", "random"], ["--init", "checkpoint", "--init-checkpoint", str(earlier)]):
        run = toy.run_training(data, tmp_path / start[1], *common, *start, "--log-interval", "1", "--dropout", "0")
        losses.append(toy.log(run)[0]["ce"])
    assert losses[1] < 0.9 * losses[0]
