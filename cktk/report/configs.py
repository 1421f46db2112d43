"""Options of cktk-report. Free of torch and matplotlib."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cktk.config.options import option
from cktk.errors import ConfigError

FigureName = Literal["parameters", "data", "convergence", "attention"]


@dataclass(frozen=True)
class ReportConfig:
    """Report"""

    runs: tuple[str, ...] = option(
        (),
        positional=True,
        help="run directories of cktk-train, and .json files of cktk-evaluate --json, whose scores go before those of "
        "validations; NAME=DIR gives a run a name, and runs with one name are seeds or sizes of the same thing",
    )
    metric: str | None = option(
        None, metavar="NAME", help="figure to show (default: the --best-checkpoint-metric of the runs)"
    )
    output: str | None = option(
        None, metavar="DIR", help="folder to draw figures into; without it there is a table only"
    )
    figures: tuple[FigureName, ...] = option(
        (),
        help="what to draw: parameters, data = quality against the parameters and the training rows; convergence = "
        "per epoch; attention (default: all for which the runs have something to show)",
    )
    format: tuple[Literal["svg", "png"], ...] = option(("svg",), help="file formats of the figures: svg, png")
    json: bool = option(False, help="print JSON instead of a table")


@dataclass(frozen=True)
class AttentionConfig:
    """attention maps"""

    attention_text: str | None = option(None, metavar="TEXT", help="show how student and teacher attend in this text")
    attention_pair: str | None = option(
        None, metavar="TEXT", help="second text of a pair; the target where the models have a decoder"
    )
    attention_kind: Literal["encoder", "decoder", "cross"] = option(
        "encoder", help="self-attention of the encoder or the decoder, or the decoder's attention to the source"
    )
    layer: int | None = option(None, minimum=1, help="layer of the student, from 1 (default: its last)")
    head: int | None = option(None, minimum=1, help="attention head, from 1 (default: the mean over heads)")
    teacher: str | None = option(None, metavar="PATH", help="model to compare with (default: the teacher of the runs)")
    allow_bin_weights: bool = option(False, help="also open teachers whose weights are pickled")

    def __post_init__(self) -> None:
        if self.attention_text is None:
            given = {"--attention-pair": self.attention_pair, "--layer": self.layer, "--head": self.head}
            for flag, value in given.items():
                if value is not None:
                    raise ConfigError(f"{flag} goes with --attention-text TEXT; give it, or leave {flag} out")
        elif self.attention_kind != "encoder" and self.attention_pair is None:
            raise ConfigError(f"--attention-kind {self.attention_kind} needs a target: give --attention-pair TEXT")
