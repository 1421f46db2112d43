"""Options of cktk-evaluate and of the metrics. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cktk.config.options import option


@dataclass(frozen=True)
class EvaluateConfig:
    """what to score"""

    data_bin: str | None = option(None, positional=True, help="data folder of cktk-preprocess")
    path: tuple[str, ...] = option(
        (), metavar="DIR,..", help="models to compare: student folders, checkpoint folders or run directories"
    )
    gen_subset: str = option("test", metavar="SPLIT", help="split of the data folder")
    hypothesis: str | None = option(None, metavar="FILE", help="score these lines instead of a model")
    reference: str | None = option(
        None, metavar="FILE", help="reference lines (default with a data folder: its decoded target side)"
    )
    json: bool = option(False, help="print JSON instead of a table")


@dataclass(frozen=True)
class BleuConfig:
    """translation: sacreBLEU's BLEU and chrF"""


@dataclass(frozen=True)
class RougeConfig:
    """summarization: ROUGE-1, -2, -L and -Lsum by rouge-score"""

    rouge_stemmer: bool = option(True, help="compare words without their English endings (Porter's stemmer)")
    rouge_lsum: Literal["sentences", "lines"] = option(
        "sentences",
        help="where sentences end for ROUGE-Lsum: at line breaks (in files also <n>), or at these and behind . ! ?",
    )


@dataclass(frozen=True)
class GlueMetricsConfig:
    """glue: the official metrics of the data's task, by scikit-learn and scipy"""
