"""Corpus BLEU and chrF by sacreBLEU with its default settings, and the signatures that make them comparable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from cktk.evaluation.configs import BleuConfig
from cktk.evaluation.scores import ScoreTexts, check_paired


@dataclass(frozen=True)
class TranslationScores:
    """Corpus scores from 0 to 100, each with its sacreBLEU signature."""

    bleu: float
    chrf: float
    bleu_signature: str
    chrf_signature: str

    def __str__(self) -> str:
        return f"BLEU {self.bleu:.2f} ({self.bleu_signature})\nchrF {self.chrf:.2f} ({self.chrf_signature})"

    def figures(self) -> dict[str, float]:
        """See `Scores.figures`."""
        return {"BLEU": self.bleu, "chrF": self.chrf}

    def signatures(self) -> list[str]:
        """See `Scores.signatures`."""
        return [f"BLEU {self.bleu_signature}", f"chrF {self.chrf_signature}"]

    def record(self) -> dict[str, Any]:
        """See `Scores.record`."""
        return asdict(self)


def translation_scorer(config: BleuConfig) -> ScoreTexts:  # noqa: ARG001 - sacreBLEU's defaults are the comparable ones
    """`score_translations`, as `EVALUATIONS` names it."""
    return score_translations


def score_translations(hypotheses: Sequence[str], references: Sequence[str]) -> TranslationScores:
    """Score detokenised ``hypotheses`` against one reference each; raises `DataError` where they do not pair up."""
    check_paired(hypotheses, references)
    bleu, chrf = BLEU(), CHRF()
    return TranslationScores(
        bleu=float(bleu.corpus_score(hypotheses, [references]).score),
        chrf=float(chrf.corpus_score(hypotheses, [references]).score),
        bleu_signature=str(bleu.get_signature()),
        chrf_signature=str(chrf.get_signature()),
    )


def bleu_and_chrf(hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """The scores of `score_translations` without their signatures, by the names that logs have for them."""
    scores = score_translations(hypotheses, references)
    return {"bleu": scores.bleu, "chrf": scores.chrf}
