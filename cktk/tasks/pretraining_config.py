"""Settings of pretraining."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cktk.config.options import option
from cktk.data.mixtures.mixture_config import MixtureConfig
from cktk.errors import ConfigError

#: What each objective is for.
ENCODER_OBJECTIVES = ("unmasked", "masked")


@dataclass(frozen=True)
class PretrainingConfig(MixtureConfig):
    """pretraining"""

    objective: Literal["reconstruct", "denoise", "unmasked", "masked"] = option(
        "reconstruct",
        help="encoder-decoders: reconstruct = the text is its own target; denoise = BART's text infilling, for T5 its "
        "span corruption. Encoders: unmasked = the text as it is; masked = BERT's masking",
    )
    text_column: str = option("text", help="column of the data folders to read")
    tokens_per_sample: int | None = option(
        None,
        minimum=2,
        help="tokens of a sample, special ones included (default: 512, or all positions of the models if these are "
        "fewer)",
    )
    sample_break_mode: Literal["eos", "none"] = option(
        "eos", help="eos: a sample is one text, cut at its end; none: a block of texts with end tokens between them"
    )
    mask_ratio: float | None = option(
        None, above=0, maximum=1, help="part of the tokens that are hidden (default: 0.3 by infilling, else 0.15)"
    )
    mean_span: float | None = option(
        None, minimum=1, maximum=100, help="tokens in a hidden span on average (denoise; default: 3)"
    )
    permute_sentences: bool = option(False, help="put sentences in random order before infilling (denoise)")
    scored_positions: Literal["all", "masked"] = option(
        "all", help="positions that are compared with the teacher (masked): all that are no padding, or the hidden ones"
    )
    stream: tuple[str, ...] = option(
        (),
        metavar="CORPUS=NAME[:CONFIG[:SPLIT]],..",
        help="train on streamed text: NAME is a pattern of .jsonl, .parquet, .txt or .csv files (without commas), a "
        "folder of datasets' save_to_disk, or a hub name; CORPUS a data folder's name or a language",
    )
    stream_column: str = option("text", help="column of the streams to read")

    def __post_init__(self) -> None:
        super().__post_init__()
        belongs = {
            "mask_ratio": (self.mask_ratio is not None, ("denoise", "masked")),
            "mean_span": (self.mean_span is not None, ("denoise",)),
            "permute_sentences": (self.permute_sentences, ("denoise",)),
            "scored_positions": (self.scored_positions == "masked", ("masked",)),
        }
        for name, (given, objectives) in belongs.items():
            if given and self.objective not in objectives:
                flag = "--" + name.replace("_", "-")
                raise ConfigError(f"{flag} goes with --objective {' or '.join(objectives)}; leave it out")
