"""The teacher's side of the fused head loss, chunk by chunk of rows: the whole vocabulary, top-k, or samples.

Each kind gives the gradient of its divergence in the student's tempered logits z as ``factor * exp(z - log_sum) - r``,
with a factor and a log sum per row and a pull r (see `cktk.criteria.head.divergences`) that is dense or sparse.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from cktk.criteria.head.divergences import DIVERGENCES
from cktk.criteria.head.head_options import HeadLossOptions, remainder
from cktk.criteria.head.logits import Logits, gather, scatter_add
from cktk.protocols import SparseTargets


class SoftTarget(ABC):
    """Takes up a chunk with `begin`, may `compare` every tile of it, and finishes its tiles' gradients.

    ``one_sweep``: the factor is known before all tiles are compared. ``hidden``: ids (n, k) of the chunk that have no
    part in the student's tempered log sum and in the exponential above.
    """

    one_sweep = True
    hidden: Tensor | None = None
    factor: Tensor | float = 1.0
    log_sum: Tensor

    @abstractmethod
    def take(self, rows: slice) -> None:
        """Chooses the chunk and sets ``hidden``."""

    @abstractmethod
    def begin(self, tiles: list[Tensor], log_sum: Tensor, scratch: Tensor) -> Tensor:
        """Values (n,) that do not need `compare`, from the student's raw logits and their tempered log sum (n, 1)."""

    def compare(self, i: int, log_q: Tensor) -> Tensor | None:  # noqa: ARG002
        """Values (n,) from tile i of the student's tempered log probabilities."""
        return None

    @abstractmethod
    def subtract(self, gradient: Tensor, i: int, weight: float) -> None:
        """Takes ``weight`` times the pull in tile i from ``gradient``."""


class WholeTarget(SoftTarget):
    """All of a live teacher's distribution, in a ``buffer`` for the logits of a chunk. The pull takes their place."""

    def __init__(self, teacher: Logits, options: HeadLossOptions, buffer: Tensor) -> None:
        self.teacher, self.buffer = teacher, buffer
        self.temperature, self.skew = options.temperature, options.skew
        self.divergence = DIVERGENCES[options.divergence]
        self.one_sweep = options.divergence == "forward_kl"  # its pull sums to 1

    def take(self, rows: slice) -> None:
        self.rows = rows

    def begin(self, tiles: list[Tensor], log_sum: Tensor, scratch: Tensor) -> Tensor:  # noqa: ARG002
        self.log_sum = log_sum
        self.tiles, (sums,) = self.teacher.fill(self.rows, self.buffer, scratch, (self.temperature,))
        self.normaliser = sums.logsumexp(1, keepdim=True)
        if not self.one_sweep:
            self.factor = torch.zeros_like(log_sum)
        return log_sum.new_zeros(len(log_sum))

    def compare(self, i: int, log_q: Tensor) -> Tensor:
        tile = self.tiles[i]
        if self.temperature != 1:
            tile.div_(self.temperature)
        values = self.divergence(tile.sub_(self.normaliser), log_q, self.skew)
        if isinstance(self.factor, Tensor):
            self.factor += tile.sum(1, keepdim=True)
        return values

    def subtract(self, gradient: Tensor, i: int, weight: float) -> None:
        gradient.sub_(self.tiles[i], alpha=weight)


class _SparseTarget(SoftTarget):
    """Log probabilities of k ids a row, and a pull at these ids."""

    ids: Tensor
    log_p: Tensor
    pull: Tensor

    def __init__(self, targets: SparseTargets, student: Logits, options: HeadLossOptions) -> None:
        self.columns, self.size, self.options = student.columns, student.size, options
        self.floor = math.log(torch.finfo(student.working).tiny)
        device = student.states.device
        self.all_ids = targets.ids.to(device, torch.int64)
        # A copy, for the pull. A probability of zero counts as the smallest number: 0 log 0 is 0.
        self.all_log_p = targets.log_probs.to(device, student.working).clamp(min=self.floor)

    def take(self, rows: slice) -> None:
        self.ids, self.log_p = self.all_ids[rows], self.all_log_p[rows]

    def subtract(self, gradient: Tensor, i: int, weight: float) -> None:
        scatter_add(gradient, self.columns[i], self.ids, self.pull * -weight)

    def _student(self, tiles: list[Tensor]) -> Tensor:
        """The student's tempered logits at the ids."""
        return gather(tiles, self.columns, self.ids) / self.options.temperature


class SampledTarget(_SparseTarget):
    """Draws from the teacher's distribution: KL(p || q) = E_p log(p / q) as their mean, without bias."""

    def begin(self, tiles: list[Tensor], log_sum: Tensor, scratch: Tensor) -> Tensor:  # noqa: ARG002
        self.log_sum = log_sum
        self.pull = torch.full_like(self.log_p, 1 / self.log_p.shape[1])
        return (self.log_p - (self._student(tiles) - log_sum)).mean(1)


class TopKTarget(_SparseTarget):
    """k tokens, and all others as one event: the divergence between both distributions after this coarsening.

    The student's mass of the others is a sum over them, no difference from 1, and so precise however small it is (down
    to the smallest number of the dtype). The teacher's is a difference, see `remainder`.
    """

    def take(self, rows: slice) -> None:
        super().take(rows)
        self.hidden = self.ids

    def begin(self, tiles: list[Tensor], log_sum: Tensor, scratch: Tensor) -> Tensor:  # noqa: ARG002
        student = self._student(tiles)
        total = torch.logaddexp(log_sum, student.logsumexp(1, keepdim=True))
        self.log_sum = torch.maximum(log_sum, total + self.floor)
        log_p, log_q = self.log_p, student - total
        others = self.ids.shape[1] < self.size
        if others:
            log_p = torch.cat([log_p, remainder(log_p)], 1)
            log_q = torch.cat([log_q, self.log_sum - total], 1)
        values = DIVERGENCES[self.options.divergence](log_p, log_q, self.options.skew)
        slopes = log_q.exp_().mul_(log_p.sum(1, keepdim=True)).sub_(log_p)
        self.factor = slopes[:, -1:].clone() if others else 0.0
        self.pull = -slopes[:, : self.ids.shape[1]]
        return values
