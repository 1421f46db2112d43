from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cktk.criteria import gram
from cktk.criteria.gram import GramMatch
from cktk.protocols import LayerPair, ModelOutput
from tests.unit.criteria.states import PAIRS, states, with_gradients

PAIR = (LayerPair("encoder", 1, 2),)


def loss_of(own: Tensor, target: Tensor) -> Tensor:
    student, teacher = ModelOutput({("encoder", 1): own}), ModelOutput({("encoder", 2): target})
    (term,) = GramMatch(PAIR).terms(student, teacher)
    return term.total


def naive(own: Tensor, target: Tensor) -> Tensor:
    """Row by row, similarity by similarity."""
    total = torch.zeros((), dtype=torch.float64)
    for i in range(len(own)):
        rows = []
        for states_ in (own, target):
            row = torch.stack([(states_[i] * states_[j]).sum() for j in range(len(states_))])
            length = (row**2).sum()
            rows.append(row / length.sqrt() if length > 0 else row)
        total = total + ((rows[0] - rows[1]) ** 2).sum()
    return total


@pytest.mark.parametrize("chunk", [1, 8 * 9 * 4, 8 << 20])  # one row, four of nine, all
def test_value_and_gradient_equal_the_naive_ones(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gram, "_CHUNK_BYTES", chunk)
    student, teacher = states({"encoder": 9, "decoder": 6})
    student = with_gradients(student)
    terms = GramMatch(PAIRS).terms(student, teacher)
    assert [(term.name, term.unit) for term in terms] == [("gram", "source_token"), ("gram", "target_token")]
    for side, term in zip(("encoder", "decoder"), terms, strict=True):
        pairs = [pair for pair in PAIRS if pair.side == side]
        each = {pair: naive(student.hidden[side, pair.student], teacher.hidden[side, pair.teacher]) for pair in pairs}
        expected = sum(each.values())
        assert isinstance(expected, Tensor)
        torch.testing.assert_close(term.total, expected, rtol=1e-12, atol=0)
        assert term.parts is not None
        assert term.parts.keys() == {f"gram/{side}", *(f"gram/{pair}" for pair in pairs)}
        torch.testing.assert_close(term.parts[f"gram/{pairs[1]}"], each[pairs[1]].detach())
        leaves = [student.hidden[side, pair.student] for pair in pairs]
        for found, wanted in zip(
            torch.autograd.grad(term.total, leaves), torch.autograd.grad(expected, leaves), strict=True
        ):
            torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


def test_gradcheck() -> None:
    target = torch.randn(5, 4, dtype=torch.float64)
    own = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda state: 1.7 * loss_of(state, target), [own])


def test_similar_geometry_costs_nothing_and_opposite_most() -> None:
    target = torch.randn(6, 8, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64)).Q
    assert loss_of(3 * target @ rotation, target).item() == pytest.approx(0, abs=1e-24)
    assert loss_of(torch.randn(6, 8, dtype=torch.float64), target).item() > 0.1


def test_rows_of_zeros_are_finite() -> None:
    own, target = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)
    own[1] = own[2] = target[2] = target[3] = 0
    own.requires_grad_()
    total = loss_of(own, target)
    torch.testing.assert_close(total, naive(own, target))
    assert total.item() > 2  # one for row 1 and one for row 3, nothing for row 2
    total.backward()
    assert own.grad is not None and own.grad.isfinite().all()
    assert loss_of(torch.zeros(4, 3), torch.zeros(4, 5)).item() == 0
    assert loss_of(torch.zeros(4, 3), torch.ones(4, 5)).item() == 4


@pytest.mark.parametrize("rows", [0, 1])
def test_no_row_and_a_single_row_cost_nothing(rows: int) -> None:
    own = torch.randn(rows, 3, requires_grad=True)
    total = loss_of(own, torch.randn(rows, 5))
    assert total.item() == 0
    total.backward()
    assert own.grad is not None and own.grad.abs().sum() < 1e-6


def test_under_autocast_and_without_gradients() -> None:
    own, target = torch.randn(40, 6).bfloat16().requires_grad_(), torch.randn(40, 9).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        total = loss_of(own, target)
    assert total.dtype == torch.float32
    torch.testing.assert_close(total.double(), loss_of(own.double(), target.double()), rtol=1e-5, atol=0)
    total.backward()
    assert own.grad is not None and own.grad.dtype == torch.bfloat16
    with torch.no_grad():
        assert loss_of(own, target).item() == total.item()
