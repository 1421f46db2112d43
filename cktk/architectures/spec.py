"""What a student looks like, and the defaults that follow from its teacher. Free of torch and transformers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from cktk.architectures.configs import EncoderConfig, HeadKind, StudentConfig
from cktk.errors import ConfigError
from cktk.protocols import ModelShape

#: The least that sizes may be.
_LEAST = dict.fromkeys(("width", "encoder_layers", "decoder_layers", "ffn_width", "heads", "head_width", "labels"), 1)

#: Width of one attention head where there is no teacher to take it from; that of BART, mBART, T5 and BERT.
HEAD_WIDTH = 64


@dataclass(frozen=True)
class StudentSpec:
    """Size and start of a student.

    None means "as the teacher"; for ``ffn_width`` and ``heads`` see `choose_ffn_width` and `choose_heads`. ``head`` and
    ``labels``, the number of classes that a classifier tells apart, are read by families with several heads.
    """

    width: int | None = None
    encoder_layers: int | None = None
    decoder_layers: int | None = None
    ffn_width: int | None = None
    heads: int | None = None
    init: str = "random"
    dropout: float | None = None
    head_width: int | None = None
    head: HeadKind | None = None
    labels: int | None = None

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"--{name.replace('_', '-')} {value}: has to be {least} or more")

    @classmethod
    def of(cls, config: StudentConfig) -> StudentSpec:
        """The spec that the flags ``config`` ask for."""
        return cls(
            width=config.width,
            encoder_layers=config.encoder_layers,
            decoder_layers=config.decoder_layers,
            ffn_width=config.ffn_width,
            heads=config.heads,
            init=config.init,
            dropout=config.dropout,
            head_width=config.head_width,
            head=config.head if isinstance(config, EncoderConfig) else None,
        )

    def like(self, shape: ModelShape) -> StudentSpec:
        """This spec with the sizes of ``shape`` where it leaves them open, as far as both sides share them."""
        sides = shape.sides
        found: dict[str, Any] = {"width": shape.width}
        found |= {f"{side}_layers": sizes.layers for side, sizes in sides.items()}
        if self.width in (None, shape.width):
            found["ffn_width"] = _shared([sizes.ffn_width for sizes in sides.values()])
            if self.heads is None and self.head_width is None:
                found["heads"] = _shared([sizes.heads for sizes in sides.values()])
                widths = [sizes.attention_width // sizes.heads for sizes in sides.values() if sizes.attention_width]
                found["head_width"] = _shared(widths)
        return replace(self, **{name: size for name, size in found.items() if getattr(self, name) is None})

    def require(self, *sizes: str) -> None:
        """Raise `ConfigError` for the first of the fields ``sizes`` that is left open: there is no teacher to ask."""
        for name in sizes:
            if getattr(self, name) is None:
                flag = name.replace("_", "-")
                raise ConfigError(f"--{flag} is needed when there is no --teacher to take it from")

    def fixed_heads(self, width: int) -> int | None:
        """The number of heads asked for, by number or by their width, where they divide a model of ``width``.

        None where neither is given; `ConfigError` where ``head_width`` does not divide, or contradicts ``heads``.
        """
        if self.head_width is None:
            return self.heads
        heads = width // _divisor(self.head_width, width, "--head-width")
        if self.heads not in (None, heads):
            raise ConfigError(
                f"--heads {self.heads} and --head-width {self.head_width} do not make --width {width}: "
                f"leave one of them out, or use --heads {heads}"
            )
        return heads


def _shared(sizes: list[int]) -> int | None:
    return sizes[0] if len(set(sizes)) == 1 else None


def choose_ffn_width(requested: int | None, width: int, teacher_width: int, teacher_ffn: int) -> int:
    """The feed-forward width: as requested, else the teacher's at the same width, else four times the width."""
    if requested is not None:
        return requested
    return teacher_ffn if width == teacher_width else 4 * width


def choose_heads(requested: int | None, width: int, head_width: int) -> int:
    """The number of attention heads of a model of ``width``.

    A requested number has to divide the width, else `ConfigError` suggests numbers that do. By default heads are
    ``head_width`` wide; where that does not divide ``width``, as near to it (in ratio) as a divisor allows.
    """
    if requested is not None:
        return _divisor(requested, width, "--heads")
    # max(a/b, b/a) measures the ratio; of two equally near ones the wider head wins.
    return min(_divisors(width), key=lambda heads: (max(width / heads / head_width, head_width * heads / width), heads))


def _divisors(width: int) -> list[int]:
    return [number for number in range(1, width + 1) if width % number == 0]


def _divisor(requested: int, width: int, flag: str) -> int:
    """``requested``; `ConfigError` with the numbers next to it that divide ``width`` if it does not."""
    divisors = _divisors(width)
    if requested in divisors:
        return requested
    below = [number for number in divisors if number < requested]
    above = [number for number in divisors if number > requested]
    near = [str(number) for number in (*below[-1:], *above[:1])]
    raise ConfigError(f"{flag} {requested} does not divide --width {width}: choose {' or '.join(near)}")
