from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cktk.criteria import head_sweep, logits
from cktk.criteria.head_loss import HeadLossOptions, head_loss
from cktk.errors import ConfigError, DataError
from cktk.protocols import HeadParams

BOTH = HeadLossOptions(ce_weight=0.7, kl_weight=1.3)


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logits, "_CPU_TILE", 8)


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
    def leaves(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.hidden, self.weight, self.bias

    def fused(self, options: HeadLossOptions, teacher: bool = True) -> tuple[Tensor, dict[str, Tensor]]:
        return head_loss(self.hidden, self.labels, self.head, self.teacher if teacher else None, options)

    def gradients(self, loss: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(loss, self.leaves))


def log_probabilities(logits: Tensor) -> Tensor:
    return logits - torch.logsumexp(logits, -1, keepdim=True)


def dense(problem: Problem, options: HeadLossOptions, teacher: bool = True) -> tuple[Tensor, dict[str, Tensor]]:
    """The same sums from full float64 logits, by the definitions."""
    h, w, b = (leaf.double() for leaf in problem.leaves)
    logits = problem.scale * (h @ w.T) + b
    log_p = log_probabilities(logits)
    rows, size = log_p.shape
    target = torch.full((rows, size), options.label_smoothing / size, dtype=torch.float64)
    target[torch.arange(rows), problem.labels] += 1 - options.label_smoothing
    parts = {"ce": -(target * log_p).sum(), "nll": -log_p[torch.arange(rows), problem.labels].sum()}
    total = options.ce_weight * parts["ce"]
    if teacher:
        states, head = problem.teacher
        t = options.temperature
        log_q = log_probabilities((head.scale * (states.double() @ head.weight.double().T) + head.bias.double()) / t)
        parts["kl"] = t**2 * (log_q.exp() * (log_q - log_probabilities(logits / t))).sum()
        total = total + options.kl_weight * parts["kl"]
    return total, parts


@pytest.mark.parametrize("memory", [1, 43 * 8 * 2 * 5, 1 << 20], ids=["1 row", "5 rows", "all rows"])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("teacher", [True, False])
@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_equals_dense(memory: int, temperature: float, smoothing: float, teacher: bool, scale: float) -> None:
    options = replace(BOTH, temperature=temperature, label_smoothing=smoothing, memory=memory)
    problem = Problem(scale=scale)
    (total, parts), (expected, expected_parts) = problem.fused(options, teacher), dense(problem, options, teacher)
    assert total.item() == pytest.approx(expected.item(), rel=1e-12)
    assert set(parts) == {"ce"} | ({"nll"} if smoothing else set()) | ({"kl"} if teacher else set())
    for name, value in parts.items():
        assert value.item() == pytest.approx(expected_parts[name].item(), rel=1e-12)
        assert not value.requires_grad
    for found, wanted in zip(problem.gradients(2.5 * total), problem.gradients(2.5 * expected), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


def test_gradients_are_the_slopes() -> None:
    problem = Problem(rows=3, size=11, width=2, scale=0.6)
    options = replace(BOTH, temperature=1.7, label_smoothing=0.2, memory=11 * 8 * 2 * 2)
    gradients = problem.gradients(problem.fused(options)[0])
    with torch.no_grad():
        for leaf, gradient in zip(problem.leaves, gradients, strict=True):
            flat = leaf.view(-1)
            for i, slope in enumerate(gradient.flatten()):
                kept, values = flat[i].clone(), []
                for step in (1e-5, -1e-5):
                    flat[i] = kept + step
                    values.append(problem.fused(options)[0])
                flat[i] = kept
                assert (values[0] - values[1]).item() / 2e-5 == pytest.approx(slope.item(), rel=1e-6, abs=1e-7)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(0, 9),
    size=st.integers(1, 30),
    width=st.integers(1, 6),
    memory=st.integers(1, 5000),
    temperature=st.sampled_from([1.0, 0.5, 4.0]),
    smoothing=st.sampled_from([0.0, 0.3]),
)
def test_any_shape(rows: int, size: int, width: int, memory: int, temperature: float, smoothing: float) -> None:
    problem = Problem(rows, size, width)
    options = replace(BOTH, temperature=temperature, label_smoothing=smoothing, memory=memory)
    total, expected = problem.fused(options)[0], dense(problem, options)[0]
    torch.testing.assert_close(total, expected, rtol=1e-10, atol=1e-10)
    for found, wanted in zip(problem.gradients(total), problem.gradients(expected), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-11)


def test_large_logits_stay_finite() -> None:
    problem = Problem(dtype=torch.float32)
    with torch.no_grad():
        problem.weight.mul_(300)
        problem.teacher[1].weight.mul_(300)
    total, _ = problem.fused(BOTH)
    expected, _ = dense(problem, BOTH)
    torch.testing.assert_close(total.double(), expected, rtol=1e-5, atol=0)
    for found, wanted in zip(problem.gradients(total), problem.gradients(expected), strict=True):
        assert (found - wanted).norm() <= 1e-4 * wanted.norm()


def test_equal_heads_have_no_divergence() -> None:
    problem = Problem(width=7)
    problem.teacher = (problem.hidden.detach(), HeadParams(problem.weight.detach(), problem.bias.detach()))
    total, parts = problem.fused(replace(BOTH, ce_weight=0.0, temperature=3.0))
    assert abs(parts["kl"].item()) < 1e-12
    assert all(gradient.abs().max() < 1e-12 for gradient in problem.gradients(total))


@pytest.mark.parametrize("frozen", [("weight", "bias"), ("hidden",), ("bias",)])
def test_frozen_inputs_cost_no_gradient(frozen: tuple[str, ...]) -> None:
    problem, names = Problem(), ("hidden", "weight", "bias")
    expected = dict(zip(names, problem.gradients(dense(problem, BOTH)[0]), strict=True))
    for name in frozen:
        getattr(problem, name).requires_grad_(False)
    total, _ = problem.fused(BOTH)
    held = total.grad_fn.gradients
    assert [gradient is None for gradient in held] == [name in frozen for name in names]
    total.backward()
    for name in names:
        gradient = getattr(problem, name).grad
        assert gradient is None if name in frozen else torch.allclose(gradient, expected[name], rtol=1e-10)


def test_without_gradients_none_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem()
    expected = problem.fused(BOTH)[0].item()
    monkeypatch.setattr(head_sweep, "_add_product", None)  # any gradient work would call it
    with torch.no_grad():
        total, _ = problem.fused(BOTH)
    assert not total.requires_grad and total.item() == expected


def test_no_bias() -> None:
    problem = Problem()
    teacher = (problem.teacher[0], HeadParams(problem.teacher[1].weight))
    total, _ = head_loss(problem.hidden, problem.labels, HeadParams(problem.weight), teacher, BOTH)
    with torch.no_grad():
        problem.bias.zero_()
    problem.teacher = (teacher[0], HeadParams(teacher[1].weight, torch.zeros(43, dtype=torch.float64)))
    torch.testing.assert_close(total, dense(problem, BOTH)[0], rtol=1e-12, atol=0)


def test_second_backward_is_refused() -> None:
    total, _ = Problem().fused(BOTH)
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="once"):
        total.backward()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_rounds_the_products_only(dtype: torch.dtype) -> None:
    problem = Problem(dtype=torch.float32)
    with torch.autocast("cpu", dtype=dtype):
        total, parts = problem.fused(BOTH)
    assert total.dtype == parts["kl"].dtype == torch.float32
    expected, _ = dense(problem, BOTH)
    torch.testing.assert_close(total.double(), expected, rtol=0.02, atol=0)
    for found, wanted, leaf in zip(problem.gradients(total), problem.gradients(expected), problem.leaves, strict=True):
        assert found.dtype == leaf.dtype
        assert (found - wanted).norm() <= 0.05 * wanted.norm()


def test_small_probabilities_survive_float16() -> None:
    problem = Problem(rows=1, size=40, dtype=torch.float32)
    with torch.no_grad():
        problem.bias[:] = 0
        problem.bias[:20] = -21  # probabilities near 1e-10, below the smallest float16
    with torch.autocast("cpu", dtype=torch.float16):
        total, _ = problem.fused(HeadLossOptions(), teacher=False)
    (gradient,) = torch.autograd.grad(total, problem.weight)
    assert (gradient[:20].abs().sum(1) > 0).all()


def test_half_precision_teacher_and_wide_teacher_states() -> None:
    problem = Problem(dtype=torch.float32)
    expected, _ = dense(problem, BOTH)
    states, head = problem.teacher
    problem.teacher = (states.double(), HeadParams(head.weight.bfloat16(), head.bias.bfloat16(), head.scale))
    total, _ = problem.fused(BOTH)
    assert total.dtype == torch.float32
    torch.testing.assert_close(total.double(), expected, rtol=0.02, atol=0)


def test_tied_embedding_accumulates_over_micro_batches() -> None:
    embedding = nn.Embedding(31, 4, dtype=torch.float64)
    labels = torch.randint(31, (2, 6))

    def loss(rows: Tensor, fused: bool) -> Tensor:
        hidden = embedding(rows).tanh()
        if fused:
            return head_loss(hidden, rows, HeadParams(embedding.weight), None, HeadLossOptions())[0]
        return nn.functional.cross_entropy(hidden @ embedding.weight.T, rows, reduction="sum")

    gradients = []
    for fused in (True, False):
        embedding.zero_grad()
        for rows in labels:
            (loss(rows, fused) / 3).backward()
        gradients.append(embedding.weight.grad.clone())
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)


def test_vocabularies_of_two_sizes_are_refused() -> None:
    problem = Problem()
    teacher = (problem.teacher[0], HeadParams(torch.zeros(44, 7, dtype=torch.float64)))
    with pytest.raises(ConfigError, match=r"43 rows and the teacher's 44.*vocabulary"):
        head_loss(problem.hidden, problem.labels, problem.head, teacher, BOTH)


@pytest.mark.parametrize("label", [43, -1, -100])
def test_label_outside_the_vocabulary_is_refused(label: int) -> None:
    problem = Problem()
    problem.labels[3] = label
    with pytest.raises(DataError, match=rf"labels? .*{label}.*43"):
        problem.fused(BOTH)
