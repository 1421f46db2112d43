"""One normalisation for all terms: an update is the gradient of one full-batch loss, however it is split."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from cktk.engine.update import Updater
from cktk.protocols import IGNORED, Batch
from cktk.registry import CRITERIA
from tests.unit.engine import naive, parts

#: Source and target lengths of the sentences of the update.
LENGTHS = [(7, 5), (3, 6), (5, 2), (9, 9), (4, 4), (2, 3), (6, 8), (8, 1)]
SPLITS = [[8], [4, 4], [2, 2, 2, 2], [1] * 8, [3, 1, 4]]

#: No two terms weigh alike, so that none can stand in for another.
WEIGHTS: dict[str, Any] = {"ce_weight": 0.7, "kl_weight": 1.3}
HIDDEN = {**WEIGHTS, "hidden_weight": 0.6}
ATTENTION = {"attention_match": ("scores", "values"), "attention_weight": 0.4}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "kl": ("kl_kd", {**WEIGHTS, "temperature": 1.7, "label_smoothing": 0.1}),
    "cka update": ("cka_kd", HIDDEN),
    "cka squared": ("cka_kd", {**HIDDEN, "cka_form": "squared", "divergence": "reverse_kl"}),
    "cka debiased": ("cka_kd", {**HIDDEN, "cka_form": "debiased"}),
    "cka summed": ("cka_kd", {**HIDDEN, "cka_scope": "summed"}),
    "cka micro": ("cka_kd", {**HIDDEN, "cka_scope": "micro", "match_embeddings": False}),
    "procrustes update": ("procrustes_kd", HIDDEN),
    "procrustes micro": ("procrustes_kd", {**HIDDEN, "procrustes_scope": "micro"}),
    "gram": ("gram_kd", HIDDEN),
    "linear": ("linear_kd", HIDDEN),
    "linear shared": ("linear_kd", {**HIDDEN, "projector": "shared"}),
    "cosine": ("cosine_kd", HIDDEN),
    "attention": (
        "attention_kd",
        {**WEIGHTS, "attention_weight": 0.4, "attention_match": ("probabilities", "queries", "keys")},
    ),
    "all at once": ("cka_kd", {**HIDDEN, **ATTENTION, "temperature": 2.0, "label_smoothing": 0.2}),
}
#: Those whose micro-batches are looked at by themselves: a micro-batch without targets is one more of them.
BY_MICRO_BATCH = ("cka micro", "procrustes micro")


def make(case: str) -> tuple[Updater, str, Any]:
    criterion, options = CASES[case]
    torch.manual_seed(3)  # projectors
    updater = parts.updater(criterion, width=16 if criterion == "cosine_kd" else 8, **options)
    return updater, criterion, CRITERIA.config(criterion)(**options)


def expected(updater: Updater, criterion: str, config: Any, whole: Batch, sizes: list[int]) -> tuple[dict, float]:
    """The gradient of the naive loss for every parameter, and the loss."""
    named = dict(updater.step.named_parameters())

    def projector(side: str, own: int, other: int) -> tuple[torch.Tensor, torch.Tensor]:
        name = "shared" if config.projector == "shared" else f"{side}_{own}_{other}"
        stem = f"criterion.hidden.projectors.{name}"
        return named[f"{stem}.weight"], named[f"{stem}.bias"]

    step = updater.step
    loss = naive.full_loss(criterion, config, step.student, updater.teacher.model, projector, whole, sizes)
    gradients = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {
        name: torch.zeros_like(p) if g is None else g for (name, p), g in zip(named.items(), gradients, strict=True)
    }, loss.item()


def pieces(sizes: list[int]) -> list[Batch]:
    """The sentences in micro-batches of the given sizes, padded unevenly."""
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [
        parts.batch(LENGTHS[start : start + size], start, pad_to=start % 3 * 5)
        for start, size in zip(starts, sizes, strict=True)
    ]


def with_dummies(batches: list[Batch]) -> list[Batch]:
    """A dummy of other sentences before, behind and between the micro-batches."""
    dummy = dataclasses.replace(parts.batch(LENGTHS[:3], 90), dummy=True)
    return [dummy, *(batch for real in batches for batch in (real, dummy))]


def check(updater: Updater, batches: list[Batch], gradients: dict[str, torch.Tensor], loss: float) -> None:
    before = parts.weights(updater)
    values = updater.run(batches, 0, 1.0).values
    assert values["loss"] == pytest.approx(loss, rel=1e-10)
    for name, after in parts.weights(updater).items():
        gradient = gradients[name]
        torch.testing.assert_close(before[name] - after, gradient, rtol=1e-8, atol=1e-10, msg=name)


@pytest.mark.parametrize("sizes", SPLITS, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_an_update_is_the_gradient_of_the_full_batch(case: str, sizes: list[int]) -> None:
    updater, criterion, config = make(case)
    gradients, loss = expected(updater, criterion, config, parts.batch(LENGTHS), sizes)
    assert sum(g.abs().sum() > 1e-6 for g in gradients.values()) > 20
    check(updater, with_dummies(pieces(sizes)), gradients, loss)


@pytest.mark.parametrize("case", [case for case in CASES if case not in BY_MICRO_BATCH])
def test_a_micro_batch_without_targets_counts_its_source_only(case: str) -> None:
    sizes = [3, 2, 3]
    batches = pieces(sizes)
    batches[1] = unscored(batches[1], range(2))
    updater, criterion, config = make(case)
    whole = unscored(parts.batch(LENGTHS), range(3, 5))
    gradients, loss = expected(updater, criterion, config, whole, sizes)
    check(updater, batches, gradients, loss)


def unscored(batch: Batch, sentences: range) -> Batch:
    labels = batch.labels.clone()
    labels[list(sentences)] = IGNORED
    return dataclasses.replace(batch, labels=labels)


@pytest.mark.parametrize("case", CASES)
def test_an_update_of_dummies_does_nothing(case: str) -> None:
    updater, _, _ = make(case)
    before = parts.weights(updater)
    dummy = dataclasses.replace(parts.batch(LENGTHS[:3], 90), dummy=True)
    result = updater.run([dummy, dummy], 0, 1.0)
    assert result.counts["target_token"] == result.counts["microbatch"] == 0
    assert all(torch.equal(before[name], after) for name, after in parts.weights(updater).items())
