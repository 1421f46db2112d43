"""Options of cktk-evaluate and of the metrics. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from cktk.config.options import option


@dataclass(frozen=True)
class EvaluateConfig:
    """what to score"""

    data_bin: str | None = option(None, positional=True, help="data folder of cktk-preprocess")
    path: tuple[str, ...] = option(
        (), metavar="DIR,..", help="models to compare: student folders, checkpoint folders or run directories"
    )
    gen_subset: str | None = option(
        None,
        metavar="SPLIT",
        help="split of the data folder (default: test, or with --task glue valid where test has no labels)",
    )
    hypothesis: str | None = option(None, metavar="FILE", help="score these lines instead of a model")
    reference: str | None = option(
        None, metavar="FILE", help="reference lines (default with a data folder: its decoded target side)"
    )
    json: bool = option(False, help="print JSON instead of a table")


@dataclass(frozen=True)
class TextMetricsConfig:
    """metrics of texts"""

    #: How ``--scoring`` calls them; None: it does not.
    scoring: ClassVar[str | None] = None


@dataclass(frozen=True)
class BleuConfig(TextMetricsConfig):
    """translation: sacreBLEU's BLEU and chrF"""

    scoring: ClassVar[str | None] = "sacrebleu"


@dataclass(frozen=True)
class RougeConfig(TextMetricsConfig):
    """summarization: ROUGE-1, -2, -L and -Lsum by rouge-score"""

    scoring: ClassVar[str | None] = "rouge"

    rouge_stemmer: bool = option(True, help="compare words without their English endings (Porter's stemmer)")
    rouge_lsum: Literal["sentences", "lines"] = option(
        "sentences",
        help="where sentences end for ROUGE-Lsum: at line breaks (in files also <n>), or at these and behind . ! ?",
    )


@dataclass(frozen=True)
class GlueMetricsConfig:
    """glue: the official metrics of the data's task, by scikit-learn and scipy"""
