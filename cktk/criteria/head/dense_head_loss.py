"""The head loss in plain PyTorch with all logits in memory: the reference that `--head-loss dense` selects."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from cktk.criteria.base import working_dtype
from cktk.criteria.configs import Divergence
from cktk.criteria.head.head_options import (
    HeadLossOptions,
    Teacher,
    check_labels,
    check_teacher,
    check_top_k,
    named_parts,
    remainder,
)
from cktk.protocols import HeadParams, SparseTargets


def dense_head_loss(
    hidden: Tensor,
    labels: Tensor,
    head: HeadParams,
    teacher: Teacher | SparseTargets | None,
    options: HeadLossOptions,
) -> tuple[Tensor, dict[str, Tensor]]:
    """What `head_loss` returns, refuses and means, by autograd. ``memory`` has no effect."""
    check_labels(labels, len(head.weight))
    if teacher is not None:
        check_teacher(teacher, len(labels), len(head.weight), options)
    student = _logits(hidden, head)
    log_p = student.log_softmax(1)
    nll = -log_p.gather(1, labels[:, None]).sum()
    ce = (1 - options.label_smoothing) * nll - options.label_smoothing * log_p.mean(1).sum()
    divergence = torch.zeros_like(ce)
    if teacher is not None:
        log_q = (student / options.temperature).log_softmax(1)
        divergence = options.temperature**2 * _divergence(teacher, log_q, options).sum()
    total = options.ce_weight * ce + options.kl_weight * divergence
    return total, named_parts(torch.stack([ce, nll, divergence]).detach(), options, teacher is not None)


def _logits(states: Tensor, head: HeadParams) -> Tensor:
    dtype = torch.promote_types(states.dtype, head.weight.dtype)
    product = F.linear(states.to(dtype), head.weight.to(dtype))
    logits = product.to(working_dtype(states, head.weight)) * head.scale
    return logits if head.bias is None else logits + head.bias


def _divergence(teacher: Teacher | SparseTargets, log_q: Tensor, options: HeadLossOptions) -> Tensor:
    """Values (N,) for the student's tempered log probabilities (N, V)."""
    if isinstance(teacher, tuple):
        with torch.no_grad():
            log_p = (_logits(*teacher) / options.temperature).log_softmax(1).to(log_q)
        if options.top_k == 0:
            return DEFINITIONS[options.divergence](log_p, log_q, options.skew)
        check_top_k(options.top_k, log_p.shape[1])
        best = log_p.topk(options.top_k, 1)
        teacher = SparseTargets(best.indices, best.values, False, options.temperature)
    ids = teacher.ids.to(log_q.device, torch.int64)
    log_p = teacher.log_probs.to(log_q).clamp(min=math.log(torch.finfo(log_q.dtype).tiny))  # 0 log 0 is 0
    at_ids = log_q.gather(1, ids)
    if teacher.sampled:
        return (log_p - at_ids).mean(1)
    if ids.shape[1] < log_q.shape[1]:
        others = log_q.scatter(1, ids, float("-inf")).logsumexp(1, keepdim=True)
        log_p, at_ids = torch.cat([log_p, remainder(log_p)], 1), torch.cat([at_ids, others], 1)
    return DEFINITIONS[options.divergence](log_p, at_ids, options.skew)


def _kl(first: Tensor, second: Tensor) -> Tensor:
    return (first.exp() * (first - second)).sum(1)


def _mixture(first: Tensor, second: Tensor, share: float) -> Tensor:
    """log(share * first + (1 - share) * second)."""
    weights = first.new_tensor([share, 1 - share]).log()
    return torch.logaddexp(first + weights[0], second + weights[1])


def _js(log_p: Tensor, log_q: Tensor, _: float) -> Tensor:
    middle = _mixture(log_p, log_q, 0.5)
    return (_kl(log_p, middle) + _kl(log_q, middle)) / 2


#: Of log p, log q (N, V) and the skew: values (N,).
DEFINITIONS: Mapping[Divergence, Callable[[Tensor, Tensor, float], Tensor]] = {
    "forward_kl": lambda log_p, log_q, _: _kl(log_p, log_q),
    "reverse_kl": lambda log_p, log_q, _: _kl(log_q, log_p),
    "js": _js,
    "tv": lambda log_p, log_q, _: (log_p.exp() - log_q.exp()).abs().sum(1) / 2,
    "skew_kl": lambda log_p, log_q, skew: _kl(log_p, _mixture(log_p, log_q, skew)),
    "reverse_skew_kl": lambda log_p, log_q, skew: _kl(log_q, _mixture(log_p, log_q, skew)),
}
