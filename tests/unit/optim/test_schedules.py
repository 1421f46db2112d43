from __future__ import annotations

import math

import pytest
import torch
import transformers

from cktk.errors import ConfigError
from cktk.optim.configs import DecayConfig, InverseSqrtConfig, PolynomialConfig, WarmupConfig
from cktk.optim.schedules import Constant, Cosine, InverseSqrt, Linear, Polynomial

LR, WARMUP, TOTAL = 0.3, 10, 50


def reference(make, *args, **kwargs) -> list[float]:
    """Rates of a scheduler of transformers, by number of steps taken."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=LR)
    scheduler = make(optimizer, *args, **kwargs)
    rates = []
    for _ in range(TOTAL + 5):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (
            Constant(WarmupConfig(warmup_updates=WARMUP), LR, None),
            lambda: reference(transformers.get_constant_schedule_with_warmup, WARMUP),
        ),
        (
            Linear(DecayConfig(warmup_updates=WARMUP), LR, TOTAL),
            lambda: reference(transformers.get_linear_schedule_with_warmup, WARMUP, TOTAL),
        ),
        (
            Polynomial(PolynomialConfig(warmup_updates=WARMUP, end_learning_rate=0.01, power=2.0), LR, TOTAL),
            lambda: reference(
                transformers.get_polynomial_decay_schedule_with_warmup, WARMUP, TOTAL, lr_end=0.01, power=2.0
            ),
        ),
        (
            InverseSqrt(InverseSqrtConfig(warmup_updates=WARMUP), LR, None),
            lambda: reference(transformers.get_inverse_sqrt_schedule, WARMUP),
        ),
    ],
    ids=["constant", "linear", "polynomial", "inverse_sqrt"],
)
def test_equals_transformers(schedule, expected) -> None:
    assert [schedule(update) for update in range(TOTAL + 5)] == pytest.approx(expected())


def test_cosine_equals_transformers_up_to_the_end_and_stays_there() -> None:
    schedule = Cosine(DecayConfig(warmup_updates=WARMUP), LR, TOTAL)
    expected = reference(transformers.get_cosine_schedule_with_warmup, WARMUP, TOTAL)
    assert [schedule(update) for update in range(TOTAL + 1)] == pytest.approx(expected[: TOTAL + 1])
    assert schedule(TOTAL + 4) == 0


def test_closed_forms() -> None:
    inverse = InverseSqrt(InverseSqrtConfig(warmup_updates=100, warmup_init_lr=0.1), LR, None)
    assert inverse(50) == pytest.approx(0.2) and inverse(100) == LR and inverse(400) == pytest.approx(LR / 2)
    cosine = Cosine(DecayConfig(warmup_updates=0, end_learning_rate=0.1), LR, 40)
    assert cosine(0) == LR and cosine(20) == pytest.approx(0.2) and cosine(40) == pytest.approx(0.1)
    assert cosine(10) == pytest.approx(0.1 + 0.2 * (1 + math.sqrt(0.5)) / 2)
    assert Constant(WarmupConfig(), LR, None)(1) == LR


def test_warm_up_and_end() -> None:
    schedule = Linear(DecayConfig(warmup_updates=WARMUP, end_learning_rate=0.02), LR, TOTAL)
    assert schedule(0) == 0 and schedule(1) == pytest.approx(LR / WARMUP)
    assert schedule(WARMUP) == LR
    assert schedule(TOTAL) == schedule(10 * TOTAL) == pytest.approx(0.02)


def test_total_num_update_goes_before_max_update() -> None:
    assert Linear(DecayConfig(total_num_update=20), LR, TOTAL)(10) == pytest.approx(LR / 2)


def test_a_decay_needs_its_end() -> None:
    with pytest.raises(ConfigError, match="--max-update or --total-num-update"):
        Cosine(DecayConfig(), LR, None)
    with pytest.raises(ConfigError, match="--warmup-updates 50"):
        Linear(DecayConfig(warmup_updates=50), LR, TOTAL)
