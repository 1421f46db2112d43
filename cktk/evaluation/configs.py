"""Options of cktk-evaluate. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass

from cktk.config.options import option


@dataclass(frozen=True)
class EvaluateConfig:
    """what to score"""

    data_bin: str | None = option(None, positional=True, help="data folder of cktk-preprocess to translate")
    path: tuple[str, ...] = option(
        (), metavar="DIR,..", help="models to compare: student folders, checkpoint folders or run directories"
    )
    gen_subset: str = option("test", metavar="SPLIT", help="split of the data folder to translate")
    hypothesis: str | None = option(None, metavar="FILE", help="score these lines instead of translating")
    reference: str | None = option(
        None, metavar="FILE", help="reference lines (default with a data folder: its decoded target side)"
    )
    json: bool = option(False, help="print JSON instead of a table")
