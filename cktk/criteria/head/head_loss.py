"""Cross entropy and a divergence from hidden states and head weights, without ever holding the logits in full.

Rows are taken in chunks whose logits (student's and teacher's) fit a byte budget. Matrix products take a chunk in one
piece, all else goes tile by tile of columns that stay in the processor's cache: a first sweep over the tiles makes the
normalisers, a second one the losses and, in the place of the logits, their gradient. A divergence whose gradient needs
a sum over the vocabulary takes a third sweep; forward KL does not. Gradients of states and weight are made in forward
and only scaled in backward.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cktk.criteria.head.head_options import HeadLossOptions, Teacher, check_labels, check_teacher, named_parts
from cktk.criteria.head.head_sweep import HeadSweep
from cktk.criteria.head.logits import Logits, product_dtype
from cktk.criteria.head.targets import top_k_targets
from cktk.protocols import HeadParams, SparseTargets

__all__ = ["HeadLossOptions", "Teacher", "head_loss"]


def head_loss(
    hidden: Tensor,
    labels: Tensor,
    head: HeadParams,
    teacher: Teacher | SparseTargets | None,
    options: HeadLossOptions,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The summed loss of ``hidden`` (N, d) with ``labels`` (N,), and its unweighted parts, detached, for the log.

    Parts: ``ce``; ``nll``, the cross entropy without smoothing, where there is smoothing; where there is a teacher, to
    which no gradient flows, the divergence times temperature^2, named ``kl`` if it is forward KL and by its own name
    otherwise. Matrix products follow autocast; sums and probabilities are float32, float64 for float64 states.

    `SparseTargets` of the k most probable tokens compare these tokens and all others as one event. Sampled ones
    estimate forward KL by the mean of log p - log q over the draws, without bias, in its gradient too; single values
    may be negative. Raises `ConfigError` where the two vocabularies differ in size or the targets do not fit the
    options, `DataError` for a label or a target that is outside of the vocabulary.
    """
    check_labels(labels, len(head.weight))
    if teacher is not None:
        check_teacher(teacher, len(labels), len(head.weight), options)
    if options.top_k > 0 and isinstance(teacher, tuple):
        teacher = top_k_targets(*teacher, options.top_k, options.temperature, options.memory)
    inputs = (hidden, head.weight, head.bias)
    wanted = [torch.is_grad_enabled() and tensor is not None and tensor.requires_grad for tensor in inputs]
    total, sums = _HeadLoss.apply(*inputs, labels, head.scale, teacher, options, wanted)  # type: ignore[no-untyped-call]
    return total, named_parts(sums, options, teacher is not None)


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        scale: float,
        teacher: Teacher | SparseTargets | None,
        options: HeadLossOptions,
        wanted: list[bool],
    ) -> tuple[Tensor, Tensor]:
        device = hidden.device.type
        products = product_dtype(device)
        with torch.autocast(device, enabled=False):
            logits = Logits(hidden, HeadParams(weight, bias, scale), products)
            sweep = HeadSweep(logits, labels, teacher, products, options, wanted)
            for rows in sweep.chunks():
                sweep.add(rows)
        ctx.gradients = sweep.gradients
        ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in (hidden, weight, bias)]
        sums = sweep.sums()
        ctx.mark_non_differentiable(sums)
        return options.ce_weight * sums[0] + options.kl_weight * sums[2], sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        # Scaled in place and let go, so that the gradient of a large vocabulary exists once.
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("the head loss gives its gradients once: backward was called a second time")
        scaled = [
            None if gradient is None else gradient.mul_(grad_total).to(dtype)
            for gradient, dtype in zip(gradients, ctx.dtypes, strict=True)
        ]
        del gradients
        return (*scaled, None, None, None, None, None)
