"""Starting weights through cktk-train: what a student is before it has learned anything."""

from __future__ import annotations

from pathlib import Path

import pytest

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
