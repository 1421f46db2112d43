"""Hidden states matched by their similarities to one another."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cktk.criteria.base import HiddenLoss, working_dtype
from cktk.criteria.sides import side_terms
from cktk.protocols import LayerPair, ModelOutput, Term

#: Bytes of one chunk of rows of a similarity matrix.
_CHUNK_BYTES = 8 << 20


class GramMatch(HiddenLoss):
    """Similarity-preserving matching (Tung & Mori 2019, eq. 4) of states of any widths.

    With G_S = S S' and G_T = T T' over the rows of a micro-batch, and u_i, v_i their rows divided by their lengths, a
    row costs |u_i - v_i|^2, from 0 to 4. The loss is the mean over rows: N times theirs, which divides by N^2. It looks
    at one micro-batch at a time, so it depends on how an update is split. Its cost is quadratic in the rows; memory is
    not, since G is never held in full. A state of zeros has u_i = 0: it costs 1, or 0 where the teacher's is zero too,
    and its u_i has no gradient.
    """

    def terms(self, student: ModelOutput, teacher: ModelOutput) -> list[Term]:
        """One term a side: the sum over pairs and rows of |u_i - v_i|^2, per token."""
        return side_terms("gram", self.pairs, lambda pair: _distance(pair, student, teacher))


def _distance(pair: LayerPair, student: ModelOutput, teacher: ModelOutput) -> Tensor:
    own, target = student.hidden[pair.side, pair.student], teacher.hidden[pair.side, pair.teacher]
    total: Tensor = _Gram.apply(own, target)  # type: ignore[no-untyped-call]
    return total


class _Gram(torch.autograd.Function):
    """The sum over rows, and its gradient with respect to the student's, both made in the forward pass by chunks.

    With H_i = -2 (v_i - u_i (u_i . v_i)) / |G_S[i]|, the gradient with respect to row i of G_S: dS = H S + H' S.
    """

    @staticmethod
    def forward(ctx: Any, own: Tensor, target: Tensor) -> Tensor:
        dtype = working_dtype(own, target)
        ctx.dtype = own.dtype
        own, target = own.to(dtype), target.to(dtype)
        gradient = torch.zeros_like(own) if ctx.needs_input_grad[0] else None
        total = torch.zeros((), dtype=dtype, device=own.device)
        with torch.autocast(own.device.type, enabled=False):
            for chunk in _chunks(len(own), dtype):
                u, length = _unit(own[chunk] @ own.T)
                v, _ = _unit(target[chunk] @ target.T)
                total += (u - v).square_().sum()
                if gradient is not None:
                    along = (u * v).sum(-1, keepdim=True)
                    h = u.mul_(along).sub_(v).mul_(2 / length)
                    gradient[chunk] += h @ own
                    gradient.addmm_(h.T, own[chunk])
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_total: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return (by_total * gradient).to(ctx.dtype), None


def _unit(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The rows (used up) divided by their lengths, and the lengths (N, 1); rows of zeros stay, with length infinity."""
    length = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    length = torch.where(length > 0, length, torch.inf)
    return rows.div_(length), length


def _chunks(rows: int, dtype: torch.dtype) -> Iterator[slice]:
    step = max(1, _CHUNK_BYTES // max(1, rows * dtype.itemsize))
    return (slice(start, start + step) for start in range(0, rows, step))
