"""ROUGE-1, ROUGE-2, ROUGE-L and ROUGE-Lsum by the package ``rouge-score`` (Lin, 2004).

A score is the mean over the documents of the F measure of each, times 100, as papers print it. Before counting, texts
are put in lower case and cut into runs of a-z and 0-9; with the stemmer, words longer than three characters lose their
English endings (Porter). All other letters are gaps: figures say little about languages that need them.

ROUGE-Lsum is the longest common subsequence sentence by sentence (the summary-level ROUGE-L of the paper), so it
depends on where sentences end; `sentences` tells how that is found.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

from rouge_score.rouge_scorer import RougeScorer

from cktk.evaluation.configs import RougeConfig
from cktk.evaluation.scores import ScoreTexts, check_paired

#: The names of the scores, as `rouge-score` and logs have them.
ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")

#: How files with one summary a line write a line break (the convention of PEGASUS's files).
LINE_BREAK = "<n>"

# Behind a full stop and what closes with it, where a gap follows and the next sentence does not go on in lower case.
_SENTENCE_END = re.compile(r"""(?<=[.!?…])(["'”’»)\]]*)\s+(?=[^\s\Wa-z_]|["'“‘«(\[¿¡])""")


@dataclass(frozen=True)
class RougeScores:
    """Mean F measures from 0 to 100, and the settings that they were made with."""

    rouge1: float
    rouge2: float
    rougeL: float
    rougeLsum: float
    rouge_signature: str

    def __str__(self) -> str:
        return "\n".join([*(f"{name} {value:.2f}" for name, value in self.figures().items()), *self.signatures()])

    def figures(self) -> dict[str, float]:
        """See `Scores.figures`."""
        values = (self.rouge1, self.rouge2, self.rougeL, self.rougeLsum)
        return dict(zip(("ROUGE-1", "ROUGE-2", "ROUGE-L", "ROUGE-Lsum"), values, strict=True))

    def signatures(self) -> list[str]:
        """See `Scores.signatures`."""
        return [f"ROUGE {self.rouge_signature}"]

    def record(self) -> dict[str, Any]:
        """See `Scores.record`."""
        return asdict(self)


def rouge_scorer(config: RougeConfig) -> ScoreTexts:
    """A function that scores summaries as ``config`` says, as `EVALUATIONS` names it."""

    def score(hypotheses: Sequence[str], references: Sequence[str]) -> RougeScores:
        return score_summaries(hypotheses, references, stemmer=config.rouge_stemmer, lsum=config.rouge_lsum)

    return score


def score_summaries(
    hypotheses: Sequence[str], references: Sequence[str], *, stemmer: bool = True, lsum: str = "sentences"
) -> RougeScores:
    """Score ``hypotheses`` against one reference each; raises `DataError` where they do not pair up.

    ``lsum`` says where sentences end for ROUGE-Lsum: at line breaks ("lines"), or at these and at the ends of sentences
    ("sentences").
    """
    check_paired(hypotheses, references)
    scorer = RougeScorer(list(ROUGE), use_stemmer=stemmer)
    sums = dict.fromkeys(ROUGE, 0.0)
    for hypothesis, reference in zip(hypotheses, references, strict=True):
        found = scorer.score(_by_lines(reference, lsum), _by_lines(hypothesis, lsum))
        for name in ROUGE:
            sums[name] += found[name].fmeasure
    means = {name: 100 * total / len(references) for name, total in sums.items()}
    signature = f"f:mean|stemmer:{'yes' if stemmer else 'no'}|lsum:{lsum}|version:{version('rouge-score')}"
    return RougeScores(**means, rouge_signature=signature)


def sentences(text: str) -> list[str]:
    """The sentences of ``text``: a rule of this module, the same on every machine, that needs no downloaded model.

    A sentence ends behind ``. ! ? …`` and closing quotes or brackets, where a gap follows and then no lower-case letter
    of English. Line breaks end sentences, too. Abbreviations before a capital (``Mr. Smith``) are taken for ends.
    """
    marked = _SENTENCE_END.sub(r"\1\n", text.replace(LINE_BREAK, "\n"))
    return [sentence for line in marked.splitlines() if (sentence := line.strip())]


def _by_lines(text: str, lsum: str) -> str:
    """``text`` with the line breaks where ``rouge-score`` is to see its sentences end."""
    return "\n".join(sentences(text)) if lsum == "sentences" else text.replace(LINE_BREAK, "\n")
