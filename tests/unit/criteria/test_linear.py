from __future__ import annotations

import pytest
import torch

from cktk.criteria.linear import LinearMatch
from cktk.errors import ConfigError
from tests.unit.criteria.states import PAIRS, WIDTHS, states, with_gradients


def test_a_shared_projector_serves_all_layers_of_both_sides() -> None:
    loss = LinearMatch(PAIRS, WIDTHS, shared=True).double()
    assert {name: tuple(tensor.shape) for name, tensor in loss.state_dict().items()} == {
        "projectors.shared.weight": (7, 5),
        "projectors.shared.bias": (7,),
    }
    student, teacher = states({"encoder": 9, "decoder": 6})
    student = with_gradients(student)
    terms = loss.terms(student, teacher)
    weight, bias = loss.parameters()
    expected = torch.zeros((), dtype=torch.float64)
    for pair in PAIRS:
        rows = zip(student.hidden[pair.side, pair.student], teacher.hidden[pair.side, pair.teacher], strict=True)
        for row, target in rows:
            expected = expected + ((weight @ row + bias - target) ** 2).sum() / 7
    total = terms[0].total + terms[1].total
    torch.testing.assert_close(total, expected)
    leaves = [weight, bias, *student.hidden.values()]
    for found, wanted in zip(torch.autograd.grad(total, leaves), torch.autograd.grad(expected, leaves), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


def test_projectors_of_their_own_have_names_that_a_checkpoint_keeps() -> None:
    names = {name for name, _ in LinearMatch(PAIRS, WIDTHS).named_parameters()}
    expected = {f"projectors.{pair.side}_{pair.student}_{pair.teacher}" for pair in PAIRS}
    assert names == {f"{name}.{part}" for name in expected for part in ("weight", "bias")}


def test_sides_of_different_widths_cannot_share() -> None:
    widths = {"encoder": (5, 7), "decoder": (6, 7)}
    with pytest.raises(
        ConfigError, match="^--projector shared .* encoder 5 to 7, decoder 6 to 7; use --projector per_"
    ):
        LinearMatch(PAIRS, widths, shared=True)
    LinearMatch(PAIRS, widths)
    LinearMatch(PAIRS[:2], widths, shared=True)  # the side that differs is not matched
