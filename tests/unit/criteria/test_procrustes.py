from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cktk.criteria.procrustes import Procrustes
from cktk.protocols import LayerPair, ModelOutput
from tests.unit.criteria.pooling import ONE, ThreadRanks, assert_equal, cut, gathered, naive, pooled
from tests.unit.criteria.states import PAIRS, centred, naive_procrustes, states, with_gradients


def micro_gradients(loss: Procrustes, student: ModelOutput, teacher: ModelOutput):
    leaves = with_gradients(student)
    (term,) = loss.terms(leaves, teacher)
    assert term.unit == "microbatch"
    term.total.backward()
    return {name: part.item() for name, part in term.parts.items()}, {k: x.grad for k, x in leaves.hidden.items()}


@pytest.mark.parametrize("sizes", [[32], [8] * 4, [1, 13, 0, 18], [1] * 32])
def test_split_changes_nothing(sizes: list[int]) -> None:
    student, teacher = states({"encoder": 32, "decoder": 32})
    loss = Procrustes(PAIRS, "update")
    assert loss.collects == "before" and loss.pooled
    found = pooled(loss, cut(student, teacher, {"encoder": sizes, "decoder": sizes[::-1]}))
    assert_equal("procrustes", found, naive(naive_procrustes, student, teacher), 1e-10)


def test_two_ranks_with_uneven_rows() -> None:
    student, teacher = states({"encoder": 32, "decoder": 32})
    parts = cut(student, teacher, {"encoder": [15, 10, 0, 7], "decoder": [2, 9, 21, 0]})
    ranks = ThreadRanks(2)
    with ThreadPoolExecutor(2) as pool:
        jobs = [
            pool.submit(pooled, Procrustes(PAIRS, "update"), own, ranks.all_reduce) for own in (parts[:2], parts[2:])
        ]
        (found, first), (other, second) = (job.result() for job in jobs)
    assert found == other
    gradients = {key: torch.cat([first[key], second[key]]) for key in first}
    assert_equal("procrustes", (found, gradients), naive(naive_procrustes, student, teacher), 1e-10)


def test_micro_scope() -> None:
    student, teacher = states({"encoder": 20, "decoder": 11})
    loss = Procrustes(PAIRS, "micro")
    assert loss.collects == "no" and not loss.pooled
    assert_equal("procrustes", micro_gradients(loss, student, teacher), naive(naive_procrustes, student, teacher), 1e-9)
    dummy, _ = micro_gradients(loss, *states({"encoder": 0, "decoder": 0}))
    assert {*dummy.values()} == {0}


def test_float32_under_autocast() -> None:
    student, teacher = states({"encoder": 100, "decoder": 100}, dtype=torch.float32)
    parts = cut(student, teacher, {"encoder": [40, 60], "decoder": [99, 1]})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = pooled(Procrustes(PAIRS, "update"), parts)
    assert_equal("procrustes", found, naive(naive_procrustes, student, teacher), 1e-4)


def test_gradcheck() -> None:
    student, teacher = states({"decoder": 9}, pairs=ONE)

    def loss(state: Tensor) -> Tensor:
        return Procrustes(ONE, "micro").terms(ModelOutput({("decoder", 1): state}), teacher)[0].total

    assert torch.autograd.gradcheck(loss, [student.hidden["decoder", 1].requires_grad_()])


def test_it_is_half_the_squared_distance_after_the_best_rotation() -> None:
    student, teacher = states({"decoder": 30}, pairs=ONE, widths={"decoder": (6, 6)})
    s, t = (centred(output.hidden["decoder", 1]) for output in (student, teacher))
    s, t = s / s.norm(), t / t.norm()
    u, _, v = torch.linalg.svd(s.T @ t)
    found, _ = micro_gradients(Procrustes(ONE, "micro"), student, teacher)
    assert found["procrustes"] == pytest.approx((s @ u @ v - t).square().sum().item() / 2, rel=1e-10)


def test_a_rotated_scaled_and_shifted_copy_is_no_distance() -> None:
    _, teacher = states({"decoder": 30}, pairs=ONE)
    rotation, _ = torch.linalg.qr(torch.randn(7, 7, dtype=torch.float64))
    student = ModelOutput({("decoder", 1): 3 * teacher.hidden["decoder", 1] @ rotation + 5})
    found, gradients = micro_gradients(Procrustes(ONE, "micro"), student, teacher)
    assert abs(found["procrustes"]) < 1e-12 and gradients["decoder", 1].abs().max() < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scope", ["update", "micro"])
@pytest.mark.parametrize("case", ["no rows", "one row", "constant student", "constant teacher", "zeros"])
def test_no_variance_is_loss_one_and_gradient_zero(case: str, scope: str, dtype: torch.dtype) -> None:
    rows, key = {"no rows": 0, "one row": 1}.get(case, 37), ("decoder", 1)
    student, teacher = states({"decoder": rows}, pairs=ONE, dtype=dtype)
    if case == "constant student":
        student.hidden[key] = torch.full_like(student.hidden[key], 0.1)
    if case == "constant teacher":
        teacher.hidden[key] = torch.full_like(teacher.hidden[key], -77.7)
    if case == "zeros":
        student.hidden[key], teacher.hidden[key] = student.hidden[key] * 0, teacher.hidden[key] * 0
    loss = Procrustes(ONE, scope)
    found, gradients = (
        micro_gradients(loss, student, teacher) if scope == "micro" else pooled(loss, [(student, teacher)])
    )
    assert {*found.values()} == {0.0 if scope == "micro" and not rows else 1.0}
    assert torch.equal(gradients[key], torch.zeros_like(student.hidden[key]))


def test_fewer_rows_than_features_leave_directions_out() -> None:
    student, teacher = states({"decoder": 4}, pairs=ONE)
    _, gradients = micro_gradients(Procrustes(ONE, "micro"), student, teacher)
    key, step = ("decoder", 1), 1e-6
    moved = [
        naive_procrustes(student.hidden[key] + sign * step * gradients[key], teacher.hidden[key]) for sign in (1, -1)
    ]
    slope = (moved[0] - moved[1]) / (2 * step)
    assert slope.item() == pytest.approx(gradients[key].square().sum().item(), rel=1e-6)


def test_features_without_variance_get_no_arbitrary_gradient() -> None:
    student, teacher = states({"decoder": 30}, pairs=ONE)
    key = ("decoder", 1)
    student.hidden[key][:, 1:] = 0.3
    _, gradients = micro_gradients(Procrustes(ONE, "micro"), student, teacher)
    assert gradients[key][:, 0].norm() > 1e-3 and gradients[key][:, 1:].norm() < 1e-12


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e38])
@pytest.mark.parametrize("scope", ["update", "micro"])
def test_bad_numbers_show_in_the_pair_that_they_are_in(bad: float, scope: str) -> None:
    student, teacher = states({"encoder": 8, "decoder": 8}, dtype=torch.float32)
    student.hidden["encoder", 1][2, 3] = bad
    loss = Procrustes(PAIRS, scope)
    (term,) = (
        loss.terms(student, teacher)
        if scope == "micro"
        else [loss.pooled_term(loss.coefficients(gathered(loss, [(student, teacher)])))]
    )
    not_finite = {name for name, part in term.parts.items() if not math.isfinite(part)}
    assert not_finite == {"procrustes", "procrustes/encoder 1<-2"}


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=5).filter(lambda sizes: sum(sizes) > 1),
    student_width=st.integers(1, 9),
    teacher_width=st.integers(1, 9),
    layers=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=5, unique=True),
    seed=st.integers(0, 1000),
)
def test_any_shape_split_and_layer_map(
    sizes: list[int], student_width: int, teacher_width: int, layers, seed: int
) -> None:
    pairs = tuple(LayerPair("decoder", i, j) for i, j in layers)
    widths = {"decoder": (student_width, teacher_width)}
    student, teacher = states({"decoder": sum(sizes)}, pairs=pairs, widths=widths, seed=seed)
    found, gradients = pooled(Procrustes(pairs, "update"), cut(student, teacher, {"decoder": sizes}))
    for pair in pairs:
        rows = student.hidden["decoder", pair.student], teacher.hidden["decoder", pair.teacher]
        assert found[f"procrustes/{pair}"] == pytest.approx(naive_procrustes(*rows).item(), abs=1e-9)
    assert all(gradient.isfinite().all() for gradient in gradients.values())
