"""Updates of encoder-only students: positions are scored by masked language models, sentences by classifiers."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from cktk.protocols import IGNORED, Batch
from tests.unit.architectures.encoders import KINDS, make_encoder
from tests.unit.engine import parts

LENGTHS = (7, 3, 5, 6, 2)


def encoder(kind: str, head: str, seed: int, width: int, layers: int, dropout: float = 0.0) -> Any:
    if kind == "distilbert":
        sizes = {"dim": width, "n_layers": layers, "n_heads": 2, "dropout": dropout, "attention_dropout": dropout}
        sizes["seq_classif_dropout"] = dropout
    else:
        sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": 2}
        sizes |= {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    return make_encoder(kind, head, seed, **sizes).double()


def batch(head: str, start: int, stop: int) -> Batch:
    """Sentences ``start`` to ``stop``, the same whatever batch they stand in; two positions of each go unscored."""
    rows = [torch.randint(3, 41, (n,), generator=torch.Generator().manual_seed(n)) for n in LENGTHS[start:stop]]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=1)
    mask = (ids != 1).long()
    if head == "classification":
        labels = torch.tensor([2, IGNORED, 0, 1, 1])[start:stop]
    else:
        labels = ids.masked_fill((ids == 1) | (torch.arange(ids.shape[1]) < 1), IGNORED)
    return Batch({"input_ids": ids, "attention_mask": mask}, labels, list(range(start, stop)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("head", ["masked_lm", "classification"])
def test_an_update_is_the_gradient_of_the_whole_effective_batch(kind: str, head: str) -> None:
    updater = parts.updater("cka_kd", make=partial(encoder, kind, head))
    student, teacher = updater.step.student, updater.teacher.model
    whole = batch(head, 0, 5)
    rows, scored = whole.inputs["attention_mask"].bool(), whole.labels != IGNORED
    out = student(**whole.inputs, output_hidden_states=True)
    with torch.no_grad():
        target = teacher(**whole.inputs, output_hidden_states=True)
    log_p, log_q = (found.logits[scored].log_softmax(-1) for found in (out, target))
    loss = F.nll_loss(log_p, whole.labels[scored]) + F.kl_div(log_p, log_q, reduction="batchmean", log_target=True)
    for own, theirs in ((0, 0), (1, 2), (2, 3)):
        s, t = out.hidden_states[own][rows], target.hidden_states[theirs][rows]
        s, t = s - s.mean(0), t - t.mean(0)
        loss = loss + 1 - (t.T @ s).norm() / ((s.T @ s).norm() * (t.T @ t).norm()).sqrt()
    student.zero_grad()
    loss.backward()
    expected = {f"student.{name}": p.grad.clone() for name, p in student.named_parameters()}
    student.zero_grad()

    before = parts.weights(updater)
    values = updater.run([batch(head, 0, 2), batch(head, 2, 5)], 0, 1.0).values
    assert values["loss"] == pytest.approx(loss.item(), rel=1e-12)
    for name, weight in parts.weights(updater).items():
        torch.testing.assert_close(before[name] - weight, expected[name], rtol=1e-9, atol=1e-11, msg=name)


@pytest.mark.parametrize("criterion", ["attention_kd", "linear_kd"])
@pytest.mark.parametrize("head", ["masked_lm", "classification"])
def test_other_criteria_take_encoders(head: str, criterion: str) -> None:
    """Split in micro-batches or not, an update is the same."""

    def change(sizes: list[tuple[int, int]]) -> dict[str, torch.Tensor]:
        torch.manual_seed(4)  # projectors are drawn
        options = {"attention_match": ("probabilities", "values")} if criterion == "attention_kd" else {}
        updater = parts.updater(criterion, make=partial(encoder, "bert", head), **options)
        before = parts.weights(updater)
        updater.run([batch(head, *size) for size in sizes], 0, 1.0)
        return {name: before[name] - weight for name, weight in parts.weights(updater).items()}

    whole, split = change([(0, 5)]), change([(0, 2), (2, 4), (4, 5)])
    for name, gradient in whole.items():
        torch.testing.assert_close(split[name], gradient, rtol=1e-9, atol=1e-11, msg=name)
