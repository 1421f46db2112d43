"""Which students fit a budget, and what they cost. Pure functions of sizes; `cktk.assemble.measure` runs models."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from cktk.architectures.sizing import ModelSize
from cktk.errors import ConfigError
from cktk.protocols import ModelShape, Side

#: Bytes of a number in fp32, in which students are trained.
_FLOAT = 4
#: Widths to choose from are at least this many where the teacher's heads are few.
_WIDTHS = 8
_SUFFIXES = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "G": 10**9}

#: The size of a student by width and layers.
SizeOf = Callable[[int, Mapping[Side, int]], ModelSize]
#: Whether a student fits the budget; students of one depth that are narrower than one that fits have to fit, too.
Fits = Callable[[ModelSize], bool]


@dataclass(frozen=True)
class Cost:
    """What a student costs, next to its parameters.

    ``flops`` are those of a forward pass per token, ``weight_bytes`` its weights in fp32, ``training_bytes`` an
    estimate of the memory of a training step, the teacher included.
    """

    compression: float
    flops: int
    weight_bytes: int
    training_bytes: int


def parse_count(text: str, flag: str) -> int:
    """``80M``, ``1.5B``, ``80_000_000`` or ``8e7`` as a number; raises `ConfigError` naming ``flag``."""
    found = re.fullmatch(r"([0-9][0-9_]*\.?[0-9]*(?:e[0-9]+)?)([KMGB]?)", text.strip(), re.IGNORECASE)
    if found is None:
        raise ConfigError(f"{flag} {text}: not a number such as 80M, 1.5B or 80000000")
    count = float(found[1]) * _SUFFIXES[found[2].upper()]
    if not math.isfinite(count):
        raise ConfigError(f"{flag} {text}: too large a number")
    return round(count)


def depths(teacher: ModelShape) -> list[dict[Side, int]]:
    """Numbers of layers a side, deepest first: as the teacher's, and less in the same proportion (rounded up)."""
    layers = {side: sizes.layers for side, sizes in teacher.sides.items()}
    most = max(layers.values())
    return [{side: -(-own * step // most) for side, own in layers.items()} for step in range(most, 0, -1)]


def widths(teacher: ModelShape) -> list[int]:
    """Widths up to the teacher's, ascending: multiples of the width of its heads, or of a half of that, a quarter, ...

    The step is halved until there are enough of them.
    """
    step = max(1, teacher.attention_width("encoder") // teacher.sides["encoder"].heads)
    while teacher.width // step < _WIDTHS and step % 2 == 0:
        step //= 2
    return [*range(step, teacher.width, step), teacher.width]


def widest(choices: list[int], fits: Callable[[int], bool]) -> int | None:
    """The largest of the ascending ``choices`` that ``fits``, by bisection; None where the smallest does not."""
    if not fits(choices[0]):
        return None
    low, high = 1, len(choices)
    while low < high:
        middle = (low + high) // 2
        if fits(choices[middle]):
            low = middle + 1
        else:
            high = middle
    return choices[low - 1]


def candidates(teacher: ModelSize, size_of: SizeOf, fits: Fits) -> Iterator[ModelSize]:
    """For each depth the widest student that ``fits`` and is smaller than the teacher, deep and narrow ones first.

    Hidden state matching keeps more of a teacher's quality in deep narrow students than in shallow wide ones of the
    same size (HSM, ICLR 2025).
    """
    choices = widths(teacher.shape)
    for layers in depths(teacher.shape):

        def small_enough(width: int, layers: Mapping[Side, int] = layers) -> bool:
            size = size_of(width, layers)
            return size.parameters.total < teacher.parameters.total and fits(size)

        width = widest(choices, small_enough)
        if width is not None:
            yield size_of(width, layers)


def cost(size: ModelSize, teacher: ModelSize, length: int, max_tokens: int) -> Cost:
    """The cost of a student at ``length`` tokens a side, trained on micro-batches of ``max_tokens`` tokens a side."""
    return Cost(
        compression=teacher.parameters.total / size.parameters.total,
        flops=flops_per_token(size, length),
        weight_bytes=_FLOAT * size.parameters.total,
        training_bytes=training_bytes(size, teacher, max_tokens),
    )


def flops_per_token(size: ModelSize, length: int) -> int:
    """Floating-point operations of a forward pass per token; a multiplication and its addition are two.

    For an encoder-decoder it is what one source token and one target token take together, both sides being ``length``
    long and each decoder position attending to those up to itself. Matrix products only: norms, biases, activations
    and softmax are less than a hundredth.
    """
    shape = size.shape
    total = 2 * shape.width * size.output_rows
    for side, sizes in shape.sides.items():
        attention = shape.attention_width(side)
        projections = 4 * shape.width * attention
        scores = 2 * attention * length  # q k' and weights v
        if side == "decoder":
            projections *= 2
            scores = attention * (length + 1) + 2 * attention * length
        ffn = size.ffn_matrices * shape.width * sizes.ffn_width
        total += 2 * sizes.layers * (projections + ffn + scores)
    return total


def training_bytes(size: ModelSize, teacher: ModelSize, max_tokens: int) -> int:
    """An estimate of the memory of a training step in fp32.

    Weights, gradients and two moments of the student, the weights of the teacher, and what the student's layers keep
    of ``max_tokens`` positions a side for their backward pass. What comes on top: logits, which are never whole; the
    scores of attention, where a model drops some of them out or adds a position bias; and a half of what layers keep
    where norms and activations are composed of many steps (T5).
    """
    kept = sum(sizes.layers * _kept_per_token(size, side) for side, sizes in size.shape.sides.items())
    return 4 * _FLOAT * size.parameters.total + _FLOAT * teacher.parameters.total + _FLOAT * max_tokens * kept


def _kept_per_token(size: ModelSize, side: Side) -> int:
    """Numbers per token that a layer keeps for its backward pass.

    Of attention its input, queries, keys, values and output (twice, before and after heads are joined); of the
    feed-forward part what goes into and comes out of the activation, twice that where it is gated; of each part the
    input of its norm, and a mask of one byte per number for its dropout.
    """
    width, sizes = size.shape.width, size.shape.sides[side]
    part = 2 * width + width // _FLOAT
    attention = part + 5 * size.shape.attention_width(side)
    ffn = part + 2 * (size.ffn_matrices - 1) * sizes.ffn_width
    return (2 if side == "decoder" else 1) * attention + ffn
