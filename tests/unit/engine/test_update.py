from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.nn import functional as F

from cktk.engine.update import Updater
from cktk.errors import CktkError
from cktk.protocols import Batch
from tests.unit.engine import parts

LENGTHS = [(7, 5), (3, 6), (5, 2), (9, 9), (4, 4), (2, 3), (6, 8), (8, 1)]


def split(sizes: list[int]) -> list[Batch]:
    """The eight sentences in micro-batches of the given sizes."""
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [parts.batch(LENGTHS[start : start + n], first=start) for start, n in zip(starts, sizes, strict=True)]


def change(updater: Updater, batches: list[Batch]) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    before = parts.weights(updater)
    result = updater.run(batches, 0, 1.0)
    return {name: before[name] - after for name, after in parts.weights(updater).items()}, result.values


def naive_gradients(updater: Updater, whole: Batch) -> tuple[dict[str, torch.Tensor], float]:
    """Autograd through transformers' own forward over the whole effective batch, written from the formulas."""
    student, teacher = updater.step.student, updater.teacher.model
    rows = {"encoder": whole.inputs["attention_mask"].bool(), "decoder": whole.labels >= 0}
    out = student(**whole.inputs, output_hidden_states=True)
    with torch.no_grad():
        target = teacher(**whole.inputs, output_hidden_states=True)
    log_p, log_q = (x.logits[rows["decoder"]].log_softmax(-1) for x in (out, target))
    loss = F.nll_loss(log_p, whole.labels[rows["decoder"]])
    loss = loss + (log_q.exp() * (log_q - log_p)).sum(-1).mean()
    for side in ("encoder", "decoder"):
        students, teachers = (getattr(x, f"{side}_hidden_states") for x in (out, target))
        for i, j in ((0, 0), (1, 2), (2, 3)):  # ceil(j * 3 / 2), and the embeddings
            s, t = students[i][rows[side]], teachers[j][rows[side]]
            s, t = s - s.mean(0), t - t.mean(0)
            loss = loss + 1 - (t.T @ s).norm() / ((s.T @ s).norm() * (t.T @ t).norm()).sqrt()
    student.zero_grad()
    loss.backward()
    found = {f"student.{name}": p.grad.clone() for name, p in student.named_parameters()}
    student.zero_grad()
    return found, loss.item()


@pytest.mark.parametrize("sizes", [[8], [4, 4], [1] * 8, [5, 1, 2]])
def test_an_update_is_the_gradient_of_the_whole_effective_batch(sizes: list[int]) -> None:
    updater = parts.updater("cka_kd")
    expected, loss = naive_gradients(updater, parts.batch(LENGTHS))
    found, values = change(updater, split(sizes))
    assert values["loss"] == pytest.approx(loss, rel=1e-12)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-11, msg=name)


@pytest.mark.parametrize("criterion", ["cross_entropy", "kl_kd", "linear_kd", "cka_kd"])
def test_padding_and_dummies_change_nothing(criterion: str) -> None:
    torch.manual_seed(3)
    plain, plain_values = change(parts.updater(criterion), split([4, 4]))
    torch.manual_seed(3)
    padded = [parts.batch(LENGTHS[:4], 0, pad_to=13), parts.batch(LENGTHS[4:], 4, pad_to=16)]
    dummy = dataclasses.replace(parts.batch(LENGTHS[:2], 90), dummy=True)
    found, values = change(parts.updater(criterion), [dummy, padded[0], dummy, padded[1], dummy])
    assert values == pytest.approx(plain_values, rel=1e-10)
    for name, gradient in plain.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-11, msg=name)


def test_the_second_pass_sees_the_dropout_of_the_first() -> None:
    # For CKA over the update, the sum of s * g over all rows is 0: only if g meets the very states it was made from.
    options = {"ce_weight": 0.0, "kl_weight": 0.0, "layer_map": "decoder=last:1", "match_embeddings": False}
    updater = parts.updater("cka_kd", dropout=0.4, **options)
    products: list[float] = []

    def watch(*arguments: object) -> None:
        state = arguments[-1]
        if state.requires_grad:
            state.register_hook(lambda gradient: products.append((state * gradient).sum().item()))

    updater.step.student.get_decoder().layers[-1].register_forward_hook(watch)
    updater.run(split([2, 2, 2, 2]), 7, 1.0)
    assert len(products) == 4
    assert max(map(abs, products)) > 1e-3
    assert sum(products) == pytest.approx(0, abs=1e-10)


def test_dropout_is_a_function_of_the_place_in_the_run() -> None:
    first, _ = change(parts.updater("kl_kd", dropout=0.3), split([4, 4]))
    torch.rand(17)  # whatever else drew random numbers
    again, _ = change(parts.updater("kl_kd", dropout=0.3), split([4, 4]))
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_one_micro_batch_takes_one_pass_and_k_take_k_minus_one_replays() -> None:
    for sizes, forwards in (([8], 1), ([4, 4], 3), ([2, 2, 2, 2], 7)):
        updater = parts.updater("cka_kd")
        calls = []
        updater.step.student.get_encoder().register_forward_hook(lambda *_, calls=calls: calls.append(1))
        updater.run(split(sizes), 0, 1.0)
        assert len(calls) == forwards


def test_clipping_counts_projectors_in() -> None:
    torch.manual_seed(3)
    free, _ = change(parts.updater("linear_kd"), split([8]))
    norm = torch.stack([g.norm() for g in free.values()]).norm().item()
    torch.manual_seed(3)
    clipped = parts.updater("linear_kd")
    clipped._clip_norm = 0.5
    before = parts.weights(clipped)
    result = clipped.run(split([8]), 0, 1.0)
    after = parts.weights(clipped)
    assert any("criterion" in name and free[name].abs().sum() > 0 for name in free)
    assert result.grad_norm == pytest.approx(norm)
    assert torch.stack([(before[n] - after[n]).norm() for n in before]).norm().item() == pytest.approx(0.5, rel=1e-4)


def test_a_loss_that_is_not_finite_is_named() -> None:
    updater = parts.updater("kl_kd")
    with torch.no_grad():
        updater.step.student.model.shared.weight[5] = float("nan")
    with pytest.raises(CktkError, match=r"update 4: .*kl.* not finite"):
        updater.run(split([8]), 3, 1.0)


def test_overflow_in_float16_skips_and_then_ends() -> None:
    updater = parts.updater("kl_kd")
    updater.scaler = torch.amp.GradScaler("cpu", enabled=True, init_scale=4.0)
    weight = updater.step.student.model.shared.weight
    healthy = weight[5].clone()
    assert not updater.run(split([8]), 0, 0.0).skipped
    with torch.no_grad():
        weight[5] = float("inf")
    before = parts.weights(updater)
    assert updater.run(split([8]), 1, 1.0).skipped
    assert updater.scaler.get_scale() == 4.0, "a loss that is not finite says nothing about the scale"
    assert all(torch.equal(before[name], after) for name, after in parts.weights(updater).items())
    with torch.no_grad():
        weight[5] = healthy
    assert not updater.run(split([8]), 1, 1.0).skipped
    with torch.no_grad():
        weight[5] = float("nan")
    with pytest.raises(CktkError, match=r"update 3: .*kl.* not finite.* times in a row"):
        for _ in range(100):
            updater.run(split([8]), 2, 1.0)


def test_the_wish_to_stop_reaches_the_result() -> None:
    updater = parts.updater("kl_kd")
    assert not updater.run(split([8]), 0, 1.0).stop
    assert updater.run(split([8]), 1, 1.0, stop=True).stop


def test_the_teacher_stays_as_it_is() -> None:
    updater = parts.updater("cka_kd", dropout=0.3)
    before = [p.clone() for p in updater.teacher.model.parameters()]
    updater.run(split([4, 4]), 0, 1.0)
    assert not updater.teacher.model.training
    assert updater.step.training
    assert all(torch.equal(a, b) for a, b in zip(before, updater.teacher.model.parameters(), strict=True))
    assert all(p.grad is None for p in updater.teacher.model.parameters())
