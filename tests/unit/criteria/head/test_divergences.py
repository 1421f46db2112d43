from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cktk.criteria.configs import Divergence
from cktk.criteria.head.dense_head_loss import DEFINITIONS
from cktk.criteria.head.divergences import DIVERGENCES, part_name
from tests.unit.criteria import heads

NAMES = pytest.mark.parametrize("name", heads.DIVERGENCES)
SKEWS = pytest.mark.parametrize("skew", [0.1, 0.6, 0.999])


def logs(rows: int = 6, size: int = 17, spread: float = 2.0) -> Tensor:
    return (spread * torch.randn(rows, size, dtype=torch.float64)).log_softmax(1)


def values(name: str, log_p: Tensor, log_q: Tensor, skew: float = 0.1) -> Tensor:
    return DIVERGENCES[name](log_p.clone(), log_q.clone(), skew)


def test_all_of_the_option_are_there() -> None:
    assert set(DIVERGENCES) == set(DEFINITIONS) == set(get_args(Divergence)) == set(heads.DIVERGENCES)
    assert [part_name(name) for name in ("forward_kl", "js")] == ["kl", "js"]


@NAMES
@SKEWS
def test_values_and_pulls(name: str, skew: float) -> None:
    log_p, logits = logs(), (2 * torch.randn(6, 17, dtype=torch.float64)).requires_grad_()
    q = logits.softmax(1)
    expected = heads.divergence(name, log_p.exp(), q, skew)
    (slopes,) = torch.autograd.grad(expected.sum(), logits)

    pull, log_q = log_p.clone(), logits.detach().log_softmax(1)
    kept = log_q.clone()
    found = DIVERGENCES[name](pull, log_q, skew)
    assert torch.equal(log_q, kept)
    torch.testing.assert_close(found, expected.detach(), rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(q.detach() * pull.sum(1, keepdim=True) - pull, slopes, rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(DEFINITIONS[name](log_p, log_q, skew), found, rtol=1e-11, atol=1e-13)


@NAMES
def test_columns_add_up(name: str) -> None:
    log_p, log_q = logs(), logs()
    parts = [values(name, log_p[:, part], log_q[:, part]) for part in (slice(0, 5), slice(5, 6), slice(6, None))]
    torch.testing.assert_close(sum(parts), values(name, log_p, log_q), rtol=1e-12, atol=1e-14)


def test_the_pull_of_forward_kl_sums_to_one() -> None:
    log_p = logs()
    DIVERGENCES["forward_kl"](log_p, logs(), 0.1)
    torch.testing.assert_close(log_p.sum(1), torch.ones(6, dtype=torch.float64))


@settings(max_examples=150, deadline=None)
@given(
    rows=st.integers(1, 4),
    size=st.integers(1, 12),
    spread=st.sampled_from([0.01, 1.0, 10.0, 100.0]),
    skew=st.floats(0.001, 0.999),
    seed=st.integers(0, 1 << 30),
)
def test_properties(rows: int, size: int, spread: float, skew: float, seed: int) -> None:
    torch.manual_seed(seed)
    log_p, log_q = logs(rows, size, spread), logs(rows, size, spread)
    found = {name: values(name, log_p, log_q, skew) for name in heads.DIVERGENCES}
    other = {name: values(name, log_q, log_p, skew) for name in heads.DIVERGENCES}
    for name, value in found.items():
        assert (value >= -1e-12).all(), name
        assert (values(name, log_p, log_p, skew).abs() <= 1e-12).all(), name
    for name in ("js", "tv"):
        torch.testing.assert_close(found[name], other[name], rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(found["forward_kl"], other["reverse_kl"], rtol=1e-11, atol=1e-12)
    assert (found["js"] <= math.log(2) + 1e-12).all()
    assert (found["tv"] <= 1 + 1e-12).all()
    assert (found["tv"] ** 2 <= found["forward_kl"] / 2 + 1e-12).all()  # Pinsker
    assert (found["skew_kl"] <= -math.log(skew) + 1e-12).all()
    assert (found["reverse_skew_kl"] <= -math.log1p(-skew) + 1e-12).all()
    assert (found["skew_kl"] <= (1 - skew) * found["forward_kl"] + 1e-12).all()  # convexity
    assert (found["reverse_skew_kl"] <= skew * found["reverse_kl"] + 1e-12).all()


@NAMES
def test_probabilities_that_underflow_stay_finite(name: str) -> None:
    log_p = torch.tensor([[0.0, -150.0, -1000.0, -1000.0]])
    log_q = torch.tensor([[-1000.0, -150.0, 0.0, -1000.0]])
    pull = log_p.clone()
    found = DIVERGENCES[name](pull, log_q, 0.1)
    assert found.isfinite().all() and pull.isfinite().all()
    expected = {
        "forward_kl": 1000.0,
        "reverse_kl": 1000.0,
        "js": math.log(2),
        "tv": 1.0,
        "skew_kl": -math.log(0.1),
        "reverse_skew_kl": -math.log(0.9),
    }
    assert found.item() == pytest.approx(expected[name], rel=1e-6)


@NAMES
def test_nan_is_not_hidden(name: str) -> None:
    for place in range(2):
        pair = [logs(), logs()]
        pair[place][3, 2] = float("nan")
        found = values(name, *pair)
        assert found[3].isnan() and found[[0, 1, 2, 4, 5]].isfinite().all()
