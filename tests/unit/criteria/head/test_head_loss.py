from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cktk.criteria.head import head_sweep, logits
from cktk.criteria.head.dense_head_loss import dense_head_loss
from cktk.criteria.head.head_loss import HeadLossOptions, head_loss
from cktk.criteria.head.targets import sampled_targets, top_k_targets
from cktk.protocols import HeadParams
from tests.unit.criteria.heads import DIVERGENCES, Problem, check, naive

BOTH = HeadLossOptions(ce_weight=0.7, kl_weight=1.3)
ROW = 8 * (43 * 2 + 8)  # bytes of a row of float64 logits, student's and teacher's, with a tile of scratch
BOTH_PATHS = pytest.mark.parametrize("function", [head_loss, dense_head_loss], ids=["fused", "dense"])


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logits, "_CPU_TILE", 8)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("memory", [1, 5 * ROW, 1 << 20], ids=["1 row", "5 rows", "all rows"])
def test_equals_naive(divergence: str, temperature: float, smoothing: float, memory: int) -> None:
    options = replace(
        BOTH, divergence=divergence, skew=0.3, temperature=temperature, label_smoothing=smoothing, memory=memory
    )
    check(Problem(scale=0.6), options)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("top_k", [0, 6])
def test_dense_path_equals_naive(divergence: str, temperature: float, top_k: int) -> None:
    options = replace(BOTH, divergence=divergence, temperature=temperature, label_smoothing=0.1, top_k=top_k)
    check(Problem(scale=0.6), options, function=dense_head_loss)


@BOTH_PATHS
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_cross_entropy_alone(smoothing: float, scale: float, function) -> None:
    check(Problem(scale=scale), replace(BOTH, label_smoothing=smoothing, memory=5 * ROW), None, function)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("k", [1, 7, 42, 43])
def test_top_k_equals_naive(divergence: str, temperature: float, k: int) -> None:
    options = replace(BOTH, divergence=divergence, temperature=temperature, label_smoothing=0.1, memory=3 * ROW)
    problem = Problem(scale=0.6)
    rtol = 1e-10 if k < 42 else 1e-6  # the mass of the teacher's least probable token is a difference from 1
    check(problem, replace(options, top_k=k), rtol=rtol)
    for function in (head_loss, dense_head_loss):
        check(problem, options, top_k_targets(*problem.teacher, k, temperature, 1 << 20), function, rtol=rtol)


@BOTH_PATHS
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_samples_equal_naive(temperature: float, function) -> None:
    problem, options = Problem(scale=0.6), replace(BOTH, temperature=temperature, memory=3 * ROW)
    targets = sampled_targets(*problem.teacher, 60, temperature, 1 << 20, None)
    assert (targets.ids.sort(1).values.diff() == 0).any()  # there are repeats
    check(problem, options, targets, function)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_samples_give_forward_kl_in_the_mean(temperature: float) -> None:
    problem, options = Problem(rows=4, size=20), HeadLossOptions(0.0, 1.0, temperature)
    expected, _ = problem.loss(options)
    wanted = torch.cat([gradient.flatten() for gradient in problem.gradients(expected)])
    generator = torch.Generator().manual_seed(1)
    values, gradients = [], []
    for _ in range(300):
        total, _ = problem.loss(options, sampled_targets(*problem.teacher, 5, temperature, 1 << 20, generator))
        values.append(total.detach())
        gradients.append(torch.cat([gradient.flatten() for gradient in problem.gradients(total)]))
    for found, mean in ((torch.stack(values)[:, None], expected[None].detach()), (torch.stack(gradients), wanted)):
        error = found.std(0) / len(found) ** 0.5
        assert ((found.mean(0) - mean).abs() < 5 * error + 1e-9).all()
        assert (error < 0.3 * mean.abs().max()).all()  # the bound says something


@pytest.mark.parametrize("kind", [*DIVERGENCES, "top_k", "sampled", "cross entropy"])
def test_gradients_are_the_slopes(kind: str) -> None:
    problem = Problem(rows=3, size=11, width=2, scale=0.6)
    options = replace(BOTH, temperature=1.7, label_smoothing=0.2, memory=2 * 8 * 30)
    teacher = None if kind == "cross entropy" else problem.teacher
    if kind in DIVERGENCES:
        options = replace(options, divergence=kind)
    elif kind == "top_k":
        options = replace(options, divergence="js", top_k=4)
    elif kind == "sampled":
        teacher = sampled_targets(*problem.teacher, 4, 1.7, 1 << 20, None)
    gradients = problem.gradients(problem.loss(options, teacher)[0])
    with torch.no_grad():
        for leaf, gradient in zip(problem.leaves, gradients, strict=True):
            flat = leaf.view(-1)
            for i, slope in enumerate(gradient.flatten()):
                kept, values = flat[i].clone(), []
                for step in (1e-5, -1e-5):
                    flat[i] = kept + step
                    values.append(problem.loss(options, teacher)[0])
                flat[i] = kept
                assert (values[0] - values[1]).item() / 2e-5 == pytest.approx(slope.item(), rel=1e-6, abs=1e-7)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(0, 9),
    size=st.integers(1, 30),
    width=st.integers(1, 6),
    memory=st.integers(1, 5000),
    temperature=st.sampled_from([1.0, 0.5, 4.0]),
    smoothing=st.sampled_from([0.0, 0.3]),
    divergence=st.sampled_from(DIVERGENCES),
    top_k=st.integers(0, 12),
)
def test_any_shape(rows, size, width, memory, temperature, smoothing, divergence, top_k) -> None:
    options = replace(BOTH, temperature=temperature, label_smoothing=smoothing, memory=memory, divergence=divergence)
    check(Problem(rows, size, width), replace(options, top_k=min(top_k, size)))


@pytest.mark.parametrize("kind", ["whole", "top_k", "sampled", "none"])
@BOTH_PATHS
def test_no_rows(kind: str, function) -> None:
    problem = Problem(rows=0)
    teacher, options = problem.teacher, replace(BOTH, label_smoothing=0.1, top_k=3 if kind == "top_k" else 0)
    if kind == "none":
        teacher = None
    elif kind == "sampled":
        teacher = sampled_targets(*problem.teacher, 4, 1.0, 1 << 20, None)
    total, parts = problem.loss(options, teacher, function)
    assert total.item() == 0 and all(part.item() == 0 for part in parts.values())
    assert all((gradient == 0).all() for gradient in problem.gradients(total))


@pytest.mark.parametrize("frozen", [("weight", "bias"), ("hidden",), ("bias",)])
@pytest.mark.parametrize("divergence", ["forward_kl", "js"])
def test_frozen_inputs_cost_no_gradient(frozen: tuple[str, ...], divergence: str) -> None:
    problem, names = Problem(), ("hidden", "weight", "bias")
    options = replace(BOTH, divergence=divergence)
    expected = dict(zip(names, problem.gradients(naive(problem, options)[0]), strict=True))
    for name in frozen:
        getattr(problem, name).requires_grad_(False)
    total, _ = problem.loss(options)
    held = total.grad_fn.gradients
    assert [gradient is None for gradient in held] == [name in frozen for name in names]
    total.backward()
    for name in names:
        gradient = getattr(problem, name).grad
        assert gradient is None if name in frozen else torch.allclose(gradient, expected[name], rtol=1e-10)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("top_k", [0, 5])
def test_without_gradients_none_is_made(divergence: str, top_k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    problem, options = Problem(), replace(BOTH, divergence=divergence, top_k=top_k)
    expected = problem.loss(options)[0].item()
    monkeypatch.setattr(head_sweep, "_add_product", None)  # any gradient work would call it
    with torch.no_grad():
        total, _ = problem.loss(options)
    assert not total.requires_grad and total.item() == expected


def test_inputs_stay_as_they_are() -> None:
    problem = Problem()
    targets = top_k_targets(*problem.teacher, 5, 1.0, 1 << 20)
    tensors = (problem.hidden, problem.weight, problem.bias, problem.teacher[0], targets.ids, targets.log_probs)
    before = [tensor.detach().clone() for tensor in tensors]
    for divergence in DIVERGENCES:
        for teacher in ("own", targets):
            problem.loss(replace(BOTH, divergence=divergence), teacher)[0].backward()
    assert all(torch.equal(tensor, kept) for tensor, kept in zip(tensors, before, strict=True))


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_bias_of_zeros(divergence: str) -> None:
    problem = Problem()
    with torch.no_grad():
        problem.bias.zero_()
    check(problem, replace(BOTH, divergence=divergence))


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_no_bias(divergence: str) -> None:
    problem = Problem()
    problem.bias = None
    problem.teacher = (problem.teacher[0], HeadParams(problem.teacher[1].weight))
    check(problem, replace(BOTH, divergence=divergence))


@pytest.mark.parametrize("memory", [1, 10 * ROW, 70 * ROW, 1000 * ROW])
def test_logits_fit_the_budget(memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []
    rows_of = head_sweep.HeadSweep._rows_of

    def count(sweep: head_sweep.HeadSweep, width: int) -> Tensor:
        buffer = rows_of(sweep, width)
        held.append(buffer.nbytes)
        return buffer

    monkeypatch.setattr(head_sweep.HeadSweep, "_rows_of", count)
    check(Problem(rows=300), replace(BOTH, memory=memory))
    rows = {1: 1, 10 * ROW: 10, 70 * ROW: 60, 1000 * ROW: 150}[memory]  # even chunks of at most 64 and 192 rows
    assert len(held) == 3 and sum(held) == rows * ROW


def test_second_backward_is_refused() -> None:
    total, _ = Problem().loss(BOTH)
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="once"):
        total.backward()


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
