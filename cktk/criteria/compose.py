"""The criterion that the engine sees: head loss and hidden-state loss together, and the builders of the registry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from cktk.criteria.base import AllReduce, HiddenLoss, StatisticsLoss
from cktk.criteria.cka import Cka
from cktk.criteria.configs import (
    CkaKdConfig,
    CosineKdConfig,
    CrossEntropyConfig,
    KlKdConfig,
    LinearKdConfig,
)
from cktk.criteria.cosine import CosineMatch
from cktk.criteria.head_loss import HeadLossOptions, Teacher, head_loss
from cktk.criteria.linear import LinearMatch
from cktk.errors import ConfigError
from cktk.protocols import HeadParams, LayerPair, ModelOutput, Needs, Side, Term

#: Student's and teacher's width of a side.
Widths = Mapping[Side, tuple[int, int]]


class Criterion(nn.Module):
    """Head loss, and a hidden-state loss where there is one. It returns undivided terms; the engine weighs them."""

    def __init__(self, options: HeadLossOptions, hidden: HiddenLoss | None = None, hidden_weight: float = 1.0) -> None:
        super().__init__()
        self.options = options
        self.hidden = hidden
        self.hidden_weight = hidden_weight

    def needs(self) -> Needs:
        """The layer pairs, and whether the teacher's head is looked at."""
        return Needs(self.hidden.pairs if self.hidden else (), teacher_head=self.options.kl_weight > 0)

    @property
    def uses_statistics(self) -> bool:
        """Whether an update takes a first pass over all its micro-batches: `statistics`, `merge`, `coefficients`."""
        return isinstance(self.hidden, StatisticsLoss) and self.hidden.two_passes

    def statistics(self, student: ModelOutput, teacher: ModelOutput) -> Any:
        """Detached statistics of a micro-batch."""
        return self._pooling().statistics(student, teacher)

    def merge(self, first: Any, second: Any) -> Any:
        """Statistics of the rows of both, exact whatever the split."""
        return self._pooling().merge(first, second)

    def coefficients(self, statistics: Any, all_reduce: AllReduce) -> Any:
        """What `forward` takes as ``coefficients``; a collective operation, the same calls on all ranks."""
        return self._pooling().coefficients(statistics, all_reduce)

    def pooled_term(self, coefficients: Any) -> Term:
        """The hidden-state loss of all pooled rows, weighted, without gradient: what a validation adds at its end."""
        return replace(self._pooling().pooled_term(coefficients), weight=self.hidden_weight)

    def forward(
        self,
        student: ModelOutput,
        teacher: ModelOutput | None,
        labels: Tensor,
        head: HeadParams,
        teacher_head: HeadParams | None = None,
        coefficients: Any = None,
    ) -> list[Term]:
        """The terms of one micro-batch.

        ``labels`` (N_decoder,) are those of the scored positions. Only where no gradient is wanted may what the
        criterion needs be missing: without teacher, or without the coefficients of `uses_statistics`, those terms are
        left out.
        """
        if teacher is None and self._wants_teacher and torch.is_grad_enabled():
            raise ValueError("the criterion needs the teacher's states")
        terms = [self._head_term(student, self._target(teacher, teacher_head), labels, head)]
        if self.hidden is not None and teacher is not None:
            if isinstance(self.hidden, StatisticsLoss):
                found = self.hidden.terms(student, teacher, coefficients)
            else:
                found = self.hidden.terms(student, teacher)
            terms += [replace(term, weight=self.hidden_weight) for term in found]
        return terms

    def _head_term(self, student: ModelOutput, target: Teacher | None, labels: Tensor, head: HeadParams) -> Term:
        if student.head_input is None:
            raise ValueError("the criterion needs the student's head input")
        total, parts = head_loss(student.head_input, labels, head, target, self.options)
        return Term("head", total, "target_token", parts=parts)

    def _target(self, teacher: ModelOutput | None, head: HeadParams | None) -> Teacher | None:
        if teacher is None or self.options.kl_weight == 0:
            return None
        if teacher.head_input is None or head is None:
            raise ValueError("the criterion needs the teacher's head and its input")
        return teacher.head_input, head

    @property
    def _wants_teacher(self) -> bool:
        return self.hidden is not None or self.options.kl_weight > 0

    def _pooling(self) -> StatisticsLoss:
        if not isinstance(self.hidden, StatisticsLoss):
            raise TypeError("this criterion has no statistics")
        return self.hidden


# The builders share one signature, so that the registry's rows are interchangeable.


def cross_entropy(config: CrossEntropyConfig, pairs: tuple[LayerPair, ...], widths: Widths) -> Criterion:  # noqa: ARG001
    """Cross entropy with gold labels; ``pairs`` and ``widths`` are not looked at."""
    options = HeadLossOptions(label_smoothing=config.label_smoothing, memory=config.logits_memory << 20)
    return Criterion(options)


def kl_kd(config: KlKdConfig, pairs: tuple[LayerPair, ...], widths: Widths) -> Criterion:  # noqa: ARG001
    """Cross entropy and KL(teacher || student); ``pairs`` and ``widths`` are not looked at."""
    return Criterion(_head_options(config))


def cka_kd(config: CkaKdConfig, pairs: tuple[LayerPair, ...], widths: Widths) -> Criterion:  # noqa: ARG001
    """`kl_kd` and CKA of the paired states, of any widths."""
    return Criterion(_head_options(config), Cka(_some(pairs, "cka_kd"), config.cka_scope), config.hidden_weight)


def linear_kd(config: LinearKdConfig, pairs: tuple[LayerPair, ...], widths: Widths) -> Criterion:
    """`kl_kd` and the squared error of the paired states after a trained projection."""
    return Criterion(_head_options(config), LinearMatch(_some(pairs, "linear_kd"), widths), config.hidden_weight)


def cosine_kd(config: CosineKdConfig, pairs: tuple[LayerPair, ...], widths: Widths) -> Criterion:
    """`kl_kd` and the angle between the paired states; raises `ConfigError` where widths differ."""
    return Criterion(_head_options(config), CosineMatch(_some(pairs, "cosine_kd"), widths), config.hidden_weight)


def _head_options(config: KlKdConfig) -> HeadLossOptions:
    return HeadLossOptions(
        ce_weight=config.ce_weight,
        kl_weight=config.kl_weight,
        temperature=config.temperature,
        label_smoothing=config.label_smoothing,
        memory=config.logits_memory << 20,
    )


def _some(pairs: tuple[LayerPair, ...], criterion: str) -> tuple[LayerPair, ...]:
    if not pairs:
        raise ConfigError(f"--criterion {criterion} has no layer pairs to match; use --criterion kl_kd")
    return pairs
