"""Divergences between a teacher's distribution p and a student's q, element by element in logarithms.

Each function takes ``log_p`` and ``log_q`` (n, columns), some columns of n rows, and returns the rows' values (n,), to
be added up over all columns. In the place of ``log_p`` it leaves the pull r = -q dD/dq (up to a multiple of q, without
effect): the gradient of D in the student's logits is q * sum(r) - r. ``log_q`` stays as it is.

The values are those of true divergences, entropy included: never negative, zero where p = q. Products of probabilities
are formed as sums of logarithms, so that nothing is divided by a probability that has underflowed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from cktk.criteria.configs import Divergence

#: Of log_p (overwritten), log_q and the skew a.
Compare = Callable[[Tensor, Tensor, float], Tensor]


def forward_kl(log_p: Tensor, log_q: Tensor, _: float) -> Tensor:
    """KL(p || q). Its pull is p, whose sum is known to be 1."""
    gap = log_p - log_q
    return gap.mul_(log_p.exp_()).sum(1)


def reverse_kl(log_p: Tensor, log_q: Tensor, _: float) -> Tensor:
    """KL(q || p), pull q log(p / q)."""
    return -log_p.sub_(log_q).mul_(log_q.exp()).sum(1)


def js(log_p: Tensor, log_q: Tensor, _: float) -> Tensor:
    """(KL(p || m) + KL(q || m)) / 2 with m = (p + q) / 2 (Lin 1991), pull -q log(q / m) / 2."""
    log_m = _mixture(log_p, log_q, 0.5)
    values = (log_p - log_m).mul_(log_p.exp()).sum(1)
    torch.sub(log_q, log_m, out=log_p).mul_(log_q.exp())
    values += log_p.sum(1)
    log_p.mul_(-0.5)
    return values / 2


def tv(log_p: Tensor, log_q: Tensor, _: float) -> Tensor:
    """Total variation sum |p - q| / 2, pull q sign(p - q) / 2."""
    q = log_q.exp()
    gap = log_p.exp_().sub_(q)
    values = gap.abs().sum(1) / 2
    gap.sign_().mul_(q).div_(2)
    return values


def skew_kl(log_p: Tensor, log_q: Tensor, skew: float) -> Tensor:
    """KL(p || m) with m = a p + (1 - a) q (Lee 1999; DistiLLM, Ko et al. 2024), pull (1 - a) p q / m."""
    log_m = _mixture(log_p, log_q, skew)
    values = (log_p - log_m).mul_(log_p.exp()).sum(1)
    log_p.add_(log_q).sub_(log_m).add_(math.log1p(-skew)).exp_()
    return values


def reverse_skew_kl(log_p: Tensor, log_q: Tensor, skew: float) -> Tensor:
    """KL(q || m) with m = a p + (1 - a) q, pull (1 - a) q^2 / m - q log(q / m)."""
    log_m = _mixture(log_p, log_q, skew)
    torch.sub(log_q, log_m, out=log_p)
    terms = log_q.exp().mul_(log_p)
    log_p.add_(log_q).add_(math.log1p(-skew)).exp_().sub_(terms)
    return terms.sum(1)


def _mixture(log_p: Tensor, log_q: Tensor, skew: float) -> Tensor:
    return torch.logaddexp(log_p + math.log(skew), log_q + math.log1p(-skew))


DIVERGENCES: Mapping[Divergence, Compare] = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "js": js,
    "tv": tv,
    "skew_kl": skew_kl,
    "reverse_skew_kl": reverse_skew_kl,
}


def part_name(divergence: Divergence) -> str:
    """The name in the log: ``kl`` for the usual direction, the divergence's own for the others."""
    return "kl" if divergence == "forward_kl" else divergence
