"""Runs a statistics loss over micro-batches as an update does, and a naive loss over all their rows."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cktk.criteria.base import StatisticsLoss
from cktk.protocols import LayerPair, ModelOutput
from tests.unit.criteria.states import PAIRS, split, with_gradients

ONE = (LayerPair("decoder", 1, 1),)

MicroBatches = list[tuple[ModelOutput, ModelOutput]]
Gradients = dict[tuple[str, int], Tensor]


def alone(tensor: Tensor) -> Tensor:
    """The all-reduce of one process."""
    return tensor


def naive(
    loss: Callable[[Tensor, Tensor], Tensor], student: ModelOutput, teacher: ModelOutput, pairs=PAIRS
) -> tuple[dict[LayerPair, float], Gradients]:
    """Values by pair, and gradients by layer of their sum, by autograd in float64."""
    leaves = with_gradients(ModelOutput({key: state.double() for key, state in student.hidden.items()}))
    values = {}
    for pair in pairs:
        values[pair] = loss(leaves.hidden[pair.side, pair.student], teacher.hidden[pair.side, pair.teacher])
    torch.stack(list(values.values())).sum().backward()
    gradients = {key: leaf.grad for key, leaf in leaves.hidden.items()}
    return {pair: value.item() for pair, value in values.items()}, gradients


def report(loss: StatisticsLoss, coefficients) -> dict[str, float]:
    """What is logged of the pooled loss."""
    term = loss.pooled_term(coefficients)
    assert term.unit == "update" and not term.total.requires_grad
    assert term.total.item() == pytest.approx(term.parts[term.name].item() * len(loss.pairs), nan_ok=True)
    return {name: part.item() for name, part in term.parts.items()}


def gathered(loss: StatisticsLoss, micro_batches: MicroBatches, all_reduce=alone):
    """Pooled statistics of all micro-batches, joined one by one."""
    statistics = None
    for student, teacher in micro_batches:
        statistics = loss.statistics(student, teacher, statistics)
    return loss.pool(statistics, all_reduce)


def pooled(loss: StatisticsLoss, micro_batches: MicroBatches, all_reduce=alone) -> tuple[dict[str, float], Gradients]:
    """Both passes of an update: report and gradients."""
    coefficients = loss.coefficients(gathered(loss, micro_batches, all_reduce))
    leaves = [with_gradients(student) for student, _ in micro_batches]
    for leaf, (_, teacher) in zip(leaves, micro_batches, strict=True):
        (term,) = loss.terms(leaf, teacher, coefficients)
        assert term.unit == "update" and term.total.item() == 0
        assert term.value.item() == loss.pooled_term(coefficients).total.item()
        term.total.backward()
    return report(loss, coefficients), joined(leaves)


def joined(leaves: list[ModelOutput]) -> Gradients:
    return {key: torch.cat([leaf.hidden[key].grad for leaf in leaves]) for key in leaves[0].hidden}


def cut(student: ModelOutput, teacher: ModelOutput, sizes: dict[str, list[int]]) -> MicroBatches:
    """Consecutive micro-batches of the rows of each side."""
    return list(zip(split(student, sizes), split(teacher, sizes), strict=True))


def assert_equal(
    name: str, found: tuple[dict[str, float], Gradients], wanted: tuple[dict[LayerPair, float], Gradients], tolerance
) -> None:
    """Values and gradients of all pairs agree to a relative ``tolerance``."""
    (report, gradients), (values, expected) = found, wanted
    assert all(0.005 < abs(value) < 0.9 for value in values.values())
    assert report[name] == pytest.approx(sum(values.values()) / len(values), rel=tolerance)
    for pair, value in values.items():
        assert report[f"{name}/{pair}"] == pytest.approx(value, rel=tolerance)
    for key, gradient in expected.items():
        assert (gradients[key] - gradient).norm() <= tolerance * gradient.norm()


class ThreadRanks:
    """An all-reduce between threads of this process."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size, timeout=20)
        self.lock = threading.Lock()
        self.sum: Tensor | None = None

    def all_reduce(self, tensor: Tensor) -> Tensor:
        with self.lock:
            self.sum = tensor.clone() if self.sum is None else self.sum + tensor
        self.barrier.wait()
        tensor.copy_(self.sum)
        if self.barrier.wait() == 0:
            self.sum = None
        self.barrier.wait()
        return tensor
