"""Score matrices of a student's and a teacher's block compared, a few sentences at a time.

A row of scores says how a position relates to the positions that it sees. The gradient is in closed form and is made in
the forward pass, together with the value: what is kept for backward is as large as the projections (B, L, d), and
matrices (heads, L, L) exist for one slice of sentences at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cktk.criteria.base import working_dtype

#: Bytes of one matrix of scores of the sentences that are worked on together, on a CPU, where it should stay in the
#: cache, and on other devices, which want large products. A sentence is never divided.
_CPU_BYTES, _DEVICE_BYTES = 2 << 20, 64 << 20

#: Score of a pair that does not count: vanishes in a softmax, and unlike infinity leaves differences finite.
_HIDDEN = -1e30

#: Own and teacher's scores (C, heads, L, M), which it may overwrite, mask (C, 1, L, M), whether a gradient is wanted ->
#: sum over rows, and its gradient with respect to own scores.
_Rule = Callable[[Tensor, Tensor, Tensor, bool], tuple[Tensor, Tensor | None]]


@dataclass(frozen=True)
class Products:
    """Scores ``scale * left @ right.T + bias`` per head: ``left`` (B, L, d), ``right`` (B, M, d), heads side by side.

    ``bias`` (heads, L, M) is the same for all sentences; None is none.
    """

    left: Tensor
    right: Tensor
    heads: int
    scale: float
    bias: Tensor | None = None

    def scores(self, sentences: slice, dtype: torch.dtype) -> Tensor:
        """Scores (C, heads, L, M) of the C ``sentences``."""
        left, right = (_by_head(x[sentences].to(dtype), self.heads) for x in (self.left, self.right))
        scores = (left * self.scale) @ right.transpose(2, 3)
        return scores if self.bias is None else scores.add_(self.bias.to(dtype))

    def averaged(self) -> Products:
        """The mean over heads of the scores, as the scores of a single head."""
        bias = None if self.bias is None else self.bias.mean(0, keepdim=True)
        return Products(self.left, self.right, 1, self.scale / self.heads, bias)


@dataclass(frozen=True)
class Visible:
    """Which entries of a score matrix count: ``rows`` (B, L) by ``columns`` (B, M), where ``causal`` none on the right.

    A row that sees no column counts for nothing.
    """

    rows: Tensor
    columns: Tensor
    causal: bool

    def mask(self, sentences: slice) -> Tensor:
        """Boolean mask (C, 1, L, M)."""
        mask = self.rows[sentences, None, :, None] & self.columns[sentences, None, None, :]
        return mask.tril() if self.causal else mask


def squared_error(student: Products, teacher: Products, visible: Visible) -> Tensor:
    """Sum over rows of the squared error of the scores, averaged over the columns that the row sees and over heads.

    TinyBERT's attention loss (Jiao et al. 2020, eq. 7) without its rows and columns of pads. Where the numbers of heads
    differ, the scores of each model are averaged over its heads first: an extension of cktk.
    """
    if student.heads != teacher.heads:
        student, teacher = student.averaged(), teacher.averaged()
    return _match(student, teacher, visible, _squared_error)


def divergence(student: Products, teacher: Products, visible: Visible) -> Tensor:
    """Sum over rows of KL(teacher || student) between the softmaxes of the scores, averaged over heads.

    Where the numbers of heads differ, the probabilities of each model are averaged over its heads first: an extension
    of cktk.
    """
    return _match(student, teacher, visible, _divergence)


def matrix_budget(device_type: str) -> int:
    """Bytes of a matrix of scores that exists at one time, where a single sentence does not need more."""
    return _CPU_BYTES if device_type == "cpu" else _DEVICE_BYTES


def _match(student: Products, teacher: Products, visible: Visible, rule: _Rule) -> Tensor:
    total: Tensor = _Match.apply(  # type: ignore[no-untyped-call]
        student.left, student.right, student.bias, student, teacher, visible, rule
    )
    return total


class _Match(torch.autograd.Function):
    """``left``, ``right`` and ``bias`` are the student's, named as arguments so that autograd sees them."""

    @staticmethod
    def forward(
        ctx: Any,
        left: Tensor,
        right: Tensor,
        bias: Tensor | None,
        student: Products,
        teacher: Products,
        visible: Visible,
        rule: _Rule,
    ) -> Tensor:
        dtype = working_dtype(left, right, teacher.left, teacher.right)
        wanted = any(ctx.needs_input_grad)
        inputs = [x for x in (left, right, bias) if x is not None]
        gradients = [torch.zeros_like(x, dtype=dtype) for x in inputs] if wanted else []
        total = torch.zeros((), dtype=dtype, device=left.device)
        with torch.autocast(left.device.type, enabled=False):
            for sentences in _slices(student, teacher, dtype):
                value, by_scores = rule(
                    student.scores(sentences, dtype),
                    teacher.scores(sentences, dtype),
                    visible.mask(sentences),
                    wanted,
                )
                total += value
                if by_scores is not None:
                    if bias is not None:
                        gradients[2] += by_scores.sum(0)
                    by_scores *= student.scale
                    for gradient, x, by in ((0, right, by_scores), (1, left, by_scores.transpose(2, 3))):
                        product = by @ _by_head(x[sentences].to(dtype), student.heads)
                        gradients[gradient][sentences] = product.transpose(1, 2).flatten(2)
        ctx.save_for_backward(*gradients)
        ctx.dtypes = [x.dtype for x in inputs]
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_total: Tensor) -> tuple[Tensor | None, ...]:
        by_left, by_right, *by_bias = (
            (by_total * gradient).to(dtype) for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return by_left, by_right, *(by_bias or [None]), None, None, None, None


def _squared_error(own: Tensor, target: Tensor, mask: Tensor, wanted: bool) -> tuple[Tensor, Tensor | None]:
    share = mask.to(own.dtype) / (mask.sum(-1, keepdim=True).clamp(min=1) * own.shape[1])
    error = own.sub_(target)
    weighed = error * share
    return torch.dot(weighed.flatten(), error.flatten()), weighed.mul_(2) if wanted else None


def _divergence(own: Tensor, target: Tensor, mask: Tensor, wanted: bool) -> tuple[Tensor, Tensor | None]:
    hidden, counted = ~mask, mask.any(-1, keepdim=True).to(own.dtype)
    log_own, log_target = (scores.masked_fill_(hidden, _HIDDEN).log_softmax(-1) for scores in (own, target))
    if own.shape[1] == target.shape[1]:
        share = counted / own.shape[1]
        target_share = log_target.exp().mul_(share)
        value = (target_share * (log_target - log_own)).sum()
        return value, log_own.exp_().mul_(share).sub_(target_share) if wanted else None
    log_mean, log_target = _log_mean(log_own), _log_mean(log_target)
    target_share = log_target.exp().mul_(counted)
    value = (target_share * (log_target - log_mean)).sum()
    if not wanted:
        return value, None
    # The mean's logarithm shares its gradient among the heads by their part in the mean.
    parts = (log_own - log_mean).exp_().div_(own.shape[1]).mul_(target_share)
    return value, log_own.exp_().mul_(parts.sum(-1, keepdim=True)).sub_(parts)


def _log_mean(log_probabilities: Tensor) -> Tensor:
    return log_probabilities.logsumexp(1, keepdim=True) - math.log(log_probabilities.shape[1])


def _by_head(x: Tensor, heads: int) -> Tensor:
    """(C, L, d) -> (C, heads, L, d / heads)."""
    return x.view(*x.shape[:2], heads, x.shape[2] // heads).transpose(1, 2)


def _slices(student: Products, teacher: Products, dtype: torch.dtype) -> Iterator[slice]:
    sentences, rows = student.left.shape[:2]
    matrix = max(student.heads, teacher.heads) * rows * student.right.shape[1] * dtype.itemsize
    step = max(1, matrix_budget(student.left.device.type) // max(1, matrix))
    return (slice(start, start + step) for start in range(0, sentences, step))
