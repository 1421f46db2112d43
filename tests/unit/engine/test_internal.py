"""Updates in every stage of internal distillation against the formulas; what stages freeze; what validations show."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch

from cktk.architectures.families.family import family_of
from cktk.architectures.states.layer_map import layer_pairs
from cktk.criteria.configs import InternalKdConfig
from cktk.criteria.internal.criterion import InternalKd
from cktk.engine.stages import Stages
from cktk.engine.validation import evaluation_mode
from cktk.errors import ConfigError
from cktk.protocols import Matching
from tests.unit.engine import parts
from tests.unit.engine.internal import at_stage, bart_batch, bert, bert_batch, naive_loss
from tests.unit.engine.test_t5 import t5_in_float64

E1, E2, D1, D2 = ("encoder", 1), ("encoder", 2), ("decoder", 1), ("decoder", 2)
MODELS: dict[str, tuple[Any, Any]] = {
    "bert": (bert, bert_batch),
    "bert, heads": (partial(bert, student_heads=4), bert_batch),
    "bart": (parts.bart, bart_batch),
    "t5": (t5_in_float64, bart_batch),
}
# Models, student's width, procedure, and by stage what is matched and whether the head is trained.
CASES = [
    ("bert", 16, "all", [([E1, E2], True), ([], True)]),
    ("bert", 16, "progressive", [([E1], False), ([E2], False), ([], True)]),
    ("bert", 16, "stacked", [([E1], False), ([E1, E2], False), ([], True)]),
    ("bert", 8, "stacked", [([E1], False), ([E1, E2], False), ([], True)]),
    ("bert, heads", 16, "progressive", [([E1], False), ([E2], False), ([], True)]),
    ("bart", 16, "progressive", [([E1], False), ([E2], False), ([D1], False), ([D2], False), ([], True)]),
    ("t5", 16, "all", [([E1, E2, D1, D2], True), ([], True)]),
    ("t5", 8, "stacked", [([E1], False), ([E1, E2], False), ([E1, E2, D1], False), ([E1, E2, D1, D2], False)]),
    ("bart", 8, "stacked", [([E1], False), ([E1, E2], False), ([E1, E2, D1], False), ([E1, E2, D1, D2], False)]),
]
STAGES = [
    pytest.param(models, width, procedure, number, *stage, id=f"{models}-{width}-{procedure}-{number + 1}")
    for models, width, procedure, stages in CASES
    for number, stage in enumerate(stages)
]
WEIGHTS = {"ce_weight": 0.5, "attention_weight": 0.7, "cls_weight": 1.5, "temperature": 2.0}


def make(models: str, width: int, procedure: str, **options: Any) -> Any:
    maker, batch = MODELS[models]
    settings = {"procedure": procedure, "stage_epochs": (1,), **WEIGHTS, **options}
    return parts.updater("internal_kd", width=width, make=maker, **settings), batch


@pytest.mark.parametrize(("models", "width", "procedure", "number", "pairs", "head"), STAGES)
def test_an_update_is_the_gradient_of_its_stage(models, width, procedure, number, pairs, head) -> None:
    updater, batch = make(models, width, procedure)
    at_stage(updater, number)
    student = updater.step.student
    loss = naive_loss(updater, batch(0, 5), pairs, head, ce=0.5, attention=0.7, cls=1.5, temperature=2.0)
    student.zero_grad()
    loss.backward()
    expected = {f"student.{name}": p.grad for name, p in student.named_parameters()}
    student.zero_grad()
    before = parts.weights(updater)
    result = updater.run([batch(0, 2), batch(2, 5)], 0, 1.0)
    assert result.values["loss"] == pytest.approx(loss.item(), rel=1e-10)
    for name, weight in parts.weights(updater).items():
        if expected[name] is None:
            assert torch.equal(before[name], weight), name
        else:
            torch.testing.assert_close(before[name] - weight, expected[name], rtol=1e-8, atol=1e-11, msg=name)


def test_what_is_kept_at_the_end_is_matched_beside_the_head() -> None:
    updater, batch = make("bert", 16, "progressive", keep_internal_at_end=True)
    at_stage(updater, 2)
    loss = naive_loss(updater, batch(0, 5), [E1, E2], True, ce=0.5, attention=0.7, cls=1.5, temperature=2.0)
    assert updater.run([batch(0, 5)], 0, 1.0).values["loss"] == pytest.approx(loss.item(), rel=1e-10)


@pytest.mark.parametrize("width", [8, 16])
@pytest.mark.parametrize("models", ["bert", "bart"])
def test_pads_change_nothing(models: str, width: int) -> None:
    found = []
    for pad_to in (0, 12):
        updater, batch = make(models, width, "all")
        before = parts.weights(updater)
        values = updater.run([batch(0, 5, pad_to)], 0, 1.0).values
        found.append((values, {name: before[name] - weight for name, weight in parts.weights(updater).items()}))
    (values, changes), (padded, with_pads) = found
    assert padded == pytest.approx(values, rel=1e-9, abs=1e-12)
    for name, change in changes.items():
        torch.testing.assert_close(with_pads[name], change, rtol=1e-8, atol=1e-11, msg=name)


@pytest.mark.parametrize("models", ["bert", "bart"])
def test_equal_models_have_no_internal_loss(models: str) -> None:
    maker, batch = MODELS[models]
    teacher = maker(1, 16, 3)
    student = copy.deepcopy(teacher)
    family = family_of(student.config.model_type, "the student")
    shape = family.shape(student.config)
    pairs = layer_pairs(shape, shape, embeddings=False)
    config = InternalKdConfig(procedure="stacked", stage_epochs=(1,))
    criterion = InternalKd(config, Matching(shape, shape, pairs)).double()
    criterion.load_stage_state({**criterion.stage_state(), "stage": len(criterion.plan) - 2})
    needs = criterion.current.needs()
    outputs = [
        family.adapter(model)(batch(0, 5), needs.request(name, head=False))
        for name, model in (("student", student), ("teacher", teacher))
    ]
    terms = criterion.current(outputs[0], outputs[1].map(torch.Tensor.detach), batch(0, 5).labels, None)
    assert {term.name for term in terms} == {"cls_cosine", "attention"}
    for term in terms:
        assert all(abs(part.item()) < 1e-12 for part in term.parts.values())
    torch.stack([term.total for term in terms]).sum().backward()
    assert all(p.grad is None or p.grad.abs().max() < 1e-12 for p in student.parameters())


@pytest.mark.parametrize("width", [8, 16])
def test_validations_are_the_same_in_all_stages(width: int) -> None:
    updater, batch = make("bert", width, "progressive", ce_weight=1.0, temperature=1.0)
    expected = naive_loss(updater, batch(0, 5), [], True).item()
    seen = []
    for stage in range(3):
        step = at_stage(updater, stage).step
        with evaluation_mode(step), torch.no_grad():
            output = step("evaluate", batch(0, 5), updater.teacher.states(batch(0, 5)))
        counts = {**batch(0, 5).counts(), "update": 1}
        seen.append(output.totals.averages(counts, lambda x: x))
        assert {"ce", "kl", "attention/probabilities/encoder"} <= seen[-1].keys()
        assert ("cls_cosine/encoder 2<-3" in seen[-1]) == (width == 16) == (output.statistics is None)
    assert seen[0] == seen[1] == seen[2]
    assert seen[0]["loss"] == pytest.approx(expected, rel=1e-10)


def test_only_what_is_in_play_is_captured() -> None:
    updater, batch = make("bart", 16, "progressive")
    for stage, blocks in enumerate([["encoder"], ["encoder"], ["decoder", "cross"], ["decoder", "cross"], []]):
        at_stage(updater, stage).step.train()
        needs = updater.step.train_criterion.needs()
        assert [block.kind for block in needs.attention] == blocks
        states = updater.teacher.states(batch(0, 2))
        assert len(states.attention) == len(blocks) and len(states.first) == (1 if blocks else 0)
        assert (updater.teacher.head is not None) == (states.head_input is not None) == (not blocks)
    assert {len(first) for first in states.first.values()} <= {2}


def test_a_frozen_body_stays_bit_for_bit_and_keeps_its_moments() -> None:
    """Weight decay and momentum would move what merely had a zero gradient."""
    updater, batch = make("bert", 16, "all", freeze_body_at_end=True)
    step = updater.step
    updater.optimizer = torch.optim.AdamW(step.parameters(), lr=0.1, weight_decay=0.5)
    updater.parameters = [*step.parameters()]
    family = family_of("bert", "the student")
    own = {id(p) for p in family.head(step.student).parameters()}
    body = {name: p for name, p in step.named_parameters() if id(p) not in own}
    stages = Stages(step.criterion, [*body.values()])
    updater.run([batch(0, 5)], 0, 0.1)
    assert not stages.last and stages.end_epoch() and stages.last
    before = parts.weights(updater)
    moments = {name: {k: v.clone() for k, v in updater.optimizer.state[p].items()} for name, p in body.items()}
    updater.run([batch(0, 5)], 1, 0.1)
    for name, weight in parts.weights(updater).items():
        assert torch.equal(before[name], weight) == (name in body), name
    for name, p in body.items():
        assert moments[name].keys() == updater.optimizer.state[p].keys() and moments[name], name
        assert all(torch.equal(value, updater.optimizer.state[p][key]) for key, value in moments[name].items())


def test_the_losses_of_the_present_layer_decide() -> None:
    updater, batch = make("bert", 16, "stacked", stage_epochs=(), cosine_threshold=0.3)
    criterion: Any = at_stage(updater, 1).step.criterion
    result = updater.run([batch(0, 5)], 0, 1.0)
    criterion.observe(result.values, result.counts)
    criterion.end_epoch()
    assert criterion.stage_figures()["cls_cosine"] == result.values["cls_cosine/encoder 2<-3"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"procedure": "stacked"}, "never leaves its first layer: give --stage-epochs or --cosine-threshold"),
        ({"ce_weight": 0.0, "kl_weight": 0.0}, "nothing would train the head"),
        ({"attention_weight": 0.0, "cls_weight": 0.0}, "use --criterion kl_kd"),
        ({"cls_weight": 0.0, "cosine_threshold": 0.1}, "give --stage-epochs instead"),
        ({"keep_internal_at_end": True, "freeze_body_at_end": True, "stage_epochs": (1,)}, "choose one"),
        ({"freeze_body_at_end": True}, "--procedure all does not end"),
        ({"keep_internal_at_end": True, "stage_epochs": (1,)}, "then has nothing to leave"),
        ({"procedure": "stacked", "stage_epochs": (1, 2, 3)}, "3 numbers, but there are 2 stages before the last"),
    ],
)
def test_options_that_contradict_one_another(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parts.updater("internal_kd", width=16, make=bert, **options)


def test_an_all_without_end_is_one_stage() -> None:
    updater, _ = make("bert", 16, "all", stage_epochs=())
    assert [name for name, _ in updater.step.criterion.plan] == ["all layers and head"]
    updater, _ = make("bert", 16, "stacked", stage_epochs=(1, 3))
    names = [name for name, _ in updater.step.criterion.plan]
    assert names == ["encoder layer 1", "encoder layer 2", "head"]
