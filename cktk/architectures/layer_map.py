"""Which teacher layer a student layer is matched with, or takes its weights from. Integer arithmetic throughout."""

from __future__ import annotations

from collections.abc import Iterable

from cktk.protocols import LayerPair, ModelShape, Side

SIDES: tuple[Side, Side] = ("encoder", "decoder")


def uniform_layers(student_layers: int, teacher_layers: int) -> list[int]:
    """For student layers 1, 2, ... the teacher layers ceil(j L_T / L_S), counted from 1: the last ones are paired.

    A student deeper than its teacher shares teacher layers. Used for matching states.
    """
    return [-(-layer * teacher_layers // student_layers) for layer in range(1, student_layers + 1)]


def truncated_layers(student_layers: int, teacher_layers: int) -> list[int]:
    """For student layers 0, 1, ... the teacher layers floor(i L_T / L_S), counted from 0. Used by ``truncate``."""
    return [layer * teacher_layers // student_layers for layer in range(student_layers)]


def spread_layers(student_layers: int, teacher_layers: int) -> list[int]:
    """For student layers 0, 1, ... evenly spread teacher layers, counted from 0, with the first and the last kept.

    6 of 12 gives 0 2 4 7 9 11, DistilBERT's and distilBART's choice; a deeper student repeats layers. Used by ``copy``
    and ``checkpoint``. A single layer is the first one.
    """
    if student_layers == 1:
        return [0]
    steps = student_layers - 1
    return [(2 * layer * (teacher_layers - 1) + steps) // (2 * steps) for layer in range(student_layers)]


def layer_pairs(student: ModelShape, teacher: ModelShape, *, embeddings: bool = True) -> tuple[LayerPair, ...]:
    """The uniform pairs of the sides that the models have, encoder first, in ``hidden_states`` indices.

    With ``embeddings`` the outputs of the embeddings (index 0) are a further pair on each side.
    """
    pairs = []
    for side in SIDES:
        if side not in student.sides:
            continue
        layers = uniform_layers(student.sides[side].layers, teacher.sides[side].layers)
        pairs += [LayerPair(side, 0, 0)] if embeddings else []
        pairs += [LayerPair(side, own, teachers) for own, teachers in enumerate(layers, start=1)]
    return tuple(pairs)


def layer_table(pairs: Iterable[LayerPair]) -> str:
    """The pairs as aligned text, two lines a side; state 0 is called ``emb``."""
    lines = []
    known = tuple(pairs)
    for side in SIDES:
        matched = [pair for pair in known if pair.side == side]
        for model in ("student", "teacher"):
            states = [getattr(pair, model) for pair in matched]
            cells = [f"{state or 'emb':>4}" for state in states]
            lines += [f"{side:<8} {model:<8}" + "".join(cells)] if cells else []
    return "\n".join(lines)
