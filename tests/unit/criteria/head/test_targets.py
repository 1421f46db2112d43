from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cktk.criteria.head import logits, targets
from cktk.criteria.head.targets import sampled_targets, top_k_targets
from cktk.errors import ConfigError
from cktk.protocols import HeadParams
from tests.unit.criteria.heads import full_logits, probabilities

AMPLE = 1 << 20


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logits, "_CPU_TILE", 8)


def teacher(rows: int = 11, size: int = 43, *, dtype=torch.float64):
    states, weight, bias = (torch.randn(*shape, dtype=torch.float64) for shape in ((rows, 5), (size, 5), (size,)))
    return states.to(dtype), HeadParams(weight.to(dtype), bias.to(dtype), 0.8)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(0, 9),
    size=st.integers(1, 30),
    share=st.floats(0, 1),
    memory=st.integers(1, 20_000),
    temperature=st.sampled_from([1.0, 0.5, 4.0]),
)
def test_top_k_are_the_most_probable(rows: int, size: int, share: float, memory: int, temperature: float) -> None:
    states, head = teacher(rows, size)
    k = max(1, int(share * size))
    found = top_k_targets(states, head, k, temperature, memory)
    expected = probabilities(full_logits(states, head), temperature).sort(1, descending=True)
    assert found.ids.dtype == torch.int64 and found.ids.shape == found.log_probs.shape == (rows, k)
    assert torch.equal(found.ids, expected.indices[:, :k])
    torch.testing.assert_close(found.log_probs, expected.values[:, :k].log(), rtol=1e-11, atol=1e-11)
    assert (found.sampled, found.temperature) == (False, temperature)


@pytest.mark.parametrize("temperature", [1.0, 0.5, 3.0])
def test_samples_follow_the_distribution(temperature: float) -> None:
    states, head = teacher(rows=3)
    k = 40_000
    found = sampled_targets(states, head, k, temperature, AMPLE, torch.Generator().manual_seed(3))
    expected = probabilities(full_logits(states, head), temperature)
    counts = torch.zeros_like(expected).scatter_add_(1, found.ids, torch.ones_like(found.log_probs))
    error = (k * expected * (1 - expected)).sqrt()
    assert ((counts - k * expected).abs() <= 4.5 * error + 1).all()
    torch.testing.assert_close(found.log_probs, expected.gather(1, found.ids).log(), rtol=1e-11, atol=1e-11)
    assert found.ids.dtype == torch.int64 and (found.sampled, found.temperature) == (True, temperature)


def test_samples_depend_on_the_generator_only() -> None:
    states, head = teacher()
    drawn = [
        sampled_targets(states, head, 9, 2.0, memory, torch.Generator().manual_seed(seed)).ids
        for memory, seed in ((AMPLE, 1), (1, 1), (3000, 1), (AMPLE, 2))
    ]
    assert torch.equal(drawn[0], drawn[1]) and torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], drawn[3])
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    sampled_targets(states, head, 9, 2.0, AMPLE, torch.Generator())
    assert torch.equal(torch.rand(1), expected)  # the global generator was left alone


def test_tokens_without_probability_are_not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    possible = [9, 15, 16, 30]
    states, head = torch.zeros(50, 5), torch.zeros(43, 5)
    for _ in range(20):  # float32 probabilities add up to a little more or less than 1
        bias = torch.full((43,), -2000.0)
        bias[possible] = torch.randn(4) / 4
        ends = torch.tensor([[0.0, 1 - 2**-53]], dtype=torch.float64)  # the extremes of torch.rand
        with monkeypatch.context() as patch:
            patch.setattr(targets.torch, "rand", lambda *_, ends=ends, **__: ends)
            found = sampled_targets(states[:1], HeadParams(head, bias), 2, 1.0, AMPLE, None)
        assert found.ids.tolist() == [[9, 30]]
    found = sampled_targets(states, HeadParams(head, bias), 20, 1.0, AMPLE, None)
    assert set(found.ids.flatten().tolist()) == set(possible)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [True, False])
def test_half_precision_rounds_the_products_only(dtype: torch.dtype, autocast: bool) -> None:
    states, head = teacher(dtype=torch.float32 if autocast else dtype)
    expected = probabilities(full_logits(states, head)).log()
    with torch.autocast("cpu", dtype=dtype, enabled=autocast):
        found = [top_k_targets(states, head, 9, 1.0, AMPLE), sampled_targets(states, head, 9, 1.0, AMPLE, None)]
    for sparse in found:
        assert sparse.log_probs.dtype == torch.float32
        torch.testing.assert_close(sparse.log_probs.double(), expected.gather(1, sparse.ids), rtol=0.05, atol=0.05)


def test_no_gradient_flows() -> None:
    states, head = teacher()
    states.requires_grad_()
    for sparse in (top_k_targets(states, head, 3, 1.0, AMPLE), sampled_targets(states, head, 3, 1.0, AMPLE, None)):
        assert not sparse.log_probs.requires_grad


def test_no_rows() -> None:
    states, head = teacher(rows=0)
    for sparse in (top_k_targets(states, head, 3, 1.0, AMPLE), sampled_targets(states, head, 3, 1.0, AMPLE, None)):
        assert sparse.ids.shape == sparse.log_probs.shape == (0, 3)


def test_more_than_the_vocabulary() -> None:
    states, head = teacher()
    with pytest.raises(ConfigError, match="44 .*43: .*--top-k"):
        top_k_targets(states, head, 44, 1.0, AMPLE)
    assert sampled_targets(states, head, 44, 1.0, AMPLE, None).ids.shape == (11, 44)


def test_nan_is_not_hidden() -> None:
    states, head = teacher()
    states[4, 0] = float("nan")
    for sparse in (top_k_targets(states, head, 3, 1.0, AMPLE), sampled_targets(states, head, 3, 1.0, AMPLE, None)):
        assert sparse.log_probs[4].isnan().all() and sparse.log_probs[[3, 5]].isfinite().all()
        assert sparse.ids.min() >= 0 and sparse.ids.max() < 43
