from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cktk.criteria.head import logits
from cktk.criteria.head.dense_head_loss import dense_head_loss
from cktk.criteria.head.head_loss import HeadLossOptions, head_loss
from cktk.criteria.head.targets import sampled_targets, top_k_targets
from cktk.errors import ConfigError, DataError
from cktk.protocols import HeadParams, SparseTargets
from tests.unit.criteria.heads import DIVERGENCES, Problem, naive

BOTH = HeadLossOptions(ce_weight=0.7, kl_weight=1.3)
BOTH_PATHS = pytest.mark.parametrize("function", [head_loss, dense_head_loss], ids=["fused", "dense"])


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logits, "_CPU_TILE", 8)


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
