from __future__ import annotations

import pytest
import torch

from cktk.criteria.configs import CrossEntropyConfig, KlKdConfig
from cktk.criteria.head.head_options import HeadLossOptions
from cktk.criteria.regression import regression_loss
from cktk.errors import ConfigError
from cktk.protocols import Batch, HeadParams, Matching, ModelOutput, ModelShape, SideShape, SparseTargets
from cktk.registry import CRITERIA

SHAPE = ModelShape(5, {"encoder": SideShape(2, 8, 1)}, None)


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(3)


def test_value_and_gradient_against_the_definition() -> None:
    hidden, labels = draw(6, 5).requires_grad_(), draw(6)
    head = HeadParams(draw(1, 5).requires_grad_(), draw(1).requires_grad_(), 0.5)
    teacher = (draw(6, 7).requires_grad_(), HeadParams(draw(1, 7), draw(1)))
    options = HeadLossOptions(ce_weight=0.3, kl_weight=2.0)
    total, parts = regression_loss(hidden, labels, head, teacher, options)

    gold = aim = 0.0
    for row in range(6):
        own = 0.5 * sum(hidden[row, i] * head.weight[0, i] for i in range(5)) + head.bias[0]
        theirs = sum(teacher[0][row, i].detach() * teacher[1].weight[0, i] for i in range(7)) + teacher[1].bias[0]
        gold, aim = gold + (own - labels[row]) ** 2, aim + (own - theirs) ** 2
    torch.testing.assert_close(parts, {"mse": gold.detach(), "teacher_mse": aim.detach()})
    leaves = (hidden, head.weight, head.bias)
    found = torch.autograd.grad(total, leaves, retain_graph=True)
    for ours, theirs in zip(found, torch.autograd.grad(0.3 * gold + 2 * aim, leaves), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert torch.autograd.grad(total, teacher[0], allow_unused=True) == (None,)


def test_it_is_computed_in_full_precision_under_autocast() -> None:
    hidden, head, labels = draw(40, 5).float(), HeadParams(draw(1, 5).float()), draw(40).float()
    plain, _ = regression_loss(hidden, labels, head, None, HeadLossOptions())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed, parts = regression_loss(hidden, labels, head, None, HeadLossOptions())
    assert mixed == plain and set(parts) == {"mse"}


def test_rows_without_a_number_are_not_scored() -> None:
    """A batch's rows, a dummy's, and the terms of the criteria that the registry builds."""
    inputs = {"input_ids": torch.ones(3, 4, dtype=torch.int64), "attention_mask": torch.ones(3, 4, dtype=torch.int64)}
    batch = Batch(inputs, torch.tensor([[0.5], [float("nan")], [0.0]]), [0, 1, 2])
    assert batch.rows("decoder").flatten().tolist() == [True, False, True]
    assert batch.counts()["target_token"] == 2 and batch.counts()["sentence"] == 3
    assert not Batch(inputs, batch.labels, [0], dummy=True).rows("decoder").any()

    labels = batch.labels[batch.rows("decoder")]
    states = torch.randn(2, 5)
    head, teacher_head = HeadParams(torch.randn(1, 5)), HeadParams(torch.randn(1, 5))
    for name, config in (("cross_entropy", CrossEntropyConfig()), ("kl_kd", KlKdConfig())):
        criterion = CRITERIA.target(name)(config, Matching(SHAPE, SHAPE, regression=True))
        teacher = ModelOutput({}, torch.randn(2, 5)) if name == "kl_kd" else None
        (term,) = criterion(ModelOutput({}, states), teacher, labels, head, teacher_head)
        assert term.unit == "target_token" and "mse" in term.parts
        torch.testing.assert_close(term.parts["mse"], ((states @ head.weight[0] - labels) ** 2).sum())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label_smoothing": 0.1}, "--label-smoothing 0.1"),
        ({"temperature": 2.0}, "--temperature 2.0"),
        ({"divergence": "js"}, "--divergence js"),
        ({"teacher_top_k": 4}, "--teacher-top-k 4"),
    ],
)
def test_what_only_distributions_have_is_refused(changes, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{message}: .*regression.*leave it out$"):
        CRITERIA.target("kl_kd")(KlKdConfig(**changes), Matching(SHAPE, SHAPE, regression=True))


def test_other_heads_and_recorded_distributions_are_refused() -> None:
    hidden, labels = draw(2, 5), draw(2)
    with pytest.raises(ConfigError, match="the student's head has 3 rows"):
        regression_loss(hidden, labels, HeadParams(draw(3, 5)), None, HeadLossOptions())
    head = HeadParams(draw(1, 5))
    with pytest.raises(ConfigError, match="the teacher's head has 2 rows"):
        regression_loss(hidden, labels, head, (hidden, HeadParams(draw(2, 5))), HeadLossOptions(kl_weight=1))
    recorded = SparseTargets(torch.zeros(2, 1, dtype=torch.int64), draw(2, 1), False, 1.0)
    with pytest.raises(ConfigError, match="train with --teacher"):
        regression_loss(hidden, labels, head, recorded, HeadLossOptions(kl_weight=1))
