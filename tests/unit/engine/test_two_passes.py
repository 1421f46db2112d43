"""What two passes over an update rest on: kept teacher states, exact replays, and clear words when numbers break."""

from __future__ import annotations

import logging

import pytest
import torch

from cktk.engine.teacher import FrozenTeacher, StateStore
from cktk.engine.update import Updater
from cktk.errors import CktkError
from cktk.utils.log import logger
from tests.unit.engine import parts
from tests.unit.engine.test_update import LENGTHS, change, naive_gradients, split


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(logger, "propagate", True)
    caplog.set_level(logging.WARNING)
    return caplog


def teacher_runs(updater: Updater) -> list[int]:
    calls: list[int] = []
    updater.teacher.model.get_encoder().register_forward_hook(lambda *_: calls.append(1))
    return calls


@pytest.mark.parametrize("place", ["host", "recompute"])
def test_where_the_teachers_states_wait_changes_nothing(place: str) -> None:
    options = {"attention_match": ("values",)}
    expected, values = change(parts.updater("cka_kd", dropout=0.2, **options), split([3, 3, 2]))
    updater = parts.updater("cka_kd", dropout=0.2, place=place, **options)
    calls = teacher_runs(updater)
    found, again = change(updater, split([3, 3, 2]))
    assert again == values
    assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())
    assert len(calls) == (5 if place == "recompute" else 3)


def test_states_on_the_host_are_copies_until_they_are_asked_for() -> None:
    updater = parts.updater("cka_kd")
    batch = parts.batch(LENGTHS[:2])
    store = StateStore(updater.teacher, "host")
    first = store.first(0, batch)
    again = store.again(0, batch)
    for key, state in first.hidden.items():
        assert torch.equal(state, again.hidden[key])
    calls = teacher_runs(updater)
    store.again(0, batch)
    assert len(calls) == 1, "what was taken is not kept"


def test_rounded_states_are_rounded_for_all_who_see_them() -> None:
    updater = parts.updater("cka_kd")
    adapter, needs = updater.teacher._adapter, updater.step.train_criterion.needs()
    rounded = FrozenTeacher(updater.teacher.model, adapter, needs, parts.FULL_PRECISION, torch.bfloat16)
    batch = parts.batch(LENGTHS[:3])
    exact, found = updater.teacher.states(batch), rounded.states(batch)
    assert found.head_input is found.hidden["decoder", 3], "what serves twice is kept once"
    for key, state in exact.hidden.items():
        assert found.hidden[key].dtype == torch.bfloat16
        assert torch.equal(found.hidden[key], state.to(torch.bfloat16))


def test_a_replay_that_differs_falls_back_to_plain_attention(warnings: pytest.LogCaptureFixture) -> None:
    # A kernel that is chosen by whether a gradient is wanted, and rounds differently.
    def kernel(*arguments: object) -> torch.Tensor | None:
        output = arguments[-1]
        fast = torch.is_grad_enabled() and torch.backends.cuda.flash_sdp_enabled()
        return output + 1e-6 * output.detach() if fast else None

    updater = parts.updater("cka_kd")
    expected, _ = naive_gradients(updater, parts.batch(LENGTHS))
    updater.step.student.get_encoder().layers[0].register_forward_hook(kernel)
    found, _ = change(updater, split([3, 3, 2]))
    assert [record.levelname for record in warnings.records] == ["WARNING"]
    assert "plain" in warnings.text
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-11, msg=name)
    updater.run(split([3, 3, 2]), 1, 1.0)
    assert len(warnings.records) == 1


def test_a_replay_that_never_equals_is_told_and_goes_on(warnings: pytest.LogCaptureFixture) -> None:
    def noisy(*arguments: object) -> torch.Tensor:
        return arguments[-1] * (1 + 1e-9 * torch.is_grad_enabled())

    updater = parts.updater("cka_kd")
    updater.step.student.get_encoder().layers[0].register_forward_hook(noisy)
    updater.run(split([4, 4]), 0, 0.0)
    updater.run(split([4, 4]), 1, 0.0)
    assert [("plain" in r.message, "not quite exact" in r.message) for r in warnings.records] == [
        (True, False),
        (False, True),
    ]


def test_exact_replays_say_nothing(warnings: pytest.LogCaptureFixture) -> None:
    parts.updater("cka_kd", dropout=0.3).run(split([3, 3, 2]), 0, 1.0)
    assert not warnings.records


@pytest.mark.parametrize("scope", ["update", "summed", "micro", "running"])
def test_a_nan_is_told_with_its_layer_pair_and_its_micro_batch(scope: str) -> None:
    updater = parts.updater("cka_kd", cka_scope=scope)
    batches = split([2, 3, 3])
    # A token that only the second micro-batch reads.
    others = torch.cat([batch.inputs["input_ids"].flatten() for batch in (batches[0], batches[2])])
    targets = torch.cat([batch.inputs["decoder_input_ids"].flatten() for batch in batches])
    own = batches[1].inputs["input_ids"].flatten().tolist()
    token = next(t for t in own if t not in {*others.tolist(), *targets.tolist(), 1})
    shared = updater.step.student.model
    shared.encoder.embed_tokens = torch.nn.Embedding.from_pretrained(shared.shared.weight.detach().clone())
    with torch.no_grad():
        shared.encoder.embed_tokens.weight[token] = float("nan")
    with pytest.raises(CktkError, match=r"update 3: .*cka/encoder 1<-2.* not finite \(micro-batch of rows 2, 3, 4\)"):
        updater.run(batches, 2, 1.0)


def test_out_of_memory_begins_the_update_again(monkeypatch: pytest.MonkeyPatch) -> None:
    expected, _ = change(parts.updater("cka_kd", dropout=0.2), split([4, 4]))
    updater = parts.updater("cka_kd", dropout=0.2)
    failures = [1]

    def fail(*_: object) -> None:
        if failures and torch.is_grad_enabled():
            failures.pop()
            raise torch.OutOfMemoryError("no room")

    updater.step.student.get_decoder().layers[1].register_forward_hook(fail)
    found, _ = change(updater, split([4, 4]))
    assert not failures
    assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())
    failures[:] = [1, 1]
    with pytest.raises(CktkError, match=r"out of memory in update 1: lower --max-tokens .*--teacher-states"):
        updater.run(split([4, 4]), 0, 1.0)


def test_running_moves_with_updates_that_are_made() -> None:
    updater = parts.updater("cka_kd", cka_scope="running", cka_momentum=0.5)
    criterion = updater.step.train_criterion
    assert criterion.collects == "before"
    updater.run(split([4, 4]), 0, 0.0)
    assert criterion.collects == "along"
    kept = {name: buffer.clone() for name, buffer in updater.step.criterion.named_buffers()}
    assert kept
    calls: list[int] = []
    updater.step.student.get_encoder().register_forward_hook(lambda *_: calls.append(1))
    updater.run(split([2, 2, 4]), 1, 0.0)
    assert len(calls) == 3, "one pass"
    moved = dict(updater.step.criterion.named_buffers())
    assert any(not torch.equal(kept[name], buffer) for name, buffer in moved.items())

    updater.scaler = torch.amp.GradScaler("cpu", enabled=True)
    kept = {name: buffer.clone() for name, buffer in moved.items()}
    with torch.no_grad():
        updater.step.student.model.shared.weight[5] = float("inf")
    assert updater.run(split([8]), 2, 1.0).skipped
    assert all(torch.equal(kept[name], b) for name, b in updater.step.criterion.named_buffers())
