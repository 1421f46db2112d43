"""How far a student and what it was exported to agree on a sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import islice
from pathlib import Path

from cktk.data.shards import DataFolder
from cktk.data.sources.text import decode_lines
from cktk.errors import CktkError, ConfigError, DataError
from cktk.evaluation.bleu import score_translations
from cktk.export.configs import CheckConfig
from cktk.generation.translator import Translation, Translator

#: What is compared where no text is given: any tokenizer makes something of it, and numbers do not mind the language.
SENTENCES = (
    "The committee will meet again on Thursday to discuss the report.",
    "This package contains the documentation and some examples.",
    "It rains.",
    "She asked him whether he had ever been to Paris, and he said that he had not.",
    "Prices rose by 3.5% in 2019, and fell by 12% the year after.",
    "A small tool that reads a file, counts its words, and writes a table with one row for each of them.",
    "Thank you very much!",
    "Why is the sky blue in the morning and red in the evening?",
)

#: How far the scores of an equal output may be apart, with weights in fp32.
SCORE_BOUND = 1e-3

#: The least share of tokens that agree.
FLOAT_AGREEMENT, INT8_AGREEMENT = 0.99, 0.7


@dataclass(frozen=True)
class Comparison:
    """Of ``lines`` outputs ``equal`` are token by token the same, their scores up to ``score_difference`` apart.

    ``agreement`` is the share of all outputs' tokens that stand in both, in order; ``bleu`` is that of one side's
    texts with the other's as references.
    """

    lines: int
    equal: int
    agreement: float
    score_difference: float
    bleu: float

    def __str__(self) -> str:
        return (
            f"{self.equal} of {self.lines} outputs are equal (scores differ by {self.score_difference:.1e} at most), "
            f"{self.agreement:.2%} of the tokens agree, BLEU of one with the other as reference {self.bleu:.1f}"
        )

    def check(self, least: float | None, quantised: bool) -> None:
        """Raise `CktkError` where less agrees than ``least``, or than may be expected of weights of this kind."""
        bound = least if least is not None else INT8_AGREEMENT if quantised else FLOAT_AGREEMENT
        if self.agreement < bound:
            raise CktkError(
                f"the export does not do what the student does, nothing was kept: {self}; {bound:.0%} of the tokens "
                "have to agree (--min-agreement)"
            )
        if not quantised and self.score_difference > SCORE_BOUND:
            raise CktkError(
                f"the export does not score as the student does, nothing was kept: {self}; {SCORE_BOUND:.0e} is allowed"
            )


def compare(ours: Sequence[Translation], theirs: Sequence[Translation]) -> Comparison:
    """Compare outputs for the same lines."""
    pairs = list(zip(ours, theirs, strict=True))
    equal = [(one, other) for one, other in pairs if one.tokens == other.tokens]
    common = sum(
        block.size
        for one, other in pairs
        for block in SequenceMatcher(None, one.tokens, other.tokens, autojunk=False).get_matching_blocks()
    )
    total = sum(len(one.tokens) + len(other.tokens) for one, other in pairs)
    return Comparison(
        lines=len(pairs),
        equal=len(equal),
        agreement=2 * common / total if total else 1.0,
        score_difference=max((abs(one.score - other.score) for one, other in equal), default=0.0),
        bleu=score_translations([other.text for other in theirs], [one.text for one in ours]).bleu,
    )


def sample_lines(config: CheckConfig, translator: Translator) -> list[str]:
    """The lines that ``config`` names, blank ones left out; raises `ConfigError` or `DataError` where there are none.

    Those of a data folder are decoded with the tokenizer of ``translator``.
    """
    if config.data_bin is not None:
        split = DataFolder(config.data_bin).split(config.gen_subset)
        if "source" not in split.columns:
            raise DataError(f"--data-bin {config.data_bin}: has no column source; give a folder of pairs of texts")
        texts = (translator.decode(split[row]["source"].tolist()) for row in range(len(split)))
        found, where = list(islice(filter(str.strip, texts), config.sample_size)), f"--data-bin {config.data_bin}"
    elif config.sample is not None:
        where = f"--sample {config.sample}"
        if not Path(config.sample).is_file():
            raise ConfigError(f"{where}: no such file")
        with open(config.sample, "rb") as stream:
            found = list(islice(filter(str.strip, decode_lines(stream, config.sample)), config.sample_size))
    else:
        return list(SENTENCES[: config.sample_size])
    if not found:
        raise DataError(f"{where}: holds no line that is not blank; nothing can be compared")
    return found
