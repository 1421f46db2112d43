"""What an initialisation may take from another model: do sizes fit, and which tensor stands for which."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from transformers import PreTrainedModel

from cktk.architectures.families.family import family_of
from cktk.errors import ConfigError
from cktk.protocols import ModelShape, Side

#: Student's and source's number of layers -> for each student layer one of the source, both counted from 0.
LayerMap = Callable[[int, int], list[int]]


def check_fixed(student: PreTrainedModel, source: PreTrainedModel, init: str, name: str) -> None:
    """Raise `ConfigError` unless ``student`` and the ``source`` that is called ``name`` are of one kind."""

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


def check_equal(student: PreTrainedModel, source: PreTrainedModel, init: str, name: str, otherwise: str) -> None:
    """`check_fixed`, and raise unless whole layers of ``source`` fit; ``otherwise`` ends the advice."""
    check_fixed(student, source, init, name)
    for size, flag, ours, theirs in _sizes(_shape(student), _shape(source)):
        if ours != theirs:
            raise ConfigError(
                f"{init} takes whole layers, but {size} is {ours} in the student and {theirs} in {name}: "
                f"set {flag} {theirs}{otherwise}"
            )


def check_not_larger(student: PreTrainedModel, teacher: PreTrainedModel, init: str) -> None:
    """Raise `ConfigError` unless the student's tensors can be cut from those of the teacher."""
    any_heads = not family_of(student.config.model_type, "the student").heads_have_tensors
    for size, flag, ours, theirs in _sizes(_shape(student), _shape(teacher)):
        if ours > theirs and not (flag == "--heads" and any_heads):
            raise ConfigError(
                f"{init} cuts the teacher's tensors, but {size} is {ours} in the student and only {theirs} "
                f"in the teacher: set {flag} {theirs} or less, or use --init random"
            )


def origins(student: PreTrainedModel, source: PreTrainedModel, layer_map: LayerMap) -> Callable[[str], str]:
    """Which tensor or module of ``source`` stands for one of ``student``, by its `inner_name`."""
    family = family_of(student.config.model_type, "the student")
    ours, theirs = _shape(student), _shape(source)
    layers: dict[Side, list[int]] = {
        side: layer_map(shape.layers, theirs.sides[side].layers) for side, shape in ours.sides.items()
    }

    def origin(name: str) -> str:
        for side, taken in layers.items():
            prefix = family.layer_prefix(side)
            if name.startswith(prefix) and not family.serves_stack(name):
                number, _, rest = name.removeprefix(prefix).partition(".")
                return f"{prefix}{taken[int(number)]}.{rest}"
        return name

    return origin


def inner_name(model: PreTrainedModel, name: str) -> str:
    """``name`` in ``model`` without what a head puts in front of the names in its ``base_model``."""
    return name if model.base_model is model else name.removeprefix(f"{model.base_model_prefix}.")


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
