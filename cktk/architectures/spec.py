"""What a student looks like, and the defaults that follow from its teacher. Free of torch and transformers."""

from __future__ import annotations

from dataclasses import dataclass

from cktk.architectures.configs import StudentConfig
from cktk.errors import ConfigError

#: Width of one attention head where there is no teacher to take it from; that of BART, mBART, T5 and BERT.
HEAD_WIDTH = 64


@dataclass(frozen=True)
class StudentSpec:
    """Size and start of a student.

    None means "as the teacher"; for ``ffn_width`` and ``heads`` see `choose_ffn_width` and `choose_heads`.
    """

    width: int | None = None
    encoder_layers: int | None = None
    decoder_layers: int | None = None
    ffn_width: int | None = None
    heads: int | None = None
    init: str = "random"
    dropout: float | None = None

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
        )


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
    divisors = [heads for heads in range(1, width + 1) if width % heads == 0]
    if requested is None:
        # max(a/b, b/a) measures the ratio; of two equally near ones the wider head wins.
        return min(divisors, key=lambda heads: (max(width / heads / head_width, head_width * heads / width), heads))
    if requested in divisors:
        return requested
    below = [heads for heads in divisors if heads < requested]
    above = [heads for heads in divisors if heads > requested]
    near = [str(heads) for heads in (*below[-1:], *above[:1])]
    raise ConfigError(f"--heads {requested} does not divide --width {width}: choose {' or '.join(near)}")
