"""Options of generation. Free of torch, so that ``--help`` stays fast."""

from __future__ import annotations

from dataclasses import dataclass

from cktk.config.options import option


@dataclass(frozen=True)
class SearchConfig:
    """search"""

    beam: int = option(5, help="beam size; 1 is greedy search", minimum=1)
    nbest: int = option(1, help="hypotheses to return per sentence, best first; at most the beam size", minimum=1)
    lenpen: float = option(
        1.0, help="a score is the sum of log-probabilities divided by length**X; above 1 favours longer output"
    )
    max_len_a: float = option(0.0, help="A of the longest output A*x + B, x the source tokens", minimum=0)
    max_len_b: int = option(
        200, help="B of the longest output A*x + B, in tokens without the end-of-sentence token", minimum=1
    )
    min_len: int = option(0, help="shortest output in tokens without the end-of-sentence token", minimum=0)
    no_repeat_ngram_size: int = option(0, help="no n-gram of this size occurs twice in an output; 0 is off", minimum=0)


@dataclass(frozen=True)
class SearchBatchConfig:
    """batches of generation"""

    max_tokens: int | None = option(None, help="largest batch as sentences x longest source", minimum=1)
    batch_size: int | None = option(
        None, help="largest batch in sentences (64 where --max-tokens is not given)", minimum=1
    )
