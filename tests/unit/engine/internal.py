"""Small models for internal distillation, and its losses written from the paper's formulas through transformers."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from cktk.engine.update import Updater
from cktk.protocols import IGNORED, Batch
from tests.unit.architectures.encoders import make_encoder
from tests.unit.engine import parts

#: Student and teacher layers of the models of ``parts``: ceil(j * 3 / 2).
LAYERS = ((1, 2), (2, 3))
LENGTHS = (7, 3, 5, 6, 2)


def bert(seed: int, width: int, layers: int, dropout: float = 0.0, student_heads: int = 2) -> Any:
    """A classifier; ``parts`` gives the student seed 2."""
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "hidden_dropout_prob": dropout}
    sizes |= {"attention_probs_dropout_prob": dropout, "num_attention_heads": student_heads if seed == 2 else 2}
    return make_encoder("bert", "classification", seed, **sizes).double()


def bert_batch(start: int, stop: int, pad_to: int = 0) -> Batch:
    """Sentences ``start`` to ``stop``, the same whatever batch they stand in; one has no label."""
    rows = [torch.randint(3, 41, (n,), generator=torch.Generator().manual_seed(n)) for n in LENGTHS[start:stop]]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=1)
    ids = F.pad(ids, (0, max(0, pad_to - ids.shape[1])), value=1)
    labels = torch.tensor([2, IGNORED, 0, 1, 1])[start:stop, None]
    return Batch({"input_ids": ids, "attention_mask": (ids != 1).long()}, labels, list(range(start, stop)))


def bart_batch(start: int, stop: int, pad_to: int = 0) -> Batch:
    """The same for encoder-decoders; the first target position of one sentence is not scored."""
    lengths = [(7, 4), (3, 6), (5, 1), (6, 3), (2, 5)][start:stop]
    batch = parts.batch(lengths, start, pad_to)
    for row, number in enumerate(range(start, stop)):
        if number == 1:
            batch.labels[row, 0] = IGNORED
    return batch


def at_stage(updater: Updater, stage: int) -> Updater:
    """``updater`` in the stage of that number, from 0."""
    criterion: Any = updater.step.criterion
    criterion.load_stage_state({**criterion.stage_state(), "stage": stage})
    return updater


def naive_loss(updater: Updater, whole: Batch, pairs: list[tuple[str, int]], head: bool, **weights: float) -> Tensor:
    """The loss of one stage over one full batch: ``pairs`` are (side, student layer)."""
    student, teacher = updater.step.student, updater.teacher.model
    rows = {"encoder": whole.inputs["attention_mask"].bool(), "decoder": whole.labels != IGNORED}
    out, target = run(student, whole), run(teacher, whole)
    loss = torch.zeros((), dtype=torch.float64)
    if head:
        scored = rows["decoder"] if out.logits.ndim == 3 else rows["decoder"][:, 0]
        labels = whole.labels[rows["decoder"]]
        heat = weights.get("temperature", 1.0)
        q, log_p = (found.logits[scored] / heat for found in (target, out))
        kl = (q.softmax(-1) * (q.log_softmax(-1) - log_p.log_softmax(-1))).sum(-1).mean() * heat**2
        loss = loss + weights.get("ce", 1.0) * F.cross_entropy(out.logits[scored], labels) + kl
    for side, own in pairs:
        theirs = dict(LAYERS)[own]
        s, t = (first_rows(found, side, layer, rows[side]) for found, layer in ((out, own), (target, theirs)))
        if s.shape[1] == t.shape[1]:
            cosine = [1 - (a @ b) / (a.norm() * b.norm()) for a, b in zip(s, t, strict=True)]
            loss = loss + weights.get("cls", 1.0) * sum(cosine) / len(whole.ids)
        else:
            s, t = s - s.mean(0), t - t.mean(0)
            cka = (t.T @ s).norm() / ((s.T @ s).norm() * (t.T @ t).norm()).sqrt()
            loss = loss + weights.get("cls", 1.0) * (1 - cka)
        for kind in ("encoder",) if side == "encoder" else ("decoder", "cross"):
            a, b = attention(out, kind, own), attention(target, kind, theirs)
            keys = rows["encoder"] if kind != "decoder" else torch.ones_like(rows["decoder"])
            kl = rowwise_kl(a, b, rows[side], keys)
            loss = loss + weights.get("attention", 1.0) * kl / rows[side].sum()
    return loss


def run(model: Any, batch: Batch) -> Any:
    """transformers' own output with probabilities, through a copy of the code that shares the weights."""
    eager = copy.deepcopy(model, {id(p): p for p in model.parameters()})
    eager.set_attn_implementation("eager")
    return eager(**batch.inputs, output_hidden_states=True, output_attentions=True)


def first_rows(out: Any, side: str, layer: int, rows: Tensor) -> Tensor:
    states = out.hidden_states if "hidden_states" in out else out[f"{side}_hidden_states"]
    places = [(number, int(row.nonzero()[0])) for number, row in enumerate(rows)]
    return torch.stack([states[layer][sentence, position] for sentence, position in places])


def attention(out: Any, kind: str, layer: int) -> Tensor:
    name = {"encoder": "encoder_attentions", "decoder": "decoder_attentions", "cross": "cross_attentions"}[kind]
    return (out.attentions if "attentions" in out else out[name])[layer - 1]


def rowwise_kl(student: Tensor, teacher: Tensor, rows: Tensor, keys: Tensor) -> Tensor:
    """Sum over rows of the mean over heads of sum_j A_T log(A_T / A_S); means over heads first where these differ."""
    if student.shape[1] != teacher.shape[1]:
        student, teacher = student.mean(1, keepdim=True), teacher.mean(1, keepdim=True)
    total = torch.zeros((), dtype=torch.float64)
    for sentence, row in rows.nonzero().tolist():
        for head in range(student.shape[1]):
            a, b = student[sentence, head, row], teacher[sentence, head, row]
            seen = keys[sentence] & (b > 0)
            total = total + (b[seen] * (b[seen] / a[seen]).log()).sum() / student.shape[1]
    return total
