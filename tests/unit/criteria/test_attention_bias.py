"""Attention matching where a bias is added to the scores, as T5 does, and heads are not as wide as the model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from cktk.criteria import score_match
from cktk.criteria.attention import AttentionLoss
from cktk.protocols import AttentionPair, AttentionStates, ModelShape, SideShape
from tests.unit.criteria.test_attention import block, leaves, loss_of, output


def biased(kind: str, heads: int, seed: int) -> AttentionStates:
    states = block(kind, 12, heads, seed)
    generator = torch.Generator().manual_seed(10 + seed)
    sizes = heads, states.query.shape[1], states.key.shape[1]
    bias = torch.randn(sizes, dtype=torch.float64, generator=generator).requires_grad_()
    return replace(states, scale=1.0, bias=bias)


def dense_rows(states: AttentionStates, sentence: int, row: int) -> Tensor:
    """Scores (heads, columns) that one row sees."""
    assert states.bias is not None
    seen = states.key_rows[sentence].clone()
    if states.causal:
        seen[row + 1 :] = False
    query, key = states.query[sentence, row], states.key[sentence, seen]
    scores = torch.einsum("hw,mhw->hm", query.view(states.heads, -1), key.view(len(key), states.heads, -1))
    return scores + states.bias[:, row][:, seen]


def dense(match: str, own: AttentionStates, target: AttentionStates) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for sentence, row in own.query_rows.nonzero().tolist():
        student, teacher = (dense_rows(x, sentence, row) for x in (own, target))
        if match == "probabilities":
            student, teacher = student.softmax(-1), teacher.softmax(-1)
        if len(student) != len(teacher):
            student, teacher = student.mean(0, keepdim=True), teacher.mean(0, keepdim=True)
        if match == "scores":
            total = total + (student - teacher).square().mean()
        else:
            total = total + (teacher * (teacher / student).log()).sum() / len(student)
    return total


@pytest.mark.parametrize("heads", [(2, 2), (2, 3)])
@pytest.mark.parametrize("kind", ["encoder", "decoder"])
@pytest.mark.parametrize("match", ["scores", "probabilities"])
def test_value_and_gradients(match: str, kind: str, heads: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where sentences are worked on one by one: the bias serves them all, and collects from all."""
    own, target = biased(kind, heads[0], 1), biased(kind, heads[1], 2)
    inputs = [*leaves(own)[:2], own.bias]
    expected = dense(match, own, target)
    wanted = torch.autograd.grad(expected, inputs)  # type: ignore[arg-type]
    for slice_bytes in (2 << 20, 1):
        monkeypatch.setattr(score_match, "_CPU_BYTES", slice_bytes)
        term = loss_of(match, kind, own, target)
        torch.testing.assert_close(term.total, expected, rtol=1e-10, atol=1e-12)
        for one, other in zip(torch.autograd.grad(term.total, inputs), wanted, strict=True):  # type: ignore[arg-type]
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("match", ["scores", "probabilities"])
def test_only_one_of_the_models_has_a_bias(match: str) -> None:
    plain = replace(biased("encoder", 2, 1), bias=None)
    zero = replace(plain, bias=torch.zeros(2, 5, 5, dtype=torch.float64))
    other = biased("encoder", 2, 2)
    for own, target in ((plain, other), (other, plain)):
        same = [replace(x, bias=zero.bias) if x is plain else x for x in (own, target)]
        assert loss_of(match, "encoder", own, target).total.item() == pytest.approx(
            dense(match, *same).item(), rel=1e-10
        )


def test_relations_have_no_bias() -> None:
    own, target = biased("encoder", 2, 1), biased("encoder", 2, 2)
    without = (replace(x, bias=None) for x in (own, target))
    assert loss_of("queries", "encoder", own, target).total == loss_of("queries", "encoder", *without).total


def test_relation_heads_divide_the_attention_and_not_the_model() -> None:
    """A model of width 7 whose heads are 12 wide together."""
    shapes: Any = [ModelShape(7, {"encoder": SideShape(4, 8, 3, 12)}, None)] * 2
    loss = AttentionLoss((AttentionPair("encoder", 1, 2),), ("values",), None, *shapes)
    own, target = block("encoder", 12, 3, 1), block("encoder", 12, 3, 2)
    found = loss.terms(output("encoder", 1, own), output("encoder", 2, target))[0].total
    assert found == loss_of("values", "encoder", own, target, relation_heads=3).total
