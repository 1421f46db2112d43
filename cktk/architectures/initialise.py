"""Starting weights of a student: random, or taken from its teacher or from an earlier student.

Sources: ``truncate`` from the scripts released with "Improving Language Model Distillation through Hidden State
Matching" (ICLR 2025); ``copy`` from distilBART (Shleifer and Rush, 2020) and DistilBERT (Sanh et al., 2019).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import torch
from transformers import PreTrainedModel

from cktk.architectures.family import family_of
from cktk.architectures.layer_map import spread_layers, truncated_layers
from cktk.errors import ConfigError
from cktk.protocols import ModelShape, Side


def initialise(
    student: PreTrainedModel,
    init: str,
    *,
    teacher: PreTrainedModel | None = None,
    checkpoint: PreTrainedModel | None = None,
) -> None:
    """Give ``student`` its starting weights in place; everything is checked before the first tensor changes.

    - ``random``: as built by transformers (drawn from torch's global generator when the student was made).
    - ``truncate``: student layer i is the leading block ``W[:d_out, :d_in]`` of teacher layer floor(i L_T / L_S); all
      other tensors are leading blocks too. Embeddings are not rescaled: where the model multiplies them by
      sqrt(width) (mBART), the student uses its own width.
    - ``copy``: evenly spread whole layers of a teacher of the same width, feed-forward width and heads.
    - ``checkpoint``: the same from an earlier student, whose layers are dropped or repeated.

    What a source with another head does not have (a classifier, a pooler) stays as built.

    Raises `ConfigError` naming the flag when the source is absent or its sizes do not fit.
    """
    if init == "random":
        return
    if init == "truncate":
        source = _required(teacher, "--init truncate takes weights from a teacher: give --teacher")
        _check_fixed(student, source, "--init truncate", "the teacher")
        _check_not_larger(student, source)
        _fill(student, source, truncated_layers)
    elif init == "copy":
        source = _required(teacher, "--init copy takes layers from a teacher: give --teacher")
        _check_equal(student, source, "--init copy", "the teacher", ", or use --init truncate")
        _fill(student, source, spread_layers)
    elif init == "checkpoint":
        source = _required(checkpoint, "--init checkpoint takes layers from an earlier student: give --init-checkpoint")
        _check_equal(student, source, "--init checkpoint", "the checkpoint", "")
        _fill(student, source, spread_layers)
    else:
        raise ConfigError(f"--init {init}: unknown name; known: random, truncate, copy, checkpoint")


def _required(model: PreTrainedModel | None, message: str) -> PreTrainedModel:
    if model is None:
        raise ConfigError(message)
    return model


def _shape(model: PreTrainedModel) -> ModelShape:
    return family_of(model.config.model_type, "the model").shape(model.config)


def _sizes(student: ModelShape, source: ModelShape) -> Iterator[tuple[str, str, int, int]]:
    """Name, flag, student's and source's value of each size that its flag can set; the heads last."""
    yield "width", "--width", student.width, source.width
    for side, ours in student.sides.items():
        yield f"{side} ffn_width", "--ffn-width", ours.ffn_width, source.sides[side].ffn_width
    for side in student.sides:
        yield f"{side} attention width", "--head-width", student.attention_width(side), source.attention_width(side)
    for side, ours in student.sides.items():
        yield f"{side} heads", "--heads", ours.heads, source.sides[side].heads


def _check_fixed(student: PreTrainedModel, source: PreTrainedModel, init: str, name: str) -> None:
    def facts(model: PreTrainedModel) -> Iterator[tuple[str, object]]:
        yield "model_type", model.config.model_type
        yield "vocab_size", model.config.vocab_size
        yield "number of positions", _shape(model).positions
        if type(student) is type(source):
            yield "number of labels", getattr(model, "num_labels", None)
        yield from family_of(model.config.model_type, name).must_agree(model.config).items()

    for (fact, ours), (_, theirs) in zip(facts(student), facts(source), strict=True):
        if ours != theirs:
            raise ConfigError(f"{init}: {fact} is {ours} in the student but {theirs} in {name}; they have to be equal")


def _check_equal(student: PreTrainedModel, source: PreTrainedModel, init: str, name: str, otherwise: str) -> None:
    _check_fixed(student, source, init, name)
    for size, flag, ours, theirs in _sizes(_shape(student), _shape(source)):
        if ours != theirs:
            raise ConfigError(
                f"{init} takes whole layers, but {size} is {ours} in the student and {theirs} in {name}: "
                f"set {flag} {theirs}{otherwise}"
            )


def _check_not_larger(student: PreTrainedModel, teacher: PreTrainedModel) -> None:
    any_heads = not family_of(student.config.model_type, "the student").heads_have_tensors
    for size, flag, ours, theirs in _sizes(_shape(student), _shape(teacher)):
        if ours > theirs and not (flag == "--heads" and any_heads):
            raise ConfigError(
                f"--init truncate cuts the teacher's tensors, but {size} is {ours} in the student and only {theirs} "
                f"in the teacher: set {flag} {theirs} or less, or use --init random"
            )


@torch.no_grad()
def _fill(student: PreTrainedModel, source: PreTrainedModel, layer_map: Callable[[int, int], list[int]]) -> None:
    """Fill every tensor of ``student`` with the leading block of its counterpart, layers going by ``layer_map``.

    Parameters are written in place and each once, so a head tied to the embedding stays tied.
    """
    family = family_of(student.config.model_type, "the student")
    ours, theirs = _shape(student), _shape(source)
    layers: dict[Side, list[int]] = {
        side: layer_map(shape.layers, theirs.sides[side].layers) for side, shape in ours.sides.items()
    }

    def counterpart(name: str) -> str:
        for side, taken in layers.items():
            prefix = family.layer_prefix(side)
            if name.startswith(prefix) and not family.serves_stack(name):
                number, _, rest = name.removeprefix(prefix).partition(".")
                return f"{prefix}{taken[int(number)]}.{rest}"
        return name

    tensors = {_inner_name(source, name): tensor for name, tensor in source.state_dict().items()}
    saved = student.state_dict().keys()
    buffers = ((name, buffer) for name, buffer in student.named_buffers() if name in saved)
    for name, target in itertools.chain(student.named_parameters(), buffers):
        origin = counterpart(_inner_name(student, name))
        if origin not in tensors and type(student) is not type(source):
            continue
        target.copy_(tensors[origin][tuple(slice(size) for size in target.shape)])


def _inner_name(model: PreTrainedModel, name: str) -> str:
    """The name of a tensor of ``model`` without what a head puts in front of those of its ``base_model``."""
    return name if model.base_model is model else name.removeprefix(f"{model.base_model_prefix}.")
