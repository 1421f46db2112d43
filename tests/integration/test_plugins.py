"""Plug-ins by --user-dir, each through whole runs: an architecture, criteria and optimizers."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from cktk.registry import ALL_REGISTRIES
from cktk_cli.generate import main as generate
from cktk_cli.train import main as train
from tests.integration import toy

ARCHITECTURE = '''
from dataclasses import dataclass

from transformers import BartConfig, BartForConditionalGeneration

from cktk.architectures.families.bart import BartFamily
from cktk.architectures.configs import StudentConfig
from cktk.registry import ARCHITECTURES


class ToyBartConfig(BartConfig):
    model_type = "toybart"


class ToyBartModel(BartForConditionalGeneration):
    config_class = ToyBartConfig


@dataclass(frozen=True)
class ToyConfig(StudentConfig):
    """Toy student"""


@ARCHITECTURES.register("toy", ToyConfig)
class ToyBartFamily(BartFamily):
    model_type = "toybart"
    config_class = ToyBartConfig
    model_class = ToyBartModel
'''

LEARNING = '''
from dataclasses import dataclass

import torch
from torch import nn

from cktk.config.options import option
from cktk.criteria.compose import Criterion
from cktk.criteria.head.head_loss import HeadLossOptions
from cktk.optim.configs import OptimizerConfig
from cktk.protocols import Needs, Term
from cktk.registry import CRITERIA, OPTIMIZERS


@dataclass(frozen=True)
class SmoothConfig:
    """Cross entropy with a penalty on large states"""

    penalty: float = option(0.1, help="weight of the penalty", minimum=0)


class Smooth(Criterion):
    """Needs no teacher; has a trained scale, which is saved and restored with the run."""

    def __init__(self, penalty):
        super().__init__(HeadLossOptions(kl_weight=0.0))
        self.penalty = penalty
        self.scale = nn.Parameter(torch.ones(()))

    def needs(self):
        return Needs()

    def forward(self, student, teacher, labels, head, teacher_head=None, coefficients=None):
        terms = super().forward(student, teacher, labels, head, teacher_head, coefficients)
        total = (self.scale * student.head_input).square().mean(-1).sum()
        return [*terms, Term("size", total, "target_token", weight=self.penalty)]


@CRITERIA.register("smooth", SmoothConfig)
def smooth(config, matching):
    return Smooth(config.penalty)


@CRITERIA.register("curious", SmoothConfig)
def curious(config, matching):
    criterion = Smooth(config.penalty)
    criterion.needs = lambda: Needs(matching.pairs[:1])
    return criterion


@CRITERIA.register("nothing", SmoothConfig)
def nothing(config, matching):
    return None


@dataclass(frozen=True)
class MomentumConfig(OptimizerConfig):
    """SGD with momentum"""

    momentum: float = option(0.9, help="momentum", minimum=0)


@OPTIMIZERS.register("sgd", MomentumConfig)
def sgd(config, named_parameters):
    return torch.optim.SGD([p for _, p in named_parameters], lr=config.lr, momentum=config.momentum)


@dataclass(frozen=True)
class RateConfig:
    """An optimizer that calls its learning rate otherwise"""

    rate: float = option(0.1, help="learning rate", minimum=0)


@OPTIMIZERS.register("rated", RateConfig)
def rated(config, named_parameters):
    return torch.optim.SGD([p for _, p in named_parameters], lr=config.rate)
'''


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Undo what a plug-in adds, so that tests do not see one another's."""
    for registry in ALL_REGISTRIES:
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    before = set(sys.modules)
    yield
    for name in [name for name in sys.modules if name.startswith("cktk_user_") and name not in before]:
        del sys.modules[name]


def user_dir(folder: Path, source: str) -> list[str]:
    (folder / "mine.py").write_text(source, encoding="utf-8")
    return ["--user-dir", str(folder / "mine.py")]


def test_an_architecture_is_trained_resumed_distilled_and_generates(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*user_dir(tmp_path, ARCHITECTURE), "--arch", "toy"]
    whole = toy.run_training(data, tmp_path / "whole", *flags, *toy.SHAPE, "--max-update", "6", "--eval-bleu")
    part = tmp_path / "part"
    for limit in ("3", "6"):
        toy.run_training(data, part, *flags, *toy.SHAPE, "--max-update", limit, "--eval-bleu")
    expected = toy.tensors(whole / "checkpoint_last")
    found = toy.tensors(part / "checkpoint_last")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert json.loads((whole / "checkpoint_last/student/config.json").read_text())["model_type"] == "toybart"
    # A run directory is a teacher.
    distil = ["--teacher", str(whole), "--criterion", "cka_kd", "--width", "8", "--heads", "2", "--init", "truncate"]
    student = toy.run_training(data, tmp_path / "student", *flags, *distil, "--max-update", "4")
    assert "cka" in toy.log(student)[-1]
    output = tmp_path / "out"
    source = str(data.parent / "test.en")
    assert generate(["--path", str(student), *flags[:2], "--input", source, "--output", str(output)]) == 0
    assert len(output.read_text().split("\n")) == 13
    capsys.readouterr()
    assert train(toy.flags(data, tmp_path / "bart", *flags[:2], *toy.SHAPE, *distil[:4], "--max-update", "1")) != 0
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "--arch bart does not fit the teacher" in error
    assert "toybart: use --arch toy" in error


def test_a_criterion_without_a_teacher_and_an_optimizer_train_and_resume(data: Path, tmp_path: Path) -> None:
    flags = [*user_dir(tmp_path, LEARNING), "--criterion", "smooth", "--optimizer", "sgd", "--penalty", "0.5"]
    flags += [*toy.SHAPE, "--momentum", "0.8", "--log-interval", "1"]
    whole = toy.run_training(data, tmp_path / "whole", *flags, "--max-update", "2")
    part = tmp_path / "part"
    for limit in ("1", "2"):
        toy.run_training(data, part, *flags, "--max-update", limit)
    expected, found = (toy.tensors(run / "checkpoint_last") for run in (whole, part))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert any("momentum_buffer" in name for name in expected)
    scales = [tensor for name, tensor in expected.items() if name.endswith("criterion.scale")]
    assert scales and all(scale != 1 for scale in scales)
    assert "size" in toy.log(whole)[-1]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--criterion", "curious"], ["--criterion curious needs a --teacher"]),
        (["--criterion", "nothing"], ["--criterion nothing", "NoneType", "torch.nn.Module"]),
        (["--optimizer", "rated"], ["--optimizer rated", "RateConfig", "OptimizerConfig", "--lr"]),
    ],
)
def test_a_plug_in_that_does_not_fit_is_named(
    flags: list[str], words: list[str], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # No --lr: one of them has no such option.
    common = [str(data), "--save-dir", str(tmp_path / "run"), "--max-update", "1", *toy.SHAPE]
    assert train([*common, *user_dir(tmp_path, LEARNING), *flags]) != 0
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert all(word in error for word in words), error
