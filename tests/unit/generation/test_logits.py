"""Logits in tiles against the same ones in a row: the best, sums, changes, and the head that makes them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cktk.generation import logits as module
from cktk.generation.head import TILE, OutputHead
from cktk.generation.operators.choice import choose_operators
from tests.unit.generation.models import in_tiles

NEVER = float("-inf")


def in_a_row(found: module.Logits) -> Tensor:
    """The logits (R, V) of all tiles, which must be -inf beyond the vocabulary; maxima must be theirs."""
    assert torch.equal(found.maxima, found.tiles.amax(dim=2))
    flat = found.tiles.transpose(0, 1).flatten(1)
    assert bool((flat[:, found.columns :] == NEVER).all())
    return flat[:, : found.columns]


@settings(deadline=None, max_examples=60)
@given(
    batch=st.integers(1, 3),
    beams=st.integers(1, 4),
    vocabulary=st.integers(1, 40),
    width=st.integers(1, 12),
    seed=st.integers(0, 99),
    data=st.data(),
)
def test_the_best_are_those_of_a_top_k_over_everything(
    batch: int, beams: int, vocabulary: int, width: int, seed: int, data: Any
) -> None:
    draw = torch.Generator().manual_seed(seed)
    values = torch.randperm(batch * beams * vocabulary, generator=draw).view(-1, vocabulary).float()
    values[torch.rand(values.shape, generator=draw) < 0.2] = NEVER
    offsets = torch.rand(batch, beams, generator=draw) * 50
    count = data.draw(st.integers(1, beams * vocabulary))
    scores, parents, tokens = in_tiles(values, width).best(offsets, count)
    expected = (values.view(batch, beams, vocabulary) + offsets[:, :, None]).flatten(1).topk(count, dim=1)
    assert torch.equal(scores, expected.values)
    known = scores > NEVER
    assert torch.equal((parents * vocabulary + tokens)[known], expected.indices[known])
    assert bool((tokens < vocabulary).all())


def test_changes_keep_the_maxima_and_leave_the_normaliser() -> None:
    values = torch.randn(3, 10, generator=torch.Generator().manual_seed(1))
    found, normaliser = in_tiles(values, 4), values.logsumexp(dim=1)
    tokens = torch.tensor([[0, 9, 0], [4, 5, 6], [9, 9, 9]])
    assert torch.equal(found.at(tokens), values.gather(1, tokens))
    found.put(tokens, found.at(tokens) - 3.0)
    values.scatter_(1, tokens, values.gather(1, tokens) - 3.0)
    assert torch.equal(in_a_row(found), values)
    found.forbid(torch.tensor([0, 2, 2]), torch.tensor([8, 9, 1]))
    values[[0, 2, 2], [8, 9, 1]] = NEVER
    assert torch.equal(in_a_row(found), values)
    some = found.rows(torch.tensor([2, 0]))
    found.force(torch.tensor([1]), torch.tensor([7]))
    assert torch.equal(in_a_row(some), values[[2, 0]])
    values[1] = NEVER
    values[1, 7] = normaliser[1]
    assert torch.equal(in_a_row(found), values)
    assert torch.equal(found.normaliser, normaliser)


@pytest.mark.parametrize("vocabulary", [5, TILE, TILE + 1, 3 * TILE - 7])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_head_multiplies_and_sums(
    vocabulary: int, bias: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Groups of one tile and of all, a buffer that was larger before, fewer columns than are asked for."""
    draw = torch.Generator().manual_seed(2)
    weight = torch.randn(vocabulary, 16, generator=draw).to(dtype)
    extra = torch.randn(vocabulary, generator=draw).to(dtype) if bias else None
    weights: Any = SimpleNamespace(head=weight, bias=extra, vocab_size=vocabulary)
    for size in (1, 1 << 30):
        monkeypatch.setattr(module, "CACHED_BYTES", size)
        head = OutputHead(weights, choose_operators(weight.device, dtype, int8=False), 8)
        for rows in (4, 2):
            states = torch.randn(rows, 16, generator=draw).to(dtype)
            found = head(states)
            expected = torch.nn.functional.linear(states.double(), weight.double(), None)
            expected = expected if extra is None else expected + extra.double()
            close = {"rtol": 0, "atol": 2e-5} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 5e-2}
            torch.testing.assert_close(in_a_row(found).double(), expected, **close)
            assert found.tiles.dtype == torch.float32
            torch.testing.assert_close(found.normaliser, in_a_row(found).logsumexp(dim=1))
            assert len(found.tiles) * found.width >= 8


def test_a_tile_without_tokens_adds_nothing() -> None:
    tiles = torch.full((2, 1, 4), NEVER)
    tiles[0, 0, 1] = 0.5
    sums = module.exponential_sums(tiles, tiles.amax(dim=2))
    assert sums.tolist() == [[1.0], [0.0]]


def test_tokens_beside_a_shortlist_are_impossible_and_stay_so() -> None:
    kept = torch.tensor([1, 4, 5])
    values = torch.randn(2, 3, generator=torch.Generator().manual_seed(5))
    tiles = in_tiles(values, 2)
    found = module.Logits(tiles.tiles, tiles.maxima, tiles.normaliser, 3, module.Shortlist(kept, 7))
    tokens = torch.tensor([[4, 0], [6, 5]])
    assert torch.equal(found.at(tokens), torch.tensor([[values[0, 1], NEVER], [NEVER, values[1, 2]]]))
    found.put(tokens, torch.full((2, 2), 9.0))
    assert torch.equal(found.at(tokens), torch.tensor([[9.0, NEVER], [NEVER, 9.0]]))
    assert found.best(torch.zeros(2, 1), 1)[2].tolist() == [[4], [5]]
