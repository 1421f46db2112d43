from __future__ import annotations

import math
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cktk.criteria.cka import Cka, CkaCoefficients
from cktk.protocols import LayerPair, ModelOutput
from tests.unit.criteria.states import PAIRS, naive_cka, split, states, with_gradients

ONE = (LayerPair("decoder", 1, 1),)


def alone(tensor: Tensor) -> Tensor:
    return tensor


def naive(student: ModelOutput, teacher: ModelOutput, pairs=PAIRS) -> tuple[dict[LayerPair, float], dict]:
    """Values by pair, and gradients by layer of their sum, by autograd in float64."""
    leaves = with_gradients(ModelOutput({key: state.double() for key, state in student.hidden.items()}))
    values = {}
    for pair in pairs:
        values[pair] = naive_cka(leaves.hidden[pair.side, pair.student], teacher.hidden[pair.side, pair.teacher])
    torch.stack(list(values.values())).sum().backward()
    gradients = {key: leaf.grad for key, leaf in leaves.hidden.items()}
    return {pair: value.item() for pair, value in values.items()}, gradients


def report(cka: Cka, coefficients: CkaCoefficients) -> dict[str, float]:
    term = cka.pooled_term(coefficients)
    assert term.unit == "update" and not term.total.requires_grad
    assert term.total.item() == pytest.approx(term.parts["cka"].item() * len(cka.pairs), nan_ok=True)
    return {name: part.item() for name, part in term.parts.items()}


def pooled(cka: Cka, micro_batches: list[tuple[ModelOutput, ModelOutput]], all_reduce=alone):
    """Statistics of all micro-batches, merged one by one; then one backward each. Returns report and gradients."""
    statistics = [cka.statistics(student, teacher) for student, teacher in micro_batches]
    merged = statistics[0]
    for other in statistics[1:]:
        merged = cka.merge(merged, other)
    coefficients = cka.coefficients(merged, all_reduce)
    leaves = [with_gradients(student) for student, _ in micro_batches]
    for leaf, (_, teacher) in zip(leaves, micro_batches, strict=True):
        (term,) = cka.terms(leaf, teacher, coefficients)
        assert term.unit == "update"
        term.total.backward()
    gradients = {key: torch.cat([leaf.hidden[key].grad for leaf in leaves]) for key in leaves[0].hidden}
    return report(cka, coefficients), gradients


def assert_pooled(found: dict[str, float], gradients: dict, student, teacher, tolerance: float, pairs=PAIRS) -> None:
    values, expected = naive(student, teacher, pairs)
    assert all(0.05 < value < 0.9 for value in values.values())
    assert found["cka"] == pytest.approx(sum(values.values()) / len(values), rel=tolerance)
    for pair, value in values.items():
        assert found[f"cka/{pair}"] == pytest.approx(value, rel=tolerance)
    for key, gradient in expected.items():
        assert (gradients[key] - gradient).norm() <= tolerance * gradient.norm()


SPLITS = {
    "1x32": ([32], [32]),
    "4x8": ([8] * 4, [8] * 4),
    "8x4": ([4] * 8, [4] * 8),
    "ragged": ([1, 13, 11, 7], [20, 2, 1, 9]),
    "with empty ones": ([0, 30, 2, 0], [16, 0, 0, 16]),
    "rows": ([1] * 32, [1] * 32),
}


@pytest.mark.parametrize("name", SPLITS)
def test_split_changes_nothing(name: str) -> None:
    student, teacher = states({"encoder": 32, "decoder": 32})
    sizes = dict(zip(("encoder", "decoder"), SPLITS[name], strict=True))
    found, gradients = pooled(
        Cka(PAIRS, "update"), list(zip(split(student, sizes), split(teacher, sizes), strict=True))
    )
    assert_pooled(found, gradients, student, teacher, 1e-10)


def test_float32_states_and_half_precision_teacher() -> None:
    sizes = {"encoder": [40, 2, 58], "decoder": [30, 30, 40]}
    student, teacher = states({"encoder": 100, "decoder": 100}, dtype=torch.float32)
    teacher = ModelOutput({key: state.bfloat16() for key, state in teacher.hidden.items()})
    parts = list(zip(split(student, sizes), split(teacher, sizes), strict=True))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, gradients = pooled(Cka(PAIRS, "update"), parts)
    assert_pooled(found, gradients, student, teacher, 1e-4)
    assert all(gradient.dtype == torch.float32 for gradient in gradients.values())


class ThreadRanks:
    """An all-reduce between threads of this process."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size, timeout=20)
        self.lock = threading.Lock()
        self.sum: Tensor | None = None

    def all_reduce(self, tensor: Tensor) -> Tensor:
        with self.lock:
            self.sum = tensor.clone() if self.sum is None else self.sum + tensor
        self.barrier.wait()
        tensor.copy_(self.sum)
        if self.barrier.wait() == 0:
            self.sum = None
        self.barrier.wait()
        return tensor


@pytest.mark.parametrize("second", [[3, 4], [0, 7]])
def test_two_ranks_with_uneven_rows(second: list[int]) -> None:
    student, teacher = states({"encoder": 32, "decoder": 32})
    sizes = {"encoder": [15, 10, *second], "decoder": [2, 9, 21, 0]}
    parts = list(zip(split(student, sizes), split(teacher, sizes), strict=True))
    ranks = ThreadRanks(2)
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(pooled, Cka(PAIRS, "update"), own, ranks.all_reduce) for own in (parts[:2], parts[2:])]
        (found, first), (other_found, second_part) = (job.result() for job in jobs)
    assert found == other_found
    gradients = {key: torch.cat([first[key], second_part[key]]) for key in first}
    assert_pooled(found, gradients, student, teacher, 1e-10)


def test_dummies_have_no_rows_and_count_nothing() -> None:
    cka = Cka(PAIRS, "update")
    statistics = cka.statistics(*states({"encoder": 9, "decoder": 12}))
    dummy_states = states({"encoder": 0, "decoder": 0}, seed=1)
    dummy = cka.statistics(*dummy_states)
    plain = report(cka, cka.coefficients(statistics, alone))
    for merged in (cka.merge(statistics, dummy), cka.merge(dummy, statistics)):
        assert report(cka, cka.coefficients(merged, alone)) == pytest.approx(plain, rel=1e-12)
    (term,) = Cka(PAIRS, "micro").terms(*dummy_states)
    assert term.total.item() == 0 and {part.item() for part in term.parts.values()} == {0}


def test_coefficients_leave_the_statistics_alone() -> None:
    cka = Cka(PAIRS, "update")
    statistics = cka.statistics(*states({"encoder": 9, "decoder": 12}))
    first = report(cka, cka.coefficients(statistics, lambda tensor: tensor.mul_(2)))
    assert report(cka, cka.coefficients(statistics, lambda tensor: tensor.mul_(2))) == first


def test_micro_scope_is_each_micro_batch_by_itself() -> None:
    student, teacher = states({"encoder": 20, "decoder": 11})
    leaves = with_gradients(student)
    (term,) = Cka(PAIRS, "micro").terms(leaves, teacher)
    values, gradients = naive(student, teacher)
    assert term.unit == "microbatch"
    assert term.total.item() == pytest.approx(sum(values.values()), rel=1e-12)
    assert term.parts["cka"].item() == pytest.approx(sum(values.values()) / len(PAIRS), rel=1e-12)
    assert term.parts["cka/decoder 2<-3"].item() == pytest.approx(values[PAIRS[4]], rel=1e-12)
    term.total.backward()
    for key, gradient in gradients.items():
        torch.testing.assert_close(leaves.hidden[key].grad, gradient, rtol=1e-10, atol=1e-12)


def test_micro_scope_passes_gradcheck() -> None:
    student, teacher = states({"decoder": 6}, pairs=ONE)

    def loss(state: Tensor) -> Tensor:
        return Cka(ONE, "micro").terms(ModelOutput({("decoder", 1): state}), teacher)[0].total

    assert torch.autograd.gradcheck(loss, [student.hidden["decoder", 1].requires_grad_()])


def test_value_is_invariant_to_rotation_scale_and_shift() -> None:
    student, teacher = states({"decoder": 30}, pairs=ONE)
    rotation, _ = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64))
    moved = ModelOutput({("decoder", 1): 1e-12 * (student.hidden["decoder", 1] @ rotation) + 1e-11})
    values = [Cka(ONE, "micro").terms(output, teacher)[0].total.item() for output in (student, moved)]
    assert values[1] == pytest.approx(values[0], rel=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scope", ["update", "micro"])
@pytest.mark.parametrize("case", ["no rows", "one row", "constant student", "constant teacher", "zeros"])
def test_no_variance_is_loss_one_and_gradient_zero(case: str, scope, dtype: torch.dtype) -> None:
    rows = {"no rows": 0, "one row": 1}.get(case, 37)
    student, teacher = states({"decoder": rows}, pairs=ONE, dtype=dtype)
    key = ("decoder", 1)
    if case == "constant student":  # 0.1 has no exact mean in binary
        student.hidden[key] = torch.full_like(student.hidden[key], 0.1)
    if case == "constant teacher":
        teacher.hidden[key] = torch.full_like(teacher.hidden[key], -77.7)
    if case == "zeros":
        student.hidden[key], teacher.hidden[key] = student.hidden[key] * 0, teacher.hidden[key] * 0
    student = with_gradients(student)
    cka = Cka(ONE, scope)
    coefficients = cka.coefficients(cka.statistics(student, teacher), alone)
    assert report(cka, coefficients) == {"cka": 1.0, "cka/decoder 1<-1": 1.0}
    (term,) = cka.terms(student, teacher, coefficients)
    assert term.total.item() == (1.0 if scope == "micro" and rows else 0.0)
    term.total.backward()
    assert torch.equal(student.hidden[key].grad, torch.zeros_like(student.hidden[key]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_constant_features_stay_constant_over_many_merges(dtype: torch.dtype) -> None:
    cka = Cka(ONE, "update")
    merged = None
    for rows in range(1, 60):
        _, teacher = states({"decoder": rows}, pairs=ONE, seed=rows, dtype=dtype)
        student = ModelOutput({("decoder", 1): torch.full((rows, 5), 0.7, dtype=dtype)})
        statistics = cka.statistics(student, teacher)
        merged = statistics if merged is None else cka.merge(merged, statistics)
    assert report(cka, cka.coefficients(merged, alone))["cka"] == 1.0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_numbers_show_in_the_value(bad: float) -> None:
    student, teacher = states({"decoder": 8}, pairs=ONE)
    student.hidden["decoder", 1][2, 3] = bad
    cka = Cka(ONE, "update")
    found = report(cka, cka.coefficients(cka.statistics(student, teacher), alone))
    assert math.isnan(found["cka"])


def test_update_scope_without_coefficients() -> None:
    student, teacher = states({"encoder": 4, "decoder": 4})
    cka = Cka(PAIRS, "update")
    with pytest.raises(ValueError, match="coefficients"):
        cka.terms(student, teacher)
    with torch.no_grad():
        assert cka.terms(student, teacher) == []


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(lambda sizes: sum(sizes) > 3),
    student_width=st.integers(1, 9),
    teacher_width=st.integers(1, 9),
    seed=st.integers(0, 1000),
)
def test_any_shape_and_split(sizes: list[int], student_width: int, teacher_width: int, seed: int) -> None:
    widths = {"decoder": (student_width, teacher_width)}
    student, teacher = states({"decoder": sum(sizes)}, pairs=ONE, widths=widths, seed=seed)
    parts = list(zip(split(student, {"decoder": sizes}), split(teacher, {"decoder": sizes}), strict=True))
    found, gradients = pooled(Cka(ONE, "update"), parts)
    values, expected = naive(student, teacher, ONE)
    assert found["cka"] == pytest.approx(values[ONE[0]], abs=1e-10)
    # The gradient is a difference of two terms, which cancel where one feature is matched with one.
    key = ("decoder", 1)
    centred = student.hidden[key] - student.hidden[key].mean(0)
    torch.testing.assert_close(gradients[key], expected[key], rtol=1e-9, atol=1e-10 / centred.norm().item())
