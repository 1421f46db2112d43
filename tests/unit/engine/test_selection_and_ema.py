from __future__ import annotations

import math

import pytest
import torch

from cktk.engine.ema import WeightAverage
from cktk.engine.selection import BestTracker


@pytest.mark.parametrize(
    ("maximize", "values", "improved"),
    [(False, [3.0, 2.0, 2.0, 2.5, 1.0], [1, 1, 0, 0, 1]), (True, [3.0, 2.0, 4.0, math.nan, 4.0], [1, 0, 1, 0, 0])],
)
def test_best(maximize: bool, values: list[float], improved: list[int]) -> None:
    tracker = BestTracker("bleu", maximize, patience=0)
    assert [tracker.improved({"bleu": value}) for value in values] == improved
    assert not tracker.exhausted


def test_patience_counts_validations_without_improvement_over_restarts() -> None:
    tracker = BestTracker("loss", False, patience=2)
    assert [tracker.improved({"loss": value}) for value in (2.0, 3.0)] == [True, False]
    again = BestTracker("loss", False, patience=2)
    again.load_state_dict(tracker.state_dict())
    assert not again.exhausted
    assert not again.improved({"loss": 2.0})
    assert again.exhausted
    other = BestTracker("ce", False, patience=2)
    other.load_state_dict(tracker.state_dict())
    assert other.best is None


def test_the_average_is_the_weighted_sum_of_all_weights() -> None:
    module = torch.nn.Linear(2, 2)
    start = {name: p.detach().clone() for name, p in module.named_parameters()}
    average = WeightAverage(module, decay=0.75)
    with torch.no_grad():
        for _ in range(3):
            for parameter in module.parameters():
                parameter.add_(1.0)
            average.update()
    # 0.75^3 of the start, then 1/4 of each later value, decayed
    offset = 0.25 * (1 * 0.75**2 + 2 * 0.75 + 3)
    for name, value in average.average.items():
        torch.testing.assert_close(value, start[name] + offset)
    with average.swapped_in() as raw:
        torch.testing.assert_close(module.weight.detach(), start["weight"] + offset)
        torch.testing.assert_close(raw["weight"], start["weight"] + 3)
    torch.testing.assert_close(module.weight.detach(), start["weight"] + 3)


def test_raw_weights_return_after_an_error() -> None:
    module = torch.nn.Linear(2, 2)
    average = WeightAverage(module, decay=0.5)
    with torch.no_grad():
        module.weight.add_(1)
    before = module.weight.detach().clone()
    with pytest.raises(RuntimeError), average.swapped_in():
        raise RuntimeError
    assert torch.equal(module.weight, before)
