"""Where a student and its teacher look in one text, and how far apart that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import PreTrainedModel

from cktk.architectures.families.family import Family, family_of
from cktk.architectures.loading import load_model, load_tokenizer
from cktk.architectures.states.layer_map import layer_pairs
from cktk.criteria.attention import attention_pairs
from cktk.criteria.score_match import Products, Visible, divergence
from cktk.errors import ConfigError
from cktk.protocols import AttentionKind, AttentionPair, AttentionStates, Batch, Side, StateRequest
from cktk.report.configs import AttentionConfig
from cktk.report.runs import Run
from cktk.tasks.batches import shift_right

#: More tokens than this cannot be read in a figure.
_MOST_TOKENS = 60

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Map:
    """The attention (queries, keys) of one head, or the mean over heads, in layer ``layer`` of a model.

    ``kl`` is KL(teacher || student) of the map in nats, the mean over its rows, and ``layers`` that of every matched
    layer, the mean over rows and heads as in training; both are empty for the teacher itself.
    """

    name: str
    layer: int
    weights: Floats
    kl: float | None = None
    layers: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Maps:
    """The teacher's map first, then the students'; the tokens that look, and those that are looked at."""

    kind: AttentionKind
    head: int | None
    queries: list[str]
    keys: list[str]
    maps: list[Map]


@dataclass(frozen=True)
class _Model:
    name: str
    family: Family
    model: PreTrainedModel

    def attention(self, batch: Batch, layers: Sequence[int], kind: AttentionKind) -> dict[int, AttentionStates]:
        request = StateRequest(attention={kind: tuple(sorted(set(layers)))})
        with torch.no_grad():
            found = self.family.adapter(self.model)(batch, request).attention
        return {layer: states for (_, layer), states in found.items()}


def attention_maps(runs: Sequence[tuple[str, str, Run]], config: AttentionConfig) -> Maps:
    """The maps of the students ``runs``, each a name, what the command line calls it, and the run.

    Runs without a teacher are left out. Raises `ConfigError` where the students have no teacher, or not the same, for a
    layer or head that is not there or is matched with nothing, and for text that is too long to be shown.
    """
    teacher_path = config.teacher or _teacher_of([run for _, _, run in runs])
    students = [each for each in runs if config.teacher or each[2].config.get("teacher")]
    teacher = _open("the teacher", teacher_path, config.allow_bin_weights)
    tokenizer, batch = None, None
    shown: list[Map] = []
    for name, given, run in students:
        student = _open(name, given, False)
        if batch is None:
            tokenizer = load_tokenizer(given)
            batch = _batch(tokenizer, student, config)
        if student.model.config.vocab_size != teacher.model.config.vocab_size:
            raise ConfigError(f"{given} and the teacher {teacher_path} have different vocabularies; give its teacher")
        pairs = _pairs(student, teacher, run, config.attention_kind)
        layer = max(pair.student for pair in pairs) if config.layer is None else config.layer
        pair = _pair(pairs, layer, given)
        theirs = teacher.attention(batch, [each.teacher for each in pairs], config.attention_kind)
        ours = student.attention(batch, [each.student for each in pairs], config.attention_kind)
        _check_heads(ours[pair.student], theirs[pair.teacher], config.head, name)
        target = _weights(theirs[pair.teacher], config.head, "the teacher")
        own = _weights(ours[pair.student], config.head, name)
        if not shown:
            shown.append(Map("teacher", pair.teacher, target))
        elif shown[0].layer != pair.teacher:
            raise ConfigError(
                f"layer {layer} of {given} is matched with layer {pair.teacher} of the teacher, that of the run before "
                f"with {shown[0].layer}; draw them one at a time"
            )
        layers = {str(each): _divergence(ours[each.student], theirs[each.teacher]) for each in pairs}
        shown.append(Map(name, layer, own, _kl(target, own), layers))
    assert batch is not None
    source = _tokens(tokenizer, batch.inputs["input_ids"])
    target_tokens = _tokens(tokenizer, batch.inputs.get("decoder_input_ids"))
    queries = source if config.attention_kind == "encoder" else target_tokens
    keys = target_tokens if config.attention_kind == "decoder" else source
    return Maps(config.attention_kind, config.head, queries, keys, shown)


def _teacher_of(runs: Sequence[Run]) -> str:
    found = {run.locate(str(run.config["teacher"])) for run in runs if run.config.get("teacher")}
    if not found:
        raise ConfigError("--attention-text: the runs have no teacher in memory; give one with --teacher PATH")
    if len(found) > 1:
        raise ConfigError(
            f"--attention-text: the runs have different teachers ({', '.join(sorted(found))}); choose one with "
            "--teacher, or draw them one at a time"
        )
    return next(iter(found))


def _open(name: str, path: str, allow_bin_weights: bool) -> _Model:
    model = load_model(path, allow_bin_weights=allow_bin_weights)
    return _Model(name, family_of(model.config.model_type, path), model)


def _batch(tokenizer: Any, student: _Model, config: AttentionConfig) -> Batch:
    """The text as the models see it, of one sentence."""
    assert config.attention_text is not None
    sides = student.family.shape(student.model.config).sides
    pair = config.attention_pair
    if config.attention_kind != "encoder" and "decoder" not in sides:
        kind = student.model.config.model_type
        raise ConfigError(f"--attention-kind {config.attention_kind}: a {kind} has no decoder; leave it out")
    seconds = {"text_pair": pair} if "decoder" not in sides and pair is not None else {}
    inputs = {name: torch.tensor([ids]) for name, ids in tokenizer(config.attention_text, **seconds).items()}
    labels = torch.zeros(1, 1, dtype=torch.long)
    if "decoder" in sides and pair is not None:
        labels = torch.tensor([tokenizer(text_target=pair)["input_ids"]])
        start = student.family.decoder_start(student.model.config)
        shifted = shift_right(labels.numpy(), np.ones(labels.shape, bool), start)
        inputs["decoder_input_ids"] = torch.from_numpy(shifted)
    longest = max(inputs["input_ids"].shape[1], labels.shape[1])
    if longest > _MOST_TOKENS:
        raise ConfigError(
            f"--attention-text: has {longest} tokens, which nobody could read; give {_MOST_TOKENS} at most"
        )
    return Batch(inputs, labels, [0])


def _pairs(student: _Model, teacher: _Model, run: Run, kind: AttentionKind) -> list[AttentionPair]:
    """The pairs of layers that the run matches, or would match."""
    own, theirs = (each.family.shape(each.model.config) for each in (student, teacher))
    side: Side = "encoder" if kind == "encoder" else "decoder"
    if side not in own.sides or side not in theirs.sides:
        raise ConfigError(f"--attention-kind {kind}: {student.name} and its teacher do not both have a {side}")
    pairs = layer_pairs(own, theirs, str(run.config.get("layer_map") or "uniform"), embeddings=False)
    found = [pair for pair in attention_pairs(pairs) if pair.kind == kind]
    if not found:
        raise ConfigError(f"--attention-kind {kind}: the --layer-map of {run.path} has no layers there; draw another")
    return found


def _pair(pairs: Sequence[AttentionPair], layer: int, given: str) -> AttentionPair:
    for pair in pairs:
        if pair.student == layer:
            return pair
    known = ", ".join(str(number) for number in dict.fromkeys(pair.student for pair in pairs))
    raise ConfigError(
        f"--layer {layer}: {given} has no such layer that is matched with one of its teacher; give {known}"
    )


def _check_heads(own: AttentionStates, target: AttentionStates, head: int | None, name: str) -> None:
    if head is not None and own.heads != target.heads:
        raise ConfigError(
            f"--head {head}: {name} has {own.heads} heads and its teacher {target.heads}, so none belong together; "
            "leave --head out to see the means over heads"
        )


def _products(states: AttentionStates) -> Products:
    return Products(states.query, states.key, states.heads, states.scale, states.bias)


def _visible(states: AttentionStates) -> Visible:
    return Visible(states.query_rows, states.key_rows, states.causal)


def _weights(states: AttentionStates, head: int | None, name: str) -> Floats:
    """Attention (queries, keys) of one head, from 1, or the mean over heads."""
    if head is not None and head > states.heads:
        raise ConfigError(f"--head {head}: {name} has {states.heads}; give one from 1 to {states.heads}")
    scores = _products(states).scores(slice(0, 1), torch.float64)[0]
    seen = _visible(states).mask(slice(0, 1))[0]
    weights: Tensor = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    chosen = weights.mean(0) if head is None else weights[head - 1]
    return np.asarray(chosen.numpy())


def _kl(target: Floats, own: Floats) -> float:
    """KL(target || own) in nats, the mean over rows."""
    seen = target > 0
    return float((target[seen] * (np.log(target[seen]) - np.log(own[seen]))).sum() / len(target))


def _divergence(own: AttentionStates, target: AttentionStates) -> float:
    """The training loss of a layer: KL(teacher || student), the mean over rows and heads."""
    return float(divergence(_products(own), _products(target), _visible(own))) / own.query.shape[1]


def _tokens(tokenizer: Any, ids: Tensor | None) -> list[str]:
    return [] if ids is None else [str(token) for token in tokenizer.convert_ids_to_tokens(ids[0].tolist())]
