from __future__ import annotations

import pytest
import torch

from cktk.criteria.compose import Criterion
from cktk.criteria.configs import (
    AttentionKdConfig,
    CkaKdConfig,
    CosineKdConfig,
    CrossEntropyConfig,
    KlKdConfig,
    LinearKdConfig,
)
from cktk.errors import ConfigError
from cktk.protocols import HeadParams, LayerPair, Matching, ModelOutput, ModelShape, SideShape
from cktk.registry import CRITERIA
from tests.unit.criteria.states import PAIRS, WIDTHS, naive_cka, states, with_gradients

V = 11
EQUAL = {"encoder": (6, 6), "decoder": (6, 6)}


def matching(pairs=PAIRS, widths=WIDTHS) -> Matching:
    """What a criterion is built for: models of 3 + 3 layers."""
    shapes = (
        ModelShape(widths["decoder"][who], {side: SideShape(3, 16, 1) for side in widths}, None) for who in (0, 1)
    )
    return Matching(*shapes, pairs)


def build(name: str, config: object, pairs=PAIRS, widths=WIDTHS) -> Criterion:
    criterion = CRITERIA.target(name)(config, matching(pairs, widths))
    assert isinstance(criterion, Criterion)
    return criterion.double()


def problem(widths=WIDTHS):
    """Student, teacher, labels and both heads."""
    student, teacher = states({"encoder": 9, "decoder": 6}, widths=widths)
    student = with_gradients(student)
    student.head_input = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    teacher.head_input = torch.randn(6, 7, dtype=torch.float64)
    heads = (HeadParams(torch.randn(V, 5, dtype=torch.float64)), HeadParams(torch.randn(V, 7, dtype=torch.float64)))
    return student, teacher, torch.randint(V, (6,)), *heads


def test_cross_entropy_looks_at_no_teacher() -> None:
    criterion = build("cross_entropy", CrossEntropyConfig(label_smoothing=0.1))
    needs = criterion.needs()
    assert needs.pairs == () and not needs.teacher_head and criterion.collects == "no"
    student, teacher, labels, head, teacher_head = problem()
    (term,) = criterion(student, None, labels, head)
    logits = student.head_input @ head.weight.T
    expected = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.1, reduction="sum")
    assert term.unit == "target_token" and term.weight == 1
    torch.testing.assert_close(term.total, expected)
    assert set(term.parts) == {"ce", "nll"}
    (with_teacher,) = criterion(student, teacher, labels, head, teacher_head)
    assert with_teacher.total.item() == term.total.item()


def test_kl_kd_weighs_its_two_parts() -> None:
    criterion = build("kl_kd", KlKdConfig(ce_weight=0.25, kl_weight=3.0, temperature=2.0))
    assert criterion.needs().pairs == () and criterion.needs().teacher_head
    student, teacher, labels, head, teacher_head = problem()
    (term,) = criterion(student, teacher, labels, head, teacher_head)
    p = (teacher.head_input @ teacher_head.weight.T / 2).softmax(-1)
    log_q = (student.head_input @ head.weight.T / 2).log_softmax(-1)
    kl = 4 * (p * (p.log() - log_q)).sum()
    torch.testing.assert_close(term.parts["kl"], kl)
    torch.testing.assert_close(term.total.detach(), 0.25 * term.parts["ce"] + 3 * kl)


def test_no_weight_on_the_kl_leaves_the_teachers_head_alone() -> None:
    criterion = build("cka_kd", CkaKdConfig(kl_weight=0.0))
    assert not criterion.needs().teacher_head and criterion.needs().pairs == PAIRS
    student, teacher, labels, head, _ = problem()
    teacher.head_input = None
    coefficients = criterion.coefficients(criterion.pool(criterion.statistics(student, teacher), lambda x: x))
    terms = criterion(student, teacher, labels, head, None, coefficients)
    assert [term.name for term in terms] == ["head", "cka"] and set(terms[0].parts) == {"ce"}


@pytest.mark.parametrize("scope", ["update", "micro"])
def test_cka_kd(scope: str) -> None:
    criterion = build("cka_kd", CkaKdConfig(hidden_weight=0.5, cka_scope=scope))
    assert criterion.collects == ("before" if scope == "update" else "no")
    student, teacher, labels, head, teacher_head = problem()
    coefficients = criterion.coefficients(criterion.pool(criterion.statistics(student, teacher), lambda x: x))
    head_term, term = criterion(student, teacher, labels, head, teacher_head, coefficients)
    expected = sum(naive_cka(student.hidden[p.side, p.student], teacher.hidden[p.side, p.teacher]) for p in PAIRS)
    pooled = criterion.pooled_term(coefficients)
    assert pooled.weight == 0.5 and pooled.total.item() == pytest.approx(expected.item())
    assert (term.unit, term.weight) == ("microbatch" if scope == "micro" else "update", 0.5)
    hidden = list(student.hidden.values())
    for found, wanted in zip(
        torch.autograd.grad(term.total, hidden), torch.autograd.grad(expected, hidden), strict=True
    ):
        torch.testing.assert_close(found, wanted)
    assert "kl" in head_term.parts


def test_linear_kd() -> None:
    criterion = build("linear_kd", LinearKdConfig(hidden_weight=2.0))
    student, teacher, labels, head, teacher_head = problem()
    terms = criterion(student, teacher, labels, head, teacher_head)[1:]
    assert [(term.unit, term.weight) for term in terms] == [("source_token", 2.0), ("target_token", 2.0)]
    projectors = dict(criterion.named_parameters())
    assert len(projectors) == 2 * len(PAIRS)  # a matrix and a bias each: two pairs that share a teacher layer too
    for side, term in zip(("encoder", "decoder"), terms, strict=True):
        expected, pairs = torch.zeros((), dtype=torch.float64), [pair for pair in PAIRS if pair.side == side]
        for pair in pairs:
            prefix = f"hidden.projectors.{side}_{pair.student}_{pair.teacher}"
            rows = student.hidden[side, pair.student]
            for row, target in zip(rows, teacher.hidden[side, pair.teacher], strict=True):
                error = projectors[f"{prefix}.weight"] @ row + projectors[f"{prefix}.bias"] - target
                expected = expected + (error**2).mean()
        torch.testing.assert_close(term.total, expected)
        torch.testing.assert_close(term.parts[f"linear/{side}"], expected.detach() / len(pairs))
        leaves = [*(student.hidden[side, pair.student] for pair in pairs), *projectors.values()]
        found, wanted = (torch.autograd.grad(x, leaves, allow_unused=True) for x in (term.total, expected))
        for one, other in zip(found, wanted, strict=True):
            assert one is other is None or torch.allclose(one, other, rtol=1e-10)


def test_cosine_kd() -> None:
    criterion = build("cosine_kd", CosineKdConfig(), widths=EQUAL)
    student, teacher, labels, head, teacher_head = problem(EQUAL)
    encoder, decoder = criterion(student, teacher, labels, head, teacher_head)[1:]
    assert (encoder.unit, decoder.unit) == ("source_token", "target_token")
    expected = torch.zeros((), dtype=torch.float64)
    for pair in PAIRS[2:]:
        for s, t in zip(student.hidden["decoder", pair.student], teacher.hidden["decoder", pair.teacher], strict=True):
            expected = expected + 1 - s @ t / (s @ s).sqrt() / (t @ t).sqrt()
    torch.testing.assert_close(decoder.total, expected)
    leaves = [student.hidden["decoder", layer] for layer in range(3)]
    for one, other in zip(
        torch.autograd.grad(decoder.total, leaves), torch.autograd.grad(expected, leaves), strict=True
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", ["linear_kd", "cosine_kd"])
def test_token_losses_pass_gradcheck(name: str) -> None:
    pairs = (LayerPair("decoder", 1, 1),)
    criterion = build(name, CRITERIA.config(name)(), pairs, EQUAL).hidden
    _, teacher = states({"decoder": 3}, pairs=pairs, widths=EQUAL)

    def loss(state: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        return criterion.terms(ModelOutput({("decoder", 1): state}), teacher)[0].total

    state = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(loss, [state, *criterion.parameters()])


def test_cosine_of_zero_rows_is_finite() -> None:
    criterion = build("cosine_kd", CosineKdConfig(), widths=EQUAL).hidden
    student, teacher = states({"encoder": 4, "decoder": 4}, widths=EQUAL)
    student = with_gradients(ModelOutput({key: 0 * state for key, state in student.hidden.items()}))
    encoder, _ = criterion.terms(student, teacher)
    assert encoder.total.item() == 8  # one a row and pair
    encoder.total.backward()
    assert all(state.grad is None or state.grad.isfinite().all() for state in student.hidden.values())


def test_cosine_refuses_unequal_widths() -> None:
    with pytest.raises(ConfigError, match=r"encoder.* 5 .* 7 .*cka_kd or linear_kd"):
        build("cosine_kd", CosineKdConfig())


@pytest.mark.parametrize("name", ["cka_kd", "linear_kd", "cosine_kd", "procrustes_kd", "gram_kd"])
def test_hidden_losses_refuse_to_match_nothing(name: str) -> None:
    with pytest.raises(ConfigError, match=r"no layer pairs.*--layer-map.*kl_kd"):
        build(name, CRITERIA.config(name)(), pairs=())


@pytest.mark.parametrize("name", ["linear_kd", "cosine_kd"])
def test_token_losses_under_autocast_and_without_rows(name: str) -> None:
    criterion = CRITERIA.target(name)(CRITERIA.config(name)(), matching(PAIRS, EQUAL))
    for rows in (0, 5):
        student, teacher = states({"encoder": rows, "decoder": rows}, dtype=torch.float32, widths=EQUAL)
        student = with_gradients(student)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            terms = criterion.hidden.terms(student, teacher)
        for term in terms:
            assert term.total.dtype == torch.float32
            term.total.backward()
        assert all(state.grad.isfinite().all() for state in student.hidden.values())
        if rows == 0:
            assert [term.total.item() for term in terms] == [0, 0]


def test_without_the_teacher() -> None:
    student, teacher, labels, head, teacher_head = problem()
    for name in ("kl_kd", "cka_kd"):
        criterion = build(name, CRITERIA.config(name)())
        with pytest.raises(ValueError, match="teacher"):
            criterion(student, None, labels, head)
        with torch.no_grad():
            (term,) = criterion(student, None, labels, head)
        assert set(term.parts) == {"ce"}
    with torch.no_grad():  # evaluation: the pooled value comes from `pooled_term`
        assert len(build("cka_kd", CkaKdConfig())(student, teacher, labels, head, teacher_head)) == 1


def test_a_part_of_weight_zero_is_left_out() -> None:
    criterion = build("cka_kd", CkaKdConfig(hidden_weight=0.0, attention_match=("values",), attention_weight=0.0))
    assert criterion.needs() == build("kl_kd", KlKdConfig()).needs() and criterion.collects == "no"


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("kl_kd", KlKdConfig(ce_weight=0.0, kl_weight=0.0)),
        ("linear_kd", LinearKdConfig(ce_weight=0.0, kl_weight=0.0, hidden_weight=0.0)),
        ("attention_kd", AttentionKdConfig(ce_weight=0.0, kl_weight=0.0, attention_weight=0.0)),
    ],
)
def test_weights_that_are_all_zero_are_refused(name: str, config: object) -> None:
    with pytest.raises(ConfigError, match="all weights of the loss are 0"):
        build(name, config)
