"""The criterion that the engine sees: head loss and matching losses together, and the builders of the registry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cktk.criteria.attention import AttentionLoss, attention_pairs
from cktk.criteria.base import AllReduce, HiddenLoss, StatisticsLoss
from cktk.criteria.cka.cka import Cka, CkaOptions
from cktk.criteria.configs import (
    AttentionKdConfig,
    CkaKdConfig,
    CosineKdConfig,
    CrossEntropyConfig,
    GramKdConfig,
    HiddenKdConfig,
    KlKdConfig,
    LinearKdConfig,
    MatchingConfig,
    ProcrustesKdConfig,
)
from cktk.criteria.cosine import CosineMatch
from cktk.criteria.gram import GramMatch
from cktk.criteria.head.dense_head_loss import dense_head_loss
from cktk.criteria.head.head_loss import HeadLossOptions, Teacher, head_loss
from cktk.criteria.head.head_options import HeadLoss
from cktk.criteria.linear import LinearMatch
from cktk.criteria.procrustes import Procrustes
from cktk.criteria.regression import check_regression, regression_loss
from cktk.errors import ConfigError
from cktk.protocols import HeadParams, LayerPair, Matching, ModelOutput, Needs, Side, SparseTargets, Term


class Criterion(nn.Module):
    """Head loss, and losses of hidden states and of attention where there are any.

    It returns undivided terms; the engine weighs them. ``dense`` takes the plain reference of the head loss,
    ``regression`` that of heads which give a number.
    """

    def __init__(self, options: HeadLossOptions, *, dense: bool = False, regression: bool = False) -> None:
        super().__init__()
        if regression:
            check_regression(options)
        self.options = options
        self._head_loss: HeadLoss = regression_loss if regression else dense_head_loss if dense else head_loss
        self.hidden: HiddenLoss | None = None
        self.attention: HiddenLoss | None = None
        self._weights: dict[str, float] = {}

    def match_hidden(self, loss: HiddenLoss, weight: float) -> Criterion:
        """This criterion with ``weight`` times ``loss`` of hidden states."""
        self.hidden, self._weights["hidden"] = loss, weight
        return self

    def match_attention(self, loss: HiddenLoss, weight: float) -> Criterion:
        """This criterion with ``weight`` times ``loss`` of attention blocks."""
        self.attention, self._weights["attention"] = loss, weight
        return self

    def needs(self) -> Needs:
        """The layer pairs, and whether the heads are looked at."""
        return Needs(
            self.hidden.pairs if self.hidden else (),
            student_head=self.options.ce_weight > 0 or self.options.kl_weight > 0,
            teacher_head=self.options.kl_weight > 0,
            attention=self.attention.attention if self.attention else (),
            first=self.hidden.first if self.hidden else (),
        )

    @property
    def collects(self) -> Literal["no", "before", "along"]:
        """What the next update collects statistics for; see `StatisticsLoss.collects`."""
        return self.hidden.collects if isinstance(self.hidden, StatisticsLoss) else "no"

    @property
    def pooled(self) -> bool:
        """Whether a validation pools statistics, and adds `pooled_term` at its end."""
        return isinstance(self.hidden, StatisticsLoss) and self.hidden.pooled

    @property
    def keeps_state(self) -> bool:
        """Whether `advance` has to be called after an update that was made."""
        return isinstance(self.hidden, StatisticsLoss) and self.hidden.keeps_state

    def statistics(self, student: ModelOutput, teacher: ModelOutput, prior: Any = None) -> Any:
        """Detached statistics of a micro-batch, joined to ``prior``, which is used up."""
        return self._pooling().statistics(student, teacher, prior)

    def pool(self, statistics: Any, all_reduce: AllReduce) -> Any:
        """Statistics of all ranks; a collective operation, the same calls on all of them."""
        return self._pooling().pool(statistics, all_reduce)

    def coefficients(self, pooled: Any) -> Any:
        """What `forward` takes as ``coefficients``."""
        return self._pooling().coefficients(pooled)

    def pooled_term(self, coefficients: Any) -> Term:
        """The hidden-state loss of all pooled rows, weighted, without gradient: what a validation adds at its end."""
        return replace(self._pooling().pooled_term(coefficients), weight=self._weights["hidden"])

    def advance(self, pooled: Any) -> None:
        """Take an update that was made into the state of the loss, if it keeps any."""
        self._pooling().advance(pooled)

    def forward(
        self,
        student: ModelOutput,
        teacher: ModelOutput | None,
        labels: Tensor,
        head: HeadParams | None,
        teacher_head: HeadParams | None = None,
        coefficients: Any = None,
    ) -> list[Term]:
        """The terms of one micro-batch.

        ``labels`` (N_decoder,) are those of the scored positions; ``head`` is None where `needs` asks for none. Only
        where no gradient is wanted may what the criterion needs be missing: without teacher, or without the
        coefficients of pooled statistics, those terms are left out.
        """
        if teacher is None and self._wants_teacher and torch.is_grad_enabled():
            raise ValueError("the criterion needs the teacher's states")
        terms = []
        if head is not None:
            terms.append(self._head_term(student, self._target(teacher, teacher_head), labels, head))
        if teacher is None:
            return terms
        if isinstance(self.hidden, StatisticsLoss):
            found = self.hidden.terms(student, teacher, coefficients)
        else:
            found = self.hidden.terms(student, teacher) if self.hidden else []
        terms += [replace(term, weight=self._weights["hidden"]) for term in found]
        if self.attention is not None:
            found = self.attention.terms(student, teacher)
            terms += [replace(term, weight=self._weights["attention"]) for term in found]
        return terms

    def _head_term(
        self, student: ModelOutput, target: Teacher | SparseTargets | None, labels: Tensor, head: HeadParams
    ) -> Term:
        if student.head_input is None:
            raise ValueError("the criterion needs the student's head input")
        total, parts = self._head_loss(student.head_input, labels, head, target, self.options)
        return Term("head", total, "target_token", parts=parts)

    def _target(self, teacher: ModelOutput | None, head: HeadParams | None) -> Teacher | SparseTargets | None:
        if teacher is None or self.options.kl_weight == 0:
            return None
        if teacher.targets is not None:
            return teacher.targets
        if teacher.head_input is None or head is None:
            raise ValueError("the criterion needs the teacher's head and its input")
        return teacher.head_input, head

    @property
    def _wants_teacher(self) -> bool:
        return self.hidden is not None or self.attention is not None or self.options.kl_weight > 0

    def _pooling(self) -> StatisticsLoss:
        if not isinstance(self.hidden, StatisticsLoss):
            raise TypeError("this criterion has no statistics")
        return self.hidden


# The builders share one signature, so that the registry's rows are interchangeable.


def cross_entropy(config: CrossEntropyConfig, matching: Matching) -> Criterion:
    """Cross entropy with gold labels, or the squared error where these are numbers."""
    options = HeadLossOptions(label_smoothing=config.label_smoothing, memory=config.logits_memory << 20)
    return Criterion(options, dense=config.head_loss == "dense", regression=matching.regression)


def kl_kd(config: KlKdConfig, matching: Matching) -> Criterion:
    """Cross entropy and a divergence from the teacher's distribution; squared errors from labels and teacher's numbers.

    ``matching`` says which of the two.
    """
    return _with_something(_words(config, matching))


def _words(config: KlKdConfig, matching: Matching) -> Criterion:
    return Criterion(head_options(config), dense=config.head_loss == "dense", regression=matching.regression)


def _with_something(criterion: Criterion) -> Criterion:
    """``criterion``, or `ConfigError` if all weights are 0."""
    options = criterion.options
    if not (options.ce_weight or options.kl_weight or criterion.hidden or criterion.attention):
        raise ConfigError("all weights of the loss are 0, so there is nothing to train on; raise one, e.g. --kl-weight")
    return criterion


def head_options(config: KlKdConfig) -> HeadLossOptions:
    """The options of the head loss that ``config`` asks for."""
    return HeadLossOptions(
        ce_weight=config.ce_weight,
        kl_weight=config.kl_weight,
        temperature=config.temperature,
        label_smoothing=config.label_smoothing,
        memory=config.logits_memory << 20,
        divergence=config.divergence,
        skew=config.skew,
        top_k=config.teacher_top_k,
    )


def attention_kd(config: AttentionKdConfig, matching: Matching) -> Criterion:
    """`kl_kd` and attention blocks, matched where layers are paired."""
    return _with_something(_with_attention(config, matching))


def cka_kd(config: CkaKdConfig, matching: Matching) -> Criterion:
    """`kl_kd` and CKA of the paired states, of any widths."""
    options = CkaOptions(
        scope=config.cka_scope,
        form=config.cka_form,
        momentum=config.cka_momentum,
        eps=config.cka_eps,
        dtype=torch.float64 if config.cka_dtype == "float64" else None,
    )
    return _with_hidden(config, matching, Cka(_some(matching), _widths(matching), options))


def procrustes_kd(config: ProcrustesKdConfig, matching: Matching) -> Criterion:
    """`kl_kd` and the orthogonal Procrustes distance of the paired states, of any widths."""
    return _with_hidden(config, matching, Procrustes(_some(matching), config.procrustes_scope))


def gram_kd(config: GramKdConfig, matching: Matching) -> Criterion:
    """`kl_kd` and the similarity matrices of the paired states, of any widths."""
    return _with_hidden(config, matching, GramMatch(_some(matching)))


def linear_kd(config: LinearKdConfig, matching: Matching) -> Criterion:
    """`kl_kd` and the squared error of the paired states after a trained projection."""
    shared = config.projector == "shared"
    return _with_hidden(config, matching, LinearMatch(_some(matching), _widths(matching), shared=shared))


def cosine_kd(config: CosineKdConfig, matching: Matching) -> Criterion:
    """`kl_kd` and the angle between the paired states; raises `ConfigError` where widths differ."""
    return _with_hidden(config, matching, CosineMatch(_some(matching), _widths(matching)))


def _with_hidden(config: HiddenKdConfig, matching: Matching, loss: HiddenLoss) -> Criterion:
    criterion = _with_attention(config, matching)
    return _with_something(criterion.match_hidden(loss, config.hidden_weight) if config.hidden_weight else criterion)


def _with_attention(config: MatchingConfig, matching: Matching) -> Criterion:
    criterion = _words(config, matching)
    if not config.attention_match or not config.attention_weight:
        return criterion
    blocks = attention_pairs(matching.pairs)
    if not blocks:
        raise ConfigError("--attention-match: no layers are paired, only embeddings; give another --layer-map")
    loss = AttentionLoss(blocks, config.attention_match, config.relation_heads, matching.student, matching.teacher)
    return criterion.match_attention(loss, config.attention_weight)


def _some(matching: Matching) -> tuple[LayerPair, ...]:
    if not matching.pairs:
        raise ConfigError("there are no layer pairs to match; give a --layer-map, or use --criterion kl_kd")
    return matching.pairs


def _widths(matching: Matching) -> Mapping[Side, tuple[int, int]]:
    return dict.fromkeys(matching.student.sides, (matching.student.width, matching.teacher.width))
