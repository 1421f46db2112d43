"""CKA of scopes "update" and "micro", in all forms."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cktk.criteria.cka import cka_forms, symmetric
from cktk.criteria.cka.cka import Cka, CkaOptions
from cktk.errors import ConfigError
from cktk.protocols import LayerPair, ModelOutput
from tests.unit.criteria.pooling import ONE, ThreadRanks, alone, assert_equal, cut, gathered, naive, pooled, report
from tests.unit.criteria.states import PAIRS, WIDTHS, naive_cka, states, with_gradients

FORMS = ("sqrt", "squared", "debiased")


def cka(scope: str = "update", form: str = "sqrt", pairs=PAIRS, **options) -> Cka:
    return Cka(pairs, WIDTHS, CkaOptions(scope, form, **options))


def micro_gradients(loss: Cka, student: ModelOutput, teacher: ModelOutput):
    """Report and gradients of one micro-batch."""
    leaves = with_gradients(student)
    (term,) = loss.terms(leaves, teacher)
    assert term.unit == "microbatch" and term.value is None
    assert term.total.item() == pytest.approx(term.parts["cka"].item() * len(loss.pairs))
    term.total.backward()
    return {name: part.item() for name, part in term.parts.items()}, {k: x.grad for k, x in leaves.hidden.items()}


SPLITS = {
    "1x32": ([32], [32]),
    "4x8": ([8] * 4, [8] * 4),
    "8x4": ([4] * 8, [4] * 8),
    "ragged": ([1, 13, 11, 7], [20, 2, 1, 9]),
    "with empty ones": ([0, 30, 2, 0], [16, 0, 0, 16]),
    "rows": ([1] * 32, [1] * 32),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", SPLITS)
def test_split_changes_nothing(name: str, form: str) -> None:
    student, teacher = states({"encoder": 32, "decoder": 32})
    sizes = dict(zip(("encoder", "decoder"), SPLITS[name], strict=True))
    found = pooled(cka(form=form), cut(student, teacher, sizes))
    assert_equal("cka", found, naive(partial(naive_cka, form=form), student, teacher), 1e-10)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("scope", ["update", "micro"])
def test_eps_is_added_to_both_norms(scope: str, form: str) -> None:
    student, teacher = states({"encoder": 12, "decoder": 12})
    wanted = naive(partial(naive_cka, form=form, eps=3.0), student, teacher)
    loss = cka(scope, form, eps=3.0)
    found = micro_gradients(loss, student, teacher) if scope == "micro" else pooled(loss, [(student, teacher)])
    assert_equal("cka", found, wanted, 1e-10)
    assert abs(wanted[0][PAIRS[0]] - naive(partial(naive_cka, form=form), student, teacher)[0][PAIRS[0]]) > 1e-3


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("noise", [0.15, 4.0])
def test_float32_states_and_half_precision_teacher(form: str, noise: float) -> None:
    pairs = (LayerPair("decoder", 1, 1), LayerPair("decoder", 2, 2))
    student, teacher = states({"decoder": 400}, pairs=pairs, dtype=torch.float32, noise=noise)
    teacher = ModelOutput({key: state.bfloat16() for key, state in teacher.hidden.items()})
    values, gradients = naive(partial(naive_cka, form=form), student, teacher, pairs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, found_gradients = pooled(cka(form=form, pairs=pairs), cut(student, teacher, {"decoder": [130, 2, 268]}))
    for pair, value in values.items():
        assert found[f"cka/{pair}"] == pytest.approx(value, rel=1e-4)
    for key, gradient in gradients.items():
        assert found_gradients[key].dtype == torch.float32
        assert (found_gradients[key] - gradient).norm() <= 1e-4 * gradient.norm()
    if form == "sqrt":
        assert (0.03 < value < 0.2) if noise < 1 else (0.7 < value < 0.95)


def test_dtype_float64_computes_float32_states_exactly() -> None:
    student, teacher = states({"encoder": 30, "decoder": 30}, dtype=torch.float32)
    found, gradients = pooled(
        cka(dtype=torch.float64), cut(student, teacher, {"encoder": [20, 10], "decoder": [2, 28]})
    )
    values, _ = naive(naive_cka, student, teacher)
    assert found["cka/encoder 1<-2"] == pytest.approx(values[PAIRS[1]], rel=1e-12)
    assert {gradient.dtype for gradient in gradients.values()} == {torch.float32}


def test_half_precision_states_get_gradients_of_their_own_dtype() -> None:
    student, teacher = states({"encoder": 30, "decoder": 30}, dtype=torch.bfloat16)
    _, gradients = micro_gradients(cka("micro"), student, teacher)
    _, expected = naive(naive_cka, student, teacher)
    for key, gradient in gradients.items():
        assert gradient.dtype == torch.bfloat16
        assert (gradient - expected[key]).norm() < 0.01 * expected[key].norm()


@pytest.mark.parametrize("form", ["sqrt", "debiased"])
@pytest.mark.parametrize("second", [[3, 4], [0, 7]])
def test_two_ranks_with_uneven_rows(second: list[int], form: str) -> None:
    student, teacher = states({"encoder": 32, "decoder": 32})
    parts = cut(student, teacher, {"encoder": [15, 10, *second], "decoder": [2, 9, 21, 0]})
    ranks = ThreadRanks(2)
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(pooled, cka(form=form), own, ranks.all_reduce) for own in (parts[:2], parts[2:])]
        (found, first), (other_found, second_part) = (job.result() for job in jobs)
    assert found == other_found
    gradients = {key: torch.cat([first[key], second_part[key]]) for key in first}
    assert_equal("cka", (found, gradients), naive(partial(naive_cka, form=form), student, teacher), 1e-10)


@pytest.mark.parametrize("form", FORMS)
def test_dummies_have_no_rows_and_count_nothing(form: str) -> None:
    loss, real = cka(form=form), states({"encoder": 9, "decoder": 12})
    dummy = states({"encoder": 0, "decoder": 0}, seed=1)
    plain, _ = pooled(loss, [real])
    for batches in ([real, dummy], [dummy, real]):
        assert pooled(loss, batches)[0] == pytest.approx(plain, rel=1e-12)
    found, _ = micro_gradients(cka("micro", form), *dummy)
    assert {*found.values()} == {0}


def test_statistics_are_added_in_place() -> None:
    loss = cka()
    first = loss.statistics(*states({"encoder": 9, "decoder": 12}))
    matrices = [(side.cross, side.student.second, side.teacher.second) for side in first.values()]
    second = loss.statistics(*states({"encoder": 5, "decoder": 7}, seed=1), first)
    for own, side in zip(matrices, second.values(), strict=True):
        assert all(a is b for a, b in zip(own, (side.cross, side.student.second, side.teacher.second), strict=True))


def test_a_shared_teacher_layer_has_one_moment() -> None:
    decoder = cka().statistics(*states({"encoder": 9, "decoder": 12}))["decoder"]
    assert (len(decoder.cross), len(decoder.student.second), len(decoder.teacher.second)) == (3, 3, 2)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("gram", [True, False])
def test_micro_scope_is_each_micro_batch_by_itself(monkeypatch: pytest.MonkeyPatch, form: str, gram: bool) -> None:
    monkeypatch.setattr(cka_forms, "gram_is_cheaper", lambda *_: gram)
    student, teacher = states({"encoder": 20, "decoder": 11})
    wanted = naive(partial(naive_cka, form=form), student, teacher)
    assert_equal("cka", micro_gradients(cka("micro", form), student, teacher), wanted, 1e-10)


def test_the_cheaper_form_is_chosen() -> None:
    loss = Cka(ONE, {"decoder": (384, 1024)}, CkaOptions("micro"))
    chosen = {}
    for rows in (128, 4096):
        student, teacher = states({"decoder": rows}, pairs=ONE, widths={"decoder": (384, 1024)}, dtype=torch.float32)
        chosen[rows] = cka_forms.gram_is_cheaper(loss.layouts[0], loss._rows(loss.layouts[0], student, teacher))
    assert chosen == {128: True, 4096: False}


@pytest.mark.parametrize("scope", ["update", "micro"])
def test_matrices_of_several_blocks(monkeypatch: pytest.MonkeyPatch, scope: str) -> None:
    monkeypatch.setattr(symmetric, "_BLOCK", 3)
    for form in FORMS:
        for gram in (True, False):
            monkeypatch.setattr(cka_forms, "gram_is_cheaper", lambda *_, gram=gram: gram)
            student, teacher = states({"encoder": 19, "decoder": 10})
            parts = cut(student, teacher, {"encoder": [8, 11], "decoder": [9, 1]})
            found = (
                pooled(cka(form=form), parts)
                if scope == "update"
                else micro_gradients(cka("micro", form), student, teacher)
            )
            assert_equal("cka", found, naive(partial(naive_cka, form=form), student, teacher), 1e-10)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("gram", [True, False])
def test_micro_scope_passes_gradcheck(monkeypatch: pytest.MonkeyPatch, form: str, gram: bool) -> None:
    monkeypatch.setattr(cka_forms, "gram_is_cheaper", lambda *_: gram)
    pairs, widths = (*ONE, LayerPair("decoder", 1, 2)), {"decoder": (3, 4)}
    student, teacher = states({"decoder": 5}, pairs=pairs, widths=widths)

    def loss(*layers: Tensor) -> Tensor:
        output = ModelOutput(dict(zip(student.hidden, layers, strict=True)))
        return Cka(pairs, widths, CkaOptions("micro", form, eps=0.5)).terms(output, teacher)[0].total

    assert torch.autograd.gradcheck(loss, [state.requires_grad_() for state in student.hidden.values()])


@pytest.mark.parametrize("form", FORMS)
def test_value_is_invariant_to_rotation_scale_and_shift(form: str) -> None:
    student, teacher = states({"decoder": 30}, pairs=ONE)
    rotation, _ = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64))
    moved = ModelOutput({("decoder", 1): 1e-12 * (student.hidden["decoder", 1] @ rotation) + 1e-11})
    found = [micro_gradients(cka("micro", form, ONE), output, teacher) for output in (student, moved)]
    assert found[1][0]["cka"] == pytest.approx(found[0][0]["cka"], rel=1e-8)
    plain, tiny = (gradients["decoder", 1] for _, gradients in found)
    assert (1e-12 * tiny - plain @ rotation).norm() < 1e-8 * plain.norm()


def test_small_float32_states_have_gradients() -> None:
    student, teacher = states({"decoder": 30}, pairs=ONE)
    small = [ModelOutput({k: (1e-6 * x).float() for k, x in output.hidden.items()}) for output in (student, teacher)]
    found, gradients = pooled(cka(pairs=ONE), [tuple(small)])
    wanted, expected = naive(naive_cka, *small, ONE)
    assert found["cka"] == pytest.approx(wanted[ONE[0]], rel=1e-4)
    assert (gradients["decoder", 1] - expected["decoder", 1]).norm() < 1e-4 * expected["decoder", 1].norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scope", ["update", "micro", "summed", "running"])
@pytest.mark.parametrize("case", ["no rows", "one row", "constant student", "constant teacher", "zeros"])
def test_no_variance_is_loss_one_and_gradient_zero(case: str, scope: str, dtype: torch.dtype) -> None:
    rows = {"no rows": 0, "one row": 1}.get(case, 37)
    student, teacher = states({"decoder": rows}, pairs=ONE, dtype=dtype)
    key = ("decoder", 1)
    if case == "constant student":  # 0.1 has no exact mean in binary
        student.hidden[key] = torch.full_like(student.hidden[key], 0.1)
    if case == "constant teacher":
        teacher.hidden[key] = torch.full_like(teacher.hidden[key], -77.7)
    if case == "zeros":
        student.hidden[key], teacher.hidden[key] = student.hidden[key] * 0, teacher.hidden[key] * 0
    for form in FORMS if scope in ("update", "micro") else FORMS[:2]:
        for gram in (True, False):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(cka_forms, "gram_is_cheaper", lambda *_, gram=gram: gram)
                found, gradients = (
                    micro_gradients(cka(scope, form, ONE), student, teacher)
                    if scope == "micro"
                    else pooled(cka(scope, form, ONE), [(student, teacher)])
                )
        value = 0.0 if scope == "micro" and not rows else 1.0
        assert found == {"cka": value, "cka/decoder 1<-1": value}
        assert torch.equal(gradients[key], torch.zeros_like(student.hidden[key]))


@pytest.mark.parametrize("scope", ["update", "micro"])
@pytest.mark.parametrize("rows", [3, 5])
def test_debiased_of_too_few_rows_or_of_one_outlier(scope: str, rows: int) -> None:
    student, teacher = states({"decoder": rows}, pairs=ONE)
    if rows > 3:  # the centred kernel of one outlier is all on the diagonal, which is left out
        student.hidden["decoder", 1][1:] = student.hidden["decoder", 1][0]
        student.hidden["decoder", 1][0] += 1
    loss = cka(scope, "debiased", ONE)
    found, gradients = (
        micro_gradients(loss, student, teacher) if scope == "micro" else pooled(loss, [(student, teacher)])
    )
    assert found["cka"] == 1 and not gradients["decoder", 1].any()


def test_debiased_is_not_clamped() -> None:
    for seed in range(20):
        student, _ = states({"decoder": 6}, pairs=ONE, seed=seed)
        _, teacher = states({"decoder": 6}, pairs=ONE, seed=seed + 100)
        found, gradients = pooled(cka(form="debiased", pairs=ONE), [(student, teacher)])
        if found["cka"] > 1.01:
            _, expected = naive(partial(naive_cka, form="debiased"), student, teacher, ONE)
            torch.testing.assert_close(gradients, expected, rtol=1e-9, atol=1e-12)
            return
    pytest.fail("no draw with a negative estimate")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_constant_features_stay_constant_over_many_merges(dtype: torch.dtype) -> None:
    loss, batches = cka(pairs=ONE), []
    for rows in range(1, 60):
        _, teacher = states({"decoder": rows}, pairs=ONE, seed=rows, dtype=dtype)
        batches.append((ModelOutput({("decoder", 1): torch.full((rows, 5), 0.7, dtype=dtype)}), teacher))
    assert report(loss, loss.coefficients(gathered(loss, batches)))["cka"] == 1.0


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("scope", ["update", "micro", "summed", "running"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30, 1e15])
def test_bad_numbers_show_in_the_pair_that_they_are_in(bad: float, scope: str, form: str) -> None:
    if form == "debiased" and scope in ("summed", "running"):
        return
    student, teacher = states({"encoder": 8, "decoder": 8}, dtype=torch.float32)
    student.hidden["encoder", 1][2, 3] = bad  # 1e30 overflows in S'S, 1e15 in its norm alone
    loss = cka(scope, form)
    for gram in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cka_forms, "gram_is_cheaper", lambda *_, gram=gram: gram)
            (term,) = (
                loss.terms(student, teacher)
                if scope == "micro"
                else [loss.pooled_term(loss.coefficients(gathered(loss, [(student, teacher)])))]
            )
        not_finite = {name for name, part in term.parts.items() if not math.isfinite(part)}
        assert not_finite == {"cka", "cka/encoder 1<-2"}


@pytest.mark.parametrize("form", FORMS)
def test_a_student_wider_than_the_teacher(form: str) -> None:
    student, teacher = states({"decoder": 20}, pairs=ONE, widths={"decoder": (9, 4)})
    loss = Cka(ONE, {"decoder": (9, 4)}, CkaOptions("update", form))
    found = pooled(loss, cut(student, teacher, {"decoder": [12, 8]}))
    assert_equal("cka", found, naive(partial(naive_cka, form=form), student, teacher, ONE), 1e-10)


def test_without_coefficients() -> None:
    student, teacher = states({"encoder": 4, "decoder": 4})
    for scope in ("update", "summed", "running"):
        loss = cka(scope)
        assert loss.pooled and loss.collects == "before"
        with pytest.raises(ValueError, match="coefficients"):
            loss.terms(student, teacher)
        with torch.no_grad():
            assert loss.terms(student, teacher) == []


def test_micro_scope_without_gradient_is_the_value_alone() -> None:
    student, teacher = states({"encoder": 9, "decoder": 9})
    loss = cka("micro")
    assert not loss.pooled and loss.collects == "no"
    with torch.no_grad():
        (term,) = loss.terms(with_gradients(student), teacher)
    assert not term.total.requires_grad
    assert term.total.item() == pytest.approx(sum(naive(naive_cka, student, teacher)[0].values()), rel=1e-12)


def test_states_that_want_no_gradient_get_none() -> None:
    student, teacher = states({"encoder": 9, "decoder": 9})
    leaf = student.hidden["decoder", 1].requires_grad_()
    (term,) = cka("micro").terms(student, teacher)
    (3 * term.total).backward()
    _, expected = naive(naive_cka, student, teacher)
    torch.testing.assert_close(leaf.grad, 3 * expected["decoder", 1])
    assert all(state.grad is None for key, state in student.hidden.items() if key != ("decoder", 1))


@pytest.mark.parametrize("scope", ["summed", "running"])
def test_debiased_has_scopes_that_it_lacks(scope: str) -> None:
    with pytest.raises(ConfigError, match=rf"--cka-form debiased.*--cka-scope {scope}"):
        CkaOptions(scope, "debiased")


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(lambda sizes: sum(sizes) > 4),
    student_width=st.integers(2, 9),
    teacher_width=st.integers(2, 9),
    layers=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=5, unique=True),
    form=st.sampled_from(FORMS),
    seed=st.integers(0, 1000),
)
def test_any_shape_split_and_layer_map(
    sizes: list[int], student_width: int, teacher_width: int, layers, form: str, seed: int
) -> None:
    pairs = tuple(LayerPair("decoder", i, j) for i, j in layers)
    widths = {"decoder": (student_width, teacher_width)}
    student, teacher = states({"decoder": sum(sizes)}, pairs=pairs, widths=widths, seed=seed)
    loss = Cka(pairs, widths, CkaOptions("update", form))
    found, gradients = pooled(loss, cut(student, teacher, {"decoder": sizes}))
    values, expected = naive(partial(naive_cka, form=form), student, teacher, pairs)
    for pair, value in values.items():
        assert found[f"cka/{pair}"] == pytest.approx(value, rel=1e-8, abs=1e-9)
    for key, gradient in expected.items():
        # The gradient is a difference, which may cancel.
        size = 1 / (student.hidden[key] - student.hidden[key].mean(0)).norm()
        torch.testing.assert_close(gradients[key], gradient, rtol=1e-8, atol=1e-8 * size.item())


def test_statistics_are_let_go_once_solved_and_kept_for_averages() -> None:
    for scope, left in (("update", 0), ("running", 2)):
        loss = cka(scope)
        statistics = gathered(loss, [states({"encoder": 9, "decoder": 12})], alone)
        loss.coefficients(statistics)
        assert len(statistics) == left


@pytest.mark.parametrize("scope", ["update", "summed", "micro"])
def test_means_of_a_thousand_deviations_cost_no_digits(scope: str) -> None:
    student, teacher = states({"encoder": 400, "decoder": 400}, dtype=torch.float32)
    for output in (student, teacher):
        for key, state in output.hidden.items():
            output.hidden[key] = state + 3000 * torch.sin(torch.arange(state.shape[1]) + 1.0)
    loss, leaves = cka(scope), with_gradients(student)
    if scope == "micro":
        loss.terms(leaves, teacher)[0].total.backward()
    else:
        loss.terms(leaves, teacher, loss.coefficients(gathered(loss, [(student, teacher)], alone)))[0].total.backward()
    exact = with_gradients(ModelOutput({key: state.double() for key, state in student.hidden.items()}))
    losses = [naive_cka(exact.hidden[p.side, p.student], teacher.hidden[p.side, p.teacher]) for p in PAIRS]
    torch.stack(losses).sum().backward()
    for key, state in leaves.hidden.items():
        wanted = exact.hidden[key].grad
        assert (state.grad - wanted).norm() <= 2e-6 * wanted.norm()
