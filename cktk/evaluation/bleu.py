"""Corpus BLEU and chrF by sacreBLEU with its default settings, and the signatures that make them comparable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from cktk.errors import DataError


@dataclass(frozen=True)
class Scores:
    """Corpus scores from 0 to 100, each with its sacreBLEU signature."""

    bleu: float
    chrf: float
    bleu_signature: str
    chrf_signature: str

    def __str__(self) -> str:
        return f"BLEU {self.bleu:.2f} ({self.bleu_signature})\nchrF {self.chrf:.2f} ({self.chrf_signature})"


def score_translations(hypotheses: Sequence[str], references: Sequence[str]) -> Scores:
    """Score detokenised ``hypotheses`` against one reference each; raises `DataError` where they do not pair up."""
    if len(hypotheses) != len(references):
        raise DataError(f"{len(hypotheses)} hypotheses but {len(references)} references; each needs its own line")
    if not references:
        raise DataError("there are no references to score against; give files with at least one line")
    bleu, chrf = BLEU(), CHRF()
    return Scores(
        bleu=float(bleu.corpus_score(hypotheses, [references]).score),
        chrf=float(chrf.corpus_score(hypotheses, [references]).score),
        bleu_signature=str(bleu.get_signature()),
        chrf_signature=str(chrf.get_signature()),
    )
