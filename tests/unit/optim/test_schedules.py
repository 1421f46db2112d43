from __future__ import annotations

import math

import pytest
import torch
import transformers

from cktk.errors import ConfigError
from cktk.optim.configs import DecayConfig, InverseSqrtConfig, PolynomialConfig, WarmupConfig
from cktk.optim.schedules import Constant, Cosine, InverseSqrt, Limits, Linear, Polynomial

LR, WARMUP, TOTAL = 0.3, 10, 50
LIMITS, ENDLESS = Limits(TOTAL, 0), Limits(0, 0)


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
            Constant(WarmupConfig(warmup_updates=WARMUP), LR, ENDLESS),
            lambda: reference(transformers.get_constant_schedule_with_warmup, WARMUP),
        ),
        (
            Linear(DecayConfig(warmup_updates=WARMUP), LR, LIMITS),
            lambda: reference(transformers.get_linear_schedule_with_warmup, WARMUP, TOTAL),
        ),
        (
            Polynomial(PolynomialConfig(warmup_updates=WARMUP, end_learning_rate=0.01, power=2.0), LR, LIMITS),
            lambda: reference(
                transformers.get_polynomial_decay_schedule_with_warmup, WARMUP, TOTAL, lr_end=0.01, power=2.0
            ),
        ),
        (
            InverseSqrt(InverseSqrtConfig(warmup_updates=WARMUP), LR, ENDLESS),
            lambda: reference(transformers.get_inverse_sqrt_schedule, WARMUP),
        ),
    ],
    ids=["constant", "linear", "polynomial", "inverse_sqrt"],
)
def test_equals_transformers(schedule, expected) -> None:
    assert [schedule(update, TOTAL) for update in range(TOTAL + 5)] == pytest.approx(expected())


def test_cosine_equals_transformers_up_to_the_end_and_stays_there() -> None:
    schedule = Cosine(DecayConfig(warmup_updates=WARMUP), LR, LIMITS)
    expected = reference(transformers.get_cosine_schedule_with_warmup, WARMUP, TOTAL)
    assert [schedule(update, TOTAL) for update in range(TOTAL + 1)] == pytest.approx(expected[: TOTAL + 1])
    assert schedule(TOTAL + 4, TOTAL) == 0


def test_closed_forms() -> None:
    inverse = InverseSqrt(InverseSqrtConfig(warmup_updates=100, warmup_init_lr=0.1), LR, ENDLESS)
    assert (
        inverse(50, TOTAL) == pytest.approx(0.2)
        and inverse(100, TOTAL) == LR
        and inverse(400, TOTAL) == pytest.approx(LR / 2)
    )
    cosine = Cosine(DecayConfig(warmup_updates=0, end_learning_rate=0.1), LR, Limits(40, 0))
    assert cosine(0, 40) == LR and cosine(20, 40) == pytest.approx(0.2) and cosine(40, 40) == pytest.approx(0.1)
    assert cosine(10, 40) == pytest.approx(0.1 + 0.2 * (1 + math.sqrt(0.5)) / 2)
    assert Constant(WarmupConfig(), LR, ENDLESS)(1, math.inf) == LR


def test_warm_up_and_end() -> None:
    schedule = Linear(DecayConfig(warmup_updates=WARMUP, end_learning_rate=0.02), LR, LIMITS)
    assert schedule(0, TOTAL) == 0 and schedule(1, TOTAL) == pytest.approx(LR / WARMUP)
    assert schedule(WARMUP, TOTAL) == LR
    assert schedule(TOTAL, TOTAL) == schedule(10 * TOTAL, TOTAL) == pytest.approx(0.02)


def test_total_num_update_goes_before_max_update() -> None:
    assert Linear(DecayConfig(total_num_update=20), LR, LIMITS)(10, TOTAL) == pytest.approx(LR / 2)


def test_a_decay_goes_with_what_epochs_let_expect() -> None:
    schedule = Linear(DecayConfig(warmup_updates=WARMUP), LR, Limits(0, 2))
    assert schedule(5, math.inf) == LR / 2  # before anything is known there is the warm-up
    assert schedule(30, 50) == pytest.approx(LR / 2) and schedule(30, 30) == 0


def test_a_decay_needs_its_end() -> None:
    with pytest.raises(ConfigError, match="--max-update or --max-epoch"):
        Cosine(DecayConfig(), LR, ENDLESS)
    with pytest.raises(ConfigError, match="--warmup-updates 50"):
        Linear(DecayConfig(warmup_updates=50), LR, LIMITS)
