from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cktk.criteria import head_sweep, logits
from cktk.criteria.dense_head_loss import dense_head_loss
from cktk.criteria.head_loss import HeadLossOptions, head_loss
from cktk.criteria.targets import sampled_targets, top_k_targets
from cktk.errors import ConfigError, DataError
from cktk.protocols import HeadParams, SparseTargets
from tests.unit.criteria.heads import DIVERGENCES, Problem, naive

BOTH = HeadLossOptions(ce_weight=0.7, kl_weight=1.3)
ROW = 8 * (43 * 2 + 8)  # bytes of a row of float64 logits, student's and teacher's, with a tile of scratch
BOTH_PATHS = pytest.mark.parametrize("function", [head_loss, dense_head_loss], ids=["fused", "dense"])


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logits, "_CPU_TILE", 8)


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


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("top_k", [0, 6])
def test_large_logits_stay_finite(divergence: str, top_k: int) -> None:
    problem = Problem(dtype=torch.float32)
    with torch.no_grad():
        problem.weight.mul_(30)
        problem.teacher[1].weight.mul_(3 if top_k else 30)  # float32 has to resolve what the teacher's top-k leaves
    options = replace(BOTH, divergence=divergence, top_k=top_k)
    total, _ = problem.loss(options)
    gradients = problem.gradients(total)
    assert all(gradient.isfinite().all() for gradient in gradients)
    double = Problem()  # the naive reference divides probabilities that underflow here; the dense one does not
    for name in ("hidden", "weight", "bias"):
        setattr(double, name, getattr(problem, name).detach().double().requires_grad_())
    states, head = problem.teacher
    double.teacher = (states.double(), HeadParams(head.weight.double(), head.bias.double(), head.scale))
    double.labels = problem.labels
    expected, _ = double.loss(options, function=dense_head_loss)
    torch.testing.assert_close(total.double(), expected, rtol=1e-4, atol=0)
    for found, wanted in zip(gradients, double.gradients(expected), strict=True):
        assert (found - wanted).norm() <= 1e-3 * wanted.norm()


@pytest.mark.parametrize("mass", [1e-4, 1e-9, 1e-20])
def test_others_of_a_certain_student_keep_their_gradient(mass: float) -> None:
    """The student gives all tokens but the teacher's two almost nothing; the teacher gives them a tenth."""
    problem = Problem(rows=1, size=20, width=1, dtype=torch.float32)
    with torch.no_grad():
        problem.weight.zero_()
        problem.bias[:] = torch.linspace(0, 1, 20) + torch.tensor(mass).log()
        problem.bias[[3, 12]] = torch.tensor([1.0, 0.5])
    targets = SparseTargets(torch.tensor([[3, 12]]), torch.tensor([[0.6, 0.3]]).log(), False, 1.0)
    total, _ = problem.loss(HeadLossOptions(0.0, 1.0), targets)
    (found,) = torch.autograd.grad(total, problem.bias)
    expected, _ = naive(problem, HeadLossOptions(0.0, 1.0), targets)
    (wanted,) = torch.autograd.grad(expected, problem.bias)
    torch.testing.assert_close(total.double(), expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-7)
    assert found.sum().abs() < 1e-6  # a change of all logits by the same amount changes nothing


@BOTH_PATHS
@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("top_k", [0, 5])
def test_equal_heads_have_no_divergence(divergence: str, top_k: int, function) -> None:
    problem = Problem(width=7)
    problem.teacher = (problem.hidden.detach(), HeadParams(problem.weight.detach(), problem.bias.detach()))
    options = replace(BOTH, ce_weight=0.0, temperature=3.0, divergence=divergence, top_k=top_k)
    total, parts = problem.loss(options, function=function)
    assert abs(parts.get(divergence, parts.get("kl")).item()) < 1e-12
    if divergence != "tv":  # which has a kink here, and rounding decides its sides
        assert all(gradient.abs().max() < 1e-11 for gradient in problem.gradients(total))


@BOTH_PATHS
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_all_tokens_leave_no_others(divergence: str, function) -> None:
    problem = Problem(width=7, dtype=torch.float32)
    problem.teacher = (problem.hidden.detach(), HeadParams(problem.weight.detach(), problem.bias.detach()))
    _, parts = problem.loss(replace(BOTH, divergence=divergence, top_k=43), function=function)
    assert abs(parts.get(divergence, parts.get("kl")).item()) < 2e-5


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


@BOTH_PATHS
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("sparse", [False, True])
def test_non_finite_values_reach_their_part(bad: float, divergence: str, sparse: bool, function) -> None:
    name = "kl" if divergence == "forward_kl" else divergence
    options = replace(BOTH, divergence=divergence, top_k=3 if sparse else 0)
    problem = Problem()
    problem.teacher[0][4, 1] = bad
    _, parts = problem.loss(options, function=function)
    assert parts["ce"].isfinite() and not parts[name].isfinite()

    problem = Problem()
    with torch.no_grad():
        problem.hidden[4, 1] = bad
    total, parts = problem.loss(options, function=function)
    assert not total.isfinite() and not parts["ce"].isfinite() and not parts[name].isfinite()


@BOTH_PATHS
def test_non_finite_samples_reach_their_part(function) -> None:
    problem = Problem()
    problem.teacher[0][4, 1] = float("nan")
    _, parts = problem.loss(BOTH, sampled_targets(*problem.teacher, 4, 1.0, 1 << 20, None), function)
    assert parts["ce"].isfinite() and parts["kl"].isnan()


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
def test_no_bias(divergence: str) -> None:
    problem = Problem()
    problem.bias = None
    problem.teacher = (problem.teacher[0], HeadParams(problem.teacher[1].weight))
    check(problem, replace(BOTH, divergence=divergence))


@pytest.mark.parametrize("memory", [1, 10 * ROW, 70 * ROW])
def test_logits_fit_the_budget(memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []
    rows_of = head_sweep.HeadSweep._rows_of

    def count(sweep: head_sweep.HeadSweep, width: int) -> Tensor:
        buffer = rows_of(sweep, width)
        held.append(buffer.nbytes)
        return buffer

    monkeypatch.setattr(head_sweep.HeadSweep, "_rows_of", count)
    check(Problem(rows=150), replace(BOTH, memory=memory))
    assert len(held) == 3 and sum(held) == min(memory // ROW or 1, 50) * ROW  # 150 rows in three even chunks


def test_a_tile_of_impossible_tokens() -> None:
    """Logits of -inf, as for padding of the vocabulary: nothing of them is left in cross entropy or its gradient."""
    problem, fewer = Problem(), Problem()
    problem.labels.clamp_(max=7)
    with torch.no_grad():
        problem.bias[8:] = float("-inf")
        for name in ("hidden", "weight", "bias"):
            tensor = getattr(problem, name).detach()
            setattr(fewer, name, (tensor if name == "hidden" else tensor[:8]).clone().requires_grad_())
    fewer.labels = problem.labels
    total, expected = problem.loss(BOTH, None)[0], naive(fewer, BOTH, None)[0]
    torch.testing.assert_close(total, expected)
    for found, wanted in zip(problem.gradients(total), fewer.gradients(expected), strict=True):
        torch.testing.assert_close(found[: len(wanted)], wanted)
        assert (found[len(wanted) :] == 0).all()


@BOTH_PATHS
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_rounded_targets_stay_finite(divergence: str, function) -> None:
    """Probabilities that add up to more than 1, and one that is too small for the dtype of the cache."""
    problem = Problem(rows=2, dtype=torch.float32)
    log_probs = torch.tensor([[0.7001, 0.3, 0.0], [1.0001, 0.0, 0.0]]).log()
    targets = SparseTargets(torch.tensor([[1, 20, 42], [1, 20, 42]]), log_probs, False, 1.0)
    total, _ = problem.loss(replace(BOTH, divergence=divergence), targets, function)
    assert total.isfinite() and all(gradient.isfinite().all() for gradient in problem.gradients(total))


def test_second_backward_is_refused() -> None:
    total, _ = Problem().loss(BOTH)
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="once"):
        total.backward()


@BOTH_PATHS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("top_k", [0, 9])
def test_autocast_rounds_the_products_only(dtype: torch.dtype, divergence: str, top_k: int, function) -> None:
    problem, options = Problem(rows=40, dtype=torch.float32), replace(BOTH, divergence=divergence, top_k=top_k)
    with torch.autocast("cpu", dtype=dtype):
        total, parts = problem.loss(options, function=function)
    assert total.dtype == torch.float32 and all(part.dtype == torch.float32 for part in parts.values())
    expected, _ = naive(problem, options)
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
        total, _ = problem.loss(HeadLossOptions(), None)
    (gradient,) = torch.autograd.grad(total, problem.weight)
    assert (gradient[:20].abs().sum(1) > 0).all()


@BOTH_PATHS
@pytest.mark.parametrize("top_k", [0, 9])
def test_half_precision_teacher_and_wide_teacher_states(top_k: int, function) -> None:
    problem, options = Problem(dtype=torch.float32), replace(BOTH, top_k=top_k)
    expected, _ = naive(problem, options)
    states, head = problem.teacher
    problem.teacher = (states.double(), HeadParams(head.weight.bfloat16(), head.bias.bfloat16(), head.scale))
    total, _ = problem.loss(options, function=function)
    assert total.dtype == torch.float32
    torch.testing.assert_close(total.double(), expected, rtol=0.02, atol=0)


def test_targets_of_a_cache_may_be_narrow() -> None:
    problem = Problem(dtype=torch.float32)
    targets = top_k_targets(*problem.teacher, 5, 1.0, 1 << 20)
    expected, _ = problem.loss(BOTH, targets)
    narrow = SparseTargets(targets.ids.to(torch.int32), targets.log_probs.half(), False, 1.0)
    total, _ = problem.loss(BOTH, narrow)
    assert total.dtype == torch.float32
    torch.testing.assert_close(total, expected, rtol=5e-3, atol=0)


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


@BOTH_PATHS
@pytest.mark.parametrize("top_k", [0, 3])
def test_vocabularies_of_two_sizes_are_refused(top_k: int, function) -> None:
    problem = Problem()
    teacher = (problem.teacher[0], HeadParams(torch.zeros(44, 7, dtype=torch.float64)))
    with pytest.raises(ConfigError, match=r"43 rows and the teacher's 44.*vocabulary"):
        problem.loss(replace(BOTH, top_k=top_k), teacher, function)


@BOTH_PATHS
@pytest.mark.parametrize("label", [43, -1, -100])
def test_label_outside_the_vocabulary_is_refused(label: int, function) -> None:
    problem = Problem()
    problem.labels[3] = label
    with pytest.raises(DataError, match=rf"labels? .*{label}.*43"):
        problem.loss(BOTH, function=function)


@BOTH_PATHS
@pytest.mark.parametrize("sampled", [True, False])
@pytest.mark.parametrize("token", [43, -1])
def test_target_outside_the_vocabulary_is_refused(token: int, sampled: bool, function) -> None:
    problem = Problem()
    targets = SparseTargets(torch.zeros(13, 2, dtype=torch.int64), torch.zeros(13, 2) - 1, sampled, 1.0)
    targets.ids[5, 1] = token
    with pytest.raises(DataError, match=rf"targets name tokens .*{token}.*43"):
        problem.loss(BOTH, targets, function)


@BOTH_PATHS
def test_targets_that_do_not_fit_are_refused(function) -> None:
    problem = Problem()
    ids, log_probs = torch.zeros(13, 2, dtype=torch.int64), torch.zeros(13, 2) - 1
    with pytest.raises(ConfigError, match=r"--temperature 1\b.*teacher cache.* 2;"):
        problem.loss(BOTH, SparseTargets(ids, log_probs, False, 2.0), function)
    with pytest.raises(ConfigError, match=r"--divergence js .*sampled"):
        problem.loss(replace(BOTH, divergence="js"), SparseTargets(ids, log_probs, True, 1.0), function)
    with pytest.raises(DataError, match="12 rows for 13"):
        problem.loss(BOTH, SparseTargets(ids[1:], log_probs[1:], False, 1.0), function)
    with pytest.raises(ConfigError, match="44 .*43: .*--teacher-top-k"):
        problem.loss(replace(BOTH, top_k=44), function=function)
