"""Options of the student architectures. Neither torch nor transformers is imported here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cktk.config.options import option

#: What an encoder ends in: a head over the vocabulary, a classifier of sentences, or nothing.
HeadKind = Literal["masked_lm", "classification", "bare"]


@dataclass(frozen=True)
class StudentConfig:
    """Student"""

    width: int | None = option(None, minimum=1, metavar="D", help="width of the student (default: the teacher's)")
    encoder_layers: int | None = option(None, minimum=1, metavar="N", help="encoder layers (default: the teacher's)")
    decoder_layers: int | None = option(None, minimum=1, metavar="N", help="decoder layers (default: the teacher's)")
    ffn_width: int | None = option(
        None,
        minimum=1,
        metavar="F",
        help="feed-forward width (default: the teacher's at the same width, else 4 x width, T5's gated ones 8/3 x)",
    )
    heads: int | None = option(
        None,
        minimum=1,
        metavar="H",
        help="attention heads (default: heads as wide as the teacher's where that divides)",
    )
    head_width: int | None = option(
        None,
        minimum=1,
        metavar="W",
        help="width of a head; with --heads, too, where heads may differ from the width (T5)",
    )
    max_positions: int = option(
        1024, minimum=4, metavar="N", help="positions of a model without a teacher (a student has its teacher's)"
    )
    dropout: float | None = option(None, minimum=0, maximum=0.99, help="dropout (default: the teacher's, else 0.1)")
    init: Literal["random", "truncate", "pca", "copy", "checkpoint"] = option(
        "random",
        help="starting weights: random; truncate: leading rows and columns of the teacher's; pca: the teacher "
        "projected on its principal directions over a sample of the data; copy: whole teacher layers (same width); "
        "checkpoint: layers of the earlier student --init-checkpoint",
    )
    init_checkpoint: str | None = option(
        None, metavar="PATH", help="model folder whose layers are kept, dropped or doubled by --init checkpoint"
    )


@dataclass(frozen=True)
class EncoderConfig(StudentConfig):
    """Student"""

    head: Literal["masked_lm", "classification", "bare"] | None = option(
        None, help="what the encoder ends in; bare: in nothing (default: as the teacher; masked_lm without one)"
    )
