from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cktk.criteria import score_match
from cktk.criteria.attention import AttentionLoss, attention_pairs
from cktk.errors import ConfigError
from cktk.protocols import AttentionPair, AttentionStates, LayerPair, ModelOutput, ModelShape, SideShape

MATCHES = ("scores", "probabilities", "queries", "keys", "values")
KINDS = ("encoder", "decoder", "cross")
SOURCE, TARGET = (5, 3, 4), ((0, 1, 2, 3), (1,), (0, 2))  # lengths, scored positions: some on the left are not
S, T = 5, 4


def shape(width: int, heads: int, *sides: str) -> ModelShape:
    return ModelShape(width, {side: SideShape(4, 8, heads) for side in sides or ("encoder", "decoder")}, None)


def block(kind: str, width: int, heads: int, seed: int, pads: int = 0, dtype=torch.float64, **changes) -> Any:
    """A random block of one kind over the sentences above; ``pads`` more positions on each side."""
    generator = torch.Generator().manual_seed(seed)
    source = torch.arange(S + pads) < torch.tensor(SOURCE)[:, None]
    target = torch.tensor([[i in scored for i in range(T + pads)] for scored in TARGET])
    queries, keys = {
        "encoder": (source, source),
        "decoder": (target, torch.ones_like(target)),
        "cross": (target, source),
    }[kind]

    def draw(rows: Tensor, real: int) -> Tensor:
        values = torch.randn(3, real, width, dtype=torch.float64, generator=generator)
        padded = torch.full((3, rows.shape[1], width), 7.0, dtype=torch.float64)
        padded[:, :real] = values
        return padded.to(dtype).requires_grad_()

    real = (T if kind != "encoder" else S), (T if kind == "decoder" else S)
    states = AttentionStates(
        draw(queries, real[0]),
        draw(keys, real[1]),
        draw(keys, real[1]),
        heads,
        (width // heads) ** -0.5,
        queries,
        keys,
        causal=kind == "decoder",
    )
    return replace(states, **changes)


def output(kind: str, layer: int, states: AttentionStates) -> ModelOutput:
    return ModelOutput({}, attention={(kind, layer): states})  # type: ignore[dict-item]


def loss_of(match: str, kind: str, own: AttentionStates, target: AttentionStates, relation_heads: int | None = None):
    """The only term of one match of one pair."""
    shapes = (shape(x.query.shape[-1], x.heads) for x in (own, target))
    loss = AttentionLoss((AttentionPair(kind, 1, 2),), (match,), relation_heads, *shapes)  # type: ignore[arg-type]
    (term,) = loss.terms(output(kind, 1, own), output(kind, 2, target))
    return term


def leaves(states: AttentionStates) -> list[Tensor]:
    return [states.query, states.key, states.value]


# The naive reference: one row of one head of one sentence after another.


def naive_rows(x: Tensor, y: Tensor, heads: int, scale: float, row: int, seen: list[int]) -> list[Tensor]:
    """Per head, the scores of one row with the columns that it sees."""
    size = x.shape[-1] // heads
    found = []
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        found.append(torch.stack([scale * (x[row, part] * y[column, part]).sum() for column in seen]))
    return found


def rows_of(match: str, block: AttentionStates) -> list[tuple[int, int, list[int]]]:
    """(sentence, row, columns that the row sees) of every row that counts."""
    rows, columns = block.query_rows, block.key_rows
    if match in ("queries", "keys", "values"):
        crossing = block.query.shape[1] != block.key.shape[1]
        rows = columns = block.key_rows if crossing and match != "queries" else block.query_rows
    found = []
    for sentence, row in rows.nonzero().tolist():
        seen = columns[sentence].nonzero().flatten().tolist()
        if match in ("scores", "probabilities") and block.causal:
            seen = [column for column in seen if column <= row]
        found.append((sentence, row, seen))
    return found


def naive(match: str, own: AttentionStates, target: AttentionStates, relation_heads: int) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for sentence, row, seen in rows_of(match, own):
        pair = []
        for block in (own, target):
            if match in ("scores", "probabilities"):
                query, key = block.query[sentence], block.key[sentence]
                pair.append(naive_rows(query, key, block.heads, block.scale, row, seen))
            else:
                vectors = {"queries": block.query, "keys": block.key, "values": block.value}[match][sentence]
                scale = 1 / math.sqrt(vectors.shape[-1] / relation_heads)
                pair.append(naive_rows(vectors, vectors, relation_heads, scale, row, seen))
        if match != "scores":
            pair = [[scores.exp() / scores.exp().sum() for scores in heads] for heads in pair]
        if len(pair[0]) != len(pair[1]):
            pair = [[torch.stack(heads).mean(0)] for heads in pair]
        for student, teacher in zip(*pair, strict=True):
            if match == "scores":
                total = total + ((student - teacher) ** 2).sum() / len(seen) / len(pair[0])
            else:
                total = total + (teacher * (teacher / student).log()).sum() / len(pair[0])
    return total


@pytest.mark.parametrize(("student", "teacher"), [((6, 2), (8, 2)), ((6, 3), (8, 2)), ((12, 4), (8, 1))])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("match", MATCHES)
def test_value_and_gradient_equal_the_naive_ones(match: str, kind: str, student, teacher) -> None:
    own, target = block(kind, *student, seed=1), block(kind, *teacher, seed=2)
    term = loss_of(match, kind, own, target, relation_heads=2)
    expected = naive(match, own, target, relation_heads=2)
    torch.testing.assert_close(term.total, expected, rtol=1e-10, atol=1e-12)
    found, wanted = (torch.autograd.grad(x, leaves(own), allow_unused=True) for x in (term.total, expected))
    for one, other in zip(found, wanted, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("match", MATCHES)
def test_units_are_what_the_rows_are(match: str, kind: str) -> None:
    """The sum is divided by the unit's count, which therefore has to be the number of its rows."""
    own, target = block(kind, 6, 2, seed=1), block(kind, 6, 2, seed=2)
    of_source = kind == "encoder" or (kind == "cross" and match in ("keys", "values"))
    term = loss_of(match, kind, own, target)
    assert term.unit == ("source_token" if of_source else "target_token")
    assert set(term.parts) == {f"attention/{match}/{kind}", f"{match}/{kind} attention 1<-2"}
    assert all(part.item() == term.total.item() for part in term.parts.values())
    assert len(rows_of(match, own)) == (sum(SOURCE) if of_source else sum(map(len, TARGET)))


@pytest.mark.parametrize("heads", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("match", MATCHES)
def test_gradcheck(match: str, kind: str, heads: int) -> None:
    own, target = block(kind, 6, 2, seed=1), block(kind, 6, heads, seed=2)

    def loss(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return loss_of(match, kind, replace(own, query=query, key=key, value=value), target, 3).total

    assert torch.autograd.gradcheck(loss, leaves(own))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("match", MATCHES)
def test_equal_models_have_no_loss(match: str, kind: str) -> None:
    own = block(kind, 6, 2, seed=1)
    term = loss_of(match, kind, own, block(kind, 6, 2, seed=1))
    assert term.total.item() == 0
    assert all(
        by.count_nonzero() == 0
        for by in torch.autograd.grad(term.total, leaves(own), allow_unused=True)
        if by is not None
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("match", MATCHES)
def test_pads_change_nothing(match: str, kind: str) -> None:
    """Neither more of them nor what is in them; their gradient is zero."""
    own, wide = block(kind, 6, 2, seed=1), block(kind, 6, 2, seed=1, pads=3)
    plain = loss_of(match, kind, own, block(kind, 8, 4, seed=2), 2).total
    padded = loss_of(match, kind, wide, block(kind, 8, 4, seed=2, pads=3), 2).total
    torch.testing.assert_close(padded, plain, rtol=1e-12, atol=0)
    for narrow, by in zip(
        torch.autograd.grad(plain, leaves(own), allow_unused=True),
        torch.autograd.grad(padded, leaves(wide), allow_unused=True),
        strict=True,
    ):
        if narrow is not None:
            assert by is not None
            torch.testing.assert_close(by[:, : narrow.shape[1]], narrow, rtol=1e-10, atol=1e-14)
            assert by[:, narrow.shape[1] :].count_nonzero() == 0


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_any_rows(seed: int) -> None:
    """Also sentences without rows, and rows that see nothing."""
    generator = torch.Generator().manual_seed(seed)
    queries, keys = torch.rand(2, 3, 4, generator=generator) > 0.5
    for match in MATCHES:
        own, target = (
            block("decoder", 6, heads, seed=heads, query_rows=queries, key_rows=keys, causal=seed % 2 == 0)
            for heads in (2, 3)
        )
        if match in ("scores", "probabilities"):
            seen = keys.cumsum(1) > 0 if seed % 2 == 0 else keys.any(1, keepdim=True).expand(-1, 4)
            counted = replace(own, query_rows=queries & seen)
        else:
            counted = own
        found = loss_of(match, "decoder", own, target, 2).total
        torch.testing.assert_close(found, naive(match, counted, target, 2), rtol=1e-9, atol=1e-12)


def test_dummies_have_zero_loss_and_gradient() -> None:
    for match in MATCHES:
        for kind in KINDS:
            own, target = block(kind, 6, 2, seed=1), block(kind, 6, 3, seed=2)
            none = {"query_rows": own.query_rows & False, "key_rows": own.key_rows & False}
            total = loss_of(match, kind, replace(own, **none), target, 2).total
            assert total.item() == 0
            total.backward()
            assert all(leaf.grad is None or leaf.grad.count_nonzero() == 0 for leaf in leaves(own))


@pytest.mark.parametrize("heads", [2, 4])
@pytest.mark.parametrize("match", MATCHES)
def test_slices_of_sentences_add_up(match: str, heads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def run() -> list[Tensor]:
        own, target = block("cross", 8, 2, seed=1), block("cross", 8, heads, seed=2)
        total = loss_of(match, "cross", own, target).total
        return [total, *(by for by in torch.autograd.grad(total, leaves(own), allow_unused=True) if by is not None)]

    whole = run()
    monkeypatch.setattr(score_match, "_CPU_BYTES", 1)
    assert (
        len(
            list(
                score_match._slices(
                    *[score_match.Products(torch.zeros(3, 4, 8), torch.zeros(3, 5, 8), 2, 1.0)] * 2, torch.float64
                )
            )
        )
        == 3
    )
    for found, wanted in zip(run(), whole, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("match", MATCHES)
def test_under_autocast_in_half_precision_and_with_large_scores(match: str) -> None:
    """Computed in float32: probabilities that underflow leave value and gradient finite."""
    for heads in (2, 3):
        own, target = (
            block("decoder", 6, n, seed=n, dtype=torch.bfloat16, scale=scale)
            for n, scale in ((2, 300.0), (heads, 500.0))
        )
        with torch.autocast("cpu", torch.bfloat16):
            term = loss_of(match, "decoder", own, target, 2)
        assert term.total.dtype == torch.float32
        exact = [
            replace(x, query=x.query.double().detach(), key=x.key.double().detach(), value=x.value.double().detach())
            for x in (own, target)
        ]
        torch.testing.assert_close(
            term.total.double(), loss_of(match, "decoder", *exact, 2).total, rtol=1e-4, atol=1e-4
        )
        term.total.backward()
        for leaf in leaves(own):
            assert leaf.grad is None or (leaf.grad.dtype == torch.bfloat16 and leaf.grad.isfinite().all())


def test_nothing_is_kept_for_backward_without_gradients() -> None:
    own, target = block("encoder", 6, 2, seed=1), block("encoder", 6, 2, seed=2)
    with torch.no_grad():
        term = loss_of("probabilities", "encoder", own, target)
    assert not term.total.requires_grad and term.total.item() > 0


def test_what_is_kept_for_backward_is_not_quadratic_in_length() -> None:
    """The largest tensor that autograd saves is a projection, not a matrix of scores."""
    kept: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    for match in MATCHES:
        own, target = block("encoder", 6, 2, seed=1, pads=40), block("encoder", 6, 3, seed=2, pads=40)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss_of(match, "encoder", own, target, 2)
    assert kept and max(kept) == 3 * 45 * 6


def test_terms_of_several_matches_and_pairs() -> None:
    pairs = tuple(AttentionPair(kind, *layers) for kind in KINDS for layers in ((1, 2), (2, 2)))  # type: ignore[arg-type]
    loss = AttentionLoss(pairs, ("values", "scores", "values"), 2, shape(6, 2), shape(8, 4))
    assert loss.pairs == () and loss.attention == pairs and loss.matches == ("values", "scores")
    student, teacher = ModelOutput({}), ModelOutput({})
    for seed, pair in enumerate(pairs):
        student.attention[pair.kind, pair.student] = block(pair.kind, 6, 2, seed)
        teacher.attention[pair.kind, pair.teacher] = block(pair.kind, 8, 4, seed=9)
    source, target = loss.terms(student, teacher)
    assert (source.unit, target.unit) == ("source_token", "target_token")
    means = {"attention/values/encoder", "attention/values/cross", "attention/scores/encoder"}
    assert {name for name in source.parts if name.startswith("attention/")} == means
    means = {"attention/values/decoder", "attention/scores/decoder", "attention/scores/cross"}
    assert {name for name in target.parts if name.startswith("attention/")} == means
    assert len(source.parts) == len(target.parts) == 3 + 6
    for term in (source, target):
        each = [part for name, part in term.parts.items() if not name.startswith("attention/")]
        assert not any(part.requires_grad for part in term.parts.values())
        torch.testing.assert_close(term.total.detach(), torch.stack(each).sum())
    one = source.parts["values/cross attention 2<-2"]
    alone = naive("values", student.attention["cross", 2], teacher.attention["cross", 2], 2)
    torch.testing.assert_close(one, alone.detach())
    mean = (source.parts["values/cross attention 1<-2"] + one) / 2
    torch.testing.assert_close(source.parts["attention/values/cross"], mean)


def test_pairs_of_blocks_follow_the_layer_pairs() -> None:
    layers = (
        LayerPair("encoder", 0, 0),
        LayerPair("encoder", 1, 2),
        LayerPair("decoder", 0, 0),
        LayerPair("decoder", 1, 3),
    )
    assert attention_pairs(layers) == (
        AttentionPair("encoder", 1, 2),
        AttentionPair("decoder", 1, 3),
        AttentionPair("cross", 1, 3),
    )
    assert attention_pairs(layers[:2]) == (AttentionPair("encoder", 1, 2),)


def test_relation_heads_default_to_the_teachers_of_the_same_side() -> None:
    teacher = ModelShape(12, {"encoder": SideShape(2, 8, 2), "decoder": SideShape(2, 8, 3)}, None)
    for kind, heads in (("encoder", 2), ("decoder", 3), ("cross", 3)):
        own, target = block(kind, 6, 2, seed=1), block(kind, 12, heads, seed=2)
        loss = AttentionLoss((AttentionPair(kind, 1, 2),), ("values",), None, shape(6, 2), teacher)  # type: ignore[arg-type]
        (term,) = loss.terms(output(kind, 1, own), output(kind, 2, target))
        torch.testing.assert_close(term.total, naive("values", own, target, heads))


def test_relation_heads_that_do_not_divide_are_refused() -> None:
    pairs = (AttentionPair("encoder", 1, 1),)
    with pytest.raises(
        ConfigError, match=r"^--relation-heads 5 does not divide the student's attention width 24; .*: 1, 2, 4, 8$"
    ):
        AttentionLoss(pairs, ("keys",), 5, shape(24, 2), shape(32, 16))
    with pytest.raises(ConfigError, match=r"^--relation-heads 3 does not divide the teacher's attention width 32"):
        AttentionLoss(pairs, ("keys",), 3, shape(24, 2), shape(32, 16))
    with pytest.raises(ConfigError, match=r"^--relation-heads 16 \(the teacher's\) does not divide .* 24"):
        AttentionLoss(pairs, ("scores", "queries"), None, shape(24, 2), shape(32, 16))
    AttentionLoss(pairs, ("scores", "probabilities"), None, shape(24, 2), shape(32, 16))  # they need no common heads
