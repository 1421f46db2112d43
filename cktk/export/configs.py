"""Options of cktk-export. Free of torch, so that ``--help`` stays fast."""

from __future__ import annotations

from dataclasses import dataclass

from cktk.config.options import option
from cktk.errors import ConfigError

FORMATS = ("ctranslate2", "onnx", "int8")


@dataclass(frozen=True)
class ExportConfig:
    """export"""

    path: str = option(
        positional=True, metavar="DIR", help="student folder, checkpoint folder, run directory, or hub name"
    )
    format: str = option(
        help="ctranslate2: for CTranslate2 and --backend ctranslate2; onnx: encoder and decoder step for ONNX Runtime; "
        "int8: a student folder a quarter as large, for cktk-generate",
        choices=FORMATS,
    )
    output: str = option(help="folder to write; must not exist", metavar="DEST")
    quantization: str | None = option(
        None,
        help="weights of --format ctranslate2 (default: float32)",
        choices=("float32", "int8"),
    )
    allow_bin_weights: bool = option(False, help="load pickled .bin weights, with torch's restricted unpickler")

    def __post_init__(self) -> None:
        if self.quantization is not None and self.format != "ctranslate2":
            raise ConfigError("--quantization belongs to --format ctranslate2; leave it out")


@dataclass(frozen=True)
class CheckConfig:
    """check of what was exported"""

    sample: str | None = option(
        None,
        help="lines that student and export both work on, to be compared (default: a few sentences of cktk's own)",
        metavar="FILE",
    )
    data_bin: str | None = option(
        None, help="take them from the valid split of this data folder, or from --gen-subset", metavar="DIR"
    )
    gen_subset: str = option("valid", help="split of --data-bin", metavar="SPLIT")
    sample_size: int = option(64, help="compare at most the first N lines that are not blank", minimum=1)
    beam: int = option(4, help="beam of the comparison; --format onnx is compared by greedy search", minimum=1)
    max_len_b: int = option(200, help="longest output of the comparison in tokens", minimum=1)
    min_agreement: float | None = option(
        None,
        help="least share of the output's tokens that have to agree, from 0 to 1 (default: 0.99, with int8 weights "
        "0.7)",
        minimum=0,
        maximum=1,
    )
    source_lang: str | None = option(None, help="language of the lines: a code of a multilingual tokenizer (mBART)")
    target_lang: str | None = option(None, help="language to translate them into, likewise")

    def __post_init__(self) -> None:
        if self.sample is not None and self.data_bin is not None:
            raise ConfigError("--sample and --data-bin exclude each other; give one")
