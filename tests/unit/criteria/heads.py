"""Random heads of a student and a teacher, and losses from full float64 probabilities, written by the definitions."""

from __future__ import annotations

import torch
from torch import Tensor

from cktk.criteria.head.head_loss import HeadLossOptions, head_loss
from cktk.protocols import HeadParams, SparseTargets

DIVERGENCES = ("forward_kl", "reverse_kl", "js", "tv", "skew_kl", "reverse_skew_kl")


class Problem:
    """Leaves h, W, b and a teacher, for N rows and V labels."""

    def __init__(self, rows: int = 13, size: int = 43, width: int = 5, *, dtype=torch.float64, scale: float = 1.0):
        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, dtype=torch.float64).to(dtype)

        self.hidden = draw(rows, width).requires_grad_()
        self.weight = draw(size, width).requires_grad_()
        self.bias = draw(size).requires_grad_()
        self.scale = scale
        self.teacher = (draw(rows, 7), HeadParams(draw(size, 7), draw(size), 0.4))
        self.labels = torch.randint(size, (rows,))

    @property
    def head(self) -> HeadParams:
        return HeadParams(self.weight, self.bias, self.scale)

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        return tuple(leaf for leaf in (self.hidden, self.weight, self.bias) if leaf is not None)

    def loss(self, options: HeadLossOptions, teacher="own", function=head_loss) -> tuple[Tensor, dict[str, Tensor]]:
        return function(self.hidden, self.labels, self.head, self.teacher if teacher == "own" else teacher, options)

    def gradients(self, loss: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(loss, self.leaves))

    def student_logits(self) -> Tensor:
        return full_logits(self.hidden, self.head)


def full_logits(states: Tensor, head: HeadParams) -> Tensor:
    logits = head.scale * (states.double() @ head.weight.double().T)
    return logits if head.bias is None else logits + head.bias.double()


def probabilities(logits: Tensor, temperature: float = 1.0) -> Tensor:
    weights = (logits / temperature - logits.max(1, keepdim=True).values / temperature).exp()
    return weights / weights.sum(1, keepdim=True)


def kl(p: Tensor, q: Tensor) -> Tensor:
    return torch.where(p > 0, p * (p / q).log(), 0.0).sum(1)


def divergence(name: str, p: Tensor, q: Tensor, a: float) -> Tensor:
    """Values (n,) for probabilities p of the teacher and q of the student."""
    if name == "forward_kl":
        return kl(p, q)
    if name == "reverse_kl":
        return kl(q, p)
    if name == "js":
        return 0.5 * kl(p, (p + q) / 2) + 0.5 * kl(q, (p + q) / 2)
    if name == "tv":
        return (p - q).abs().sum(1) / 2
    if name == "skew_kl":
        return kl(p, a * p + (1 - a) * q)
    assert name == "reverse_skew_kl"
    return kl(q, (1 - a) * q + a * p)


def coarse(p: Tensor, ids: Tensor) -> Tensor:
    """The probabilities of ``ids`` and that of all others together."""
    others = torch.ones_like(p).scatter(1, ids, 0.0)
    return torch.cat([p.gather(1, ids), (p * others).sum(1, keepdim=True)], 1)


def naive(problem: Problem, options: HeadLossOptions, teacher="own") -> tuple[Tensor, dict[str, Tensor]]:
    """Total and all parts, the divergence as "kl" or under its name; top-k of the options or of sparse targets."""
    teacher = problem.teacher if teacher == "own" else teacher
    logits = problem.student_logits()
    rows, size = logits.shape
    target = torch.full((rows, size), options.label_smoothing / size, dtype=torch.float64)
    target[torch.arange(rows), problem.labels] += 1 - options.label_smoothing
    log_p = probabilities(logits).log()
    parts = {"ce": -(target * log_p).sum(), "nll": -log_p[torch.arange(rows), problem.labels].sum()}
    total = options.ce_weight * parts["ce"]
    if teacher is not None:
        name = "kl" if options.divergence == "forward_kl" else options.divergence
        parts[name] = options.temperature**2 * _naive_divergence(teacher, logits, options).sum()
        total = total + options.kl_weight * parts[name]
    return total, parts


def _naive_divergence(teacher, logits: Tensor, options: HeadLossOptions) -> Tensor:
    q = probabilities(logits, options.temperature)
    if isinstance(teacher, SparseTargets):
        p = torch.zeros_like(q).scatter(1, teacher.ids, teacher.log_probs.double().exp())
        if teacher.sampled:
            return (teacher.log_probs.double() - q.gather(1, teacher.ids).log()).mean(1)
        ids = teacher.ids
        p = torch.cat([p.gather(1, ids), 1 - p.sum(1, keepdim=True)], 1)
        if ids.shape[1] == q.shape[1]:
            return divergence(options.divergence, p[:, :-1], q.gather(1, ids), options.skew)
        return divergence(options.divergence, p, coarse(q, ids), options.skew)
    p = probabilities(full_logits(*teacher), options.temperature)
    if options.top_k == 0:
        return divergence(options.divergence, p, q, options.skew)
    ids = p.sort(1, descending=True).indices[:, : options.top_k]
    if options.top_k == p.shape[1]:
        return divergence(options.divergence, p, q, options.skew)
    return divergence(options.divergence, coarse(p, ids), coarse(q, ids), options.skew)


def check(problem: Problem, options: HeadLossOptions, teacher="own", function=head_loss, *, rtol=1e-10) -> None:
    """Total, parts and gradients are those of the naive reference."""
    (total, parts), (expected, expected_parts) = (
        problem.loss(options, teacher, function),
        naive(problem, options, teacher),
    )
    torch.testing.assert_close(total, expected, rtol=rtol, atol=1e-10)
    names = {"ce"} | ({"nll"} if options.label_smoothing else set()) | (set(expected_parts) - {"ce", "nll"})
    assert set(parts) == names
    for name, value in parts.items():
        torch.testing.assert_close(value, expected_parts[name].detach(), rtol=rtol, atol=1e-10)
        assert not value.requires_grad
    for found, wanted in zip(problem.gradients(2.5 * total), problem.gradients(2.5 * expected), strict=True):
        torch.testing.assert_close(found, wanted, rtol=10 * rtol, atol=1e-11)
