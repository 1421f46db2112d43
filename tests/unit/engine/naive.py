"""The whole loss of an update over one full batch, by autograd, written from the formulas and through transformers.

Nothing here is fast, and nothing of cktk's losses is used: rows are picked by masks, matrices are held in full.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from cktk.protocols import IGNORED, Batch

#: Student and teacher layers of the models of ``parts``: ceil(j * 3 / 2).
LAYERS = ((1, 2), (2, 3))
SIDES = ("encoder", "decoder")
#: Attention blocks by kind: where they are, their name, and the sides of their queries and keys.
BLOCKS = {
    "encoder": ("encoder", "self_attn", "encoder", "encoder"),
    "decoder": ("decoder", "self_attn", "decoder", "decoder"),
    "cross": ("decoder", "encoder_attn", "decoder", "encoder"),
}


def full_loss(
    criterion: str,
    config: Any,
    student: Any,
    teacher: Any,
    projectors: Any,
    whole: Batch,
    sizes: Sequence[int],
) -> Tensor:
    """Each term divided by its own count over ``whole``; ``sizes`` are the sentences of each micro-batch."""
    rows = {"encoder": whole.inputs["attention_mask"].bool(), "decoder": whole.labels != IGNORED}
    (out, projections), (target, targets) = (_run(model, whole) for model in (student, teacher))
    n_target = rows["decoder"].sum()
    loss = _head(config, out.logits[rows["decoder"]], target.logits[rows["decoder"]], whole.labels[rows["decoder"]])
    loss = loss / n_target
    if criterion not in ("kl_kd", "attention_kd"):
        pairs = ((0, 0), *LAYERS) if config.match_embeddings else LAYERS
        for side in SIDES:
            lengths = rows[side].sum(1).split(list(sizes))
            parts = [int(piece.sum()) for piece in lengths]
            for i, j in pairs:
                s, t = (
                    getattr(x, f"{side}_hidden_states")[k][rows[side]].split(parts) for x, k in ((out, i), (target, j))
                )
                project = projectors(side, i, j) if criterion == "linear_kd" else None
                loss = loss + config.hidden_weight * _hidden(criterion, config, s, t, project)
    for match in getattr(config, "attention_match", ()):
        for kind in BLOCKS:
            for i, j in LAYERS:
                value = _attention(match, kind, projections[kind, i], targets[kind, j], rows)
                loss = loss + config.attention_weight * value
    return loss


def _run(model: Any, batch: Batch) -> tuple[Any, dict[tuple[str, int], dict[str, Tensor]]]:
    """transformers' own forward with all hidden states, and what each attention block projects."""
    kept: dict[tuple[str, int], dict[str, Tensor]] = {}
    hooks = []
    for kind, (stack, name, _, _) in BLOCKS.items():
        for number, layer in enumerate(getattr(model.model, stack).layers, start=1):
            block, found = getattr(layer, name), kept.setdefault((kind, number), {})
            for letter in "qkv":
                projection = getattr(block, f"{letter}_proj")
                hooks.append(projection.register_forward_hook(_keeper(found, letter)))
    out = model(**batch.inputs, output_hidden_states=True)
    for hook in hooks:
        hook.remove()
    return out, kept


def _keeper(found: dict[str, Tensor], letter: str) -> Any:
    def keep(_module: Any, _inputs: Any, output: Tensor) -> None:
        found[letter] = output

    return keep


def _head(config: Any, logits: Tensor, target: Tensor, labels: Tensor) -> Tensor:
    """Sums over tokens of weighted cross entropy and divergence."""
    ce = F.cross_entropy(logits, labels, reduction="sum", label_smoothing=config.label_smoothing)
    tau = config.temperature
    log_q, log_p = (logits / tau).log_softmax(-1), (target.detach() / tau).log_softmax(-1)
    if config.divergence == "reverse_kl":
        log_q, log_p = log_p, log_q
    kl = tau**2 * (log_p.exp() * (log_p - log_q)).sum()
    return config.ce_weight * ce + config.kl_weight * kl


def _hidden(criterion: str, config: Any, s: Sequence[Tensor], t: Sequence[Tensor], project: Any) -> Tensor:
    """The loss of one layer pair, from its rows micro-batch by micro-batch; ``t`` is no variable."""
    t = [piece.detach() for piece in t]
    together = torch.cat(list(s)), torch.cat(t)
    if criterion == "cka_kd":
        if config.cka_scope == "update":
            return _cka(config.cka_form, *together)
        if config.cka_scope == "summed":
            return _summed_cka(s, t)
        return torch.stack([_cka(config.cka_form, *pair) for pair in zip(s, t, strict=True)]).mean()
    if criterion == "procrustes_kd":
        if config.procrustes_scope == "update":
            return _procrustes(*together)
        return torch.stack([_procrustes(*pair) for pair in zip(s, t, strict=True)]).mean()
    if criterion == "gram_kd":
        return sum(_gram(*pair) for pair in zip(s, t, strict=True)) / len(together[0])
    if criterion == "linear_kd":
        weight, bias = project
        return (together[0] @ weight.T + bias - together[1]).square().mean()
    assert criterion == "cosine_kd"
    return (1 - F.cosine_similarity(*together)).mean()


def _products(s: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    s, t = s - s.mean(0), t - t.mean(0)
    return t.T @ s, s.T @ s, t.T @ t


def _alignment(a: Tensor, m: Tensor, q: Tensor) -> Tensor:
    return a.norm() / (m.norm() * q.norm()).sqrt() if m.norm() * q.norm() > 0 else m.new_zeros(())


def _cka(form: str, s: Tensor, t: Tensor) -> Tensor:
    if form == "debiased":
        own, target = s @ s.T, t @ t.T
        return 1 - _hsic(own, target) / (_hsic(own, own) * _hsic(target, target)).sqrt()
    k = _alignment(*_products(s, t))
    return 1 - (k**2 if form == "squared" else k)


def _hsic(first: Tensor, second: Tensor) -> Tensor:
    """The unbiased estimator of Song et al. (2012): kernels without their diagonals."""
    n = len(first)
    x, y = (kernel - kernel.diag().diag() for kernel in (first, second))
    found = (x * y).sum() + x.sum() * y.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (x.sum(0) @ y.sum(0))
    return found / (n * (n - 3))


def _summed_cka(s: Sequence[Tensor], t: Sequence[Tensor]) -> Tensor:
    """Covariances about each micro-batch's own mean, added up; one row has none."""
    found = [
        [x / (len(own) - 1) for x in _products(own, target)] for own, target in zip(s, t, strict=True) if len(own) > 1
    ]
    return 1 - _alignment(*(torch.stack(matrices).sum(0) for matrices in zip(*found, strict=True)))


def _procrustes(s: Tensor, t: Tensor) -> Tensor:
    """1 - tr(R'A) / (|S| |T|) with the rotation R that makes the trace largest: a constant for the gradient."""
    a, m, q = _products(s, t)
    if a.norm() == 0:
        return a.new_ones(())
    u, singular, v = torch.linalg.svd(a.detach(), full_matrices=False)
    kept = singular > 1e-9 * singular[0]
    return 1 - (u[:, kept] @ v[kept] * a).sum() / (m.trace() * q.trace()).sqrt()


def _gram(s: Tensor, t: Tensor) -> Tensor:
    """The sum over rows of the squared distance of row-normalised similarity matrices."""
    return (F.normalize(s @ s.T) - F.normalize(t @ t.T)).square().sum()


def _attention(
    match: str, kind: str, own: dict[str, Tensor], target: dict[str, Tensor], rows: dict[str, Tensor], heads: int = 2
) -> Tensor:
    """The mean over query rows and heads of one block; both models have as many heads."""
    _, _, query_side, key_side = BLOCKS[kind]
    if match not in ("scores", "probabilities"):
        query_side = key_side = key_side if match in ("keys", "values") else query_side
    values = []
    for sentence in range(len(rows["encoder"])):
        for head in range(heads):
            for row, seen in _rows(kind, match, rows[query_side][sentence], rows[key_side][sentence]):
                values.append(_row(match, *(_one(x, sentence, head, heads) for x in (own, target)), row, seen))
    # Rows of a block are those of one side: as many as its tokens.
    assert len(values) == heads * rows[query_side].sum()
    return torch.stack(values).mean()


def _rows(kind: str, match: str, queries: Tensor, keys: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Query rows, and the key rows that each one sees."""
    for row in queries.nonzero().flatten().tolist():
        if kind == "decoder" and match in ("scores", "probabilities"):
            yield row, torch.arange(row + 1)
        else:
            yield row, keys.nonzero().flatten()


def _one(block: dict[str, Tensor], sentence: int, head: int, heads: int) -> dict[str, Tensor]:
    return {letter: x[sentence].chunk(heads, -1)[head] for letter, x in block.items()}


def _row(match: str, own: dict[str, Tensor], target: dict[str, Tensor], row: int, seen: Tensor) -> Tensor:
    letters = {"scores": "qk", "probabilities": "qk", "queries": "qq", "keys": "kk", "values": "vv"}[match]
    mine, theirs = (x[letters[0]][row] @ x[letters[1]][seen].T / x[letters[0]].shape[-1] ** 0.5 for x in (own, target))
    if match == "scores":
        return (mine - theirs.detach()).square().mean()
    log_q, log_p = mine.log_softmax(-1), theirs.detach().log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum()
