"""Options of generation. Free of torch, so that ``--help`` stays fast."""

from __future__ import annotations

from dataclasses import dataclass

from cktk.config.options import option
from cktk.errors import ConfigError


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

    def __post_init__(self) -> None:
        if self.max_len_a == 0 and self.min_len > self.max_len_b:
            raise ConfigError(f"--min-len {self.min_len} is more than --max-len-b {self.max_len_b}; lower one")


@dataclass(frozen=True)
class SearchBatchConfig:
    """batches of generation"""

    max_tokens: int | None = option(None, help="largest batch as sentences x longest source", minimum=1)
    batch_size: int | None = option(
        None, help="largest batch in sentences (64 where --max-tokens is not given)", minimum=1
    )


@dataclass(frozen=True)
class ModelConfig:
    """model"""

    source_lang: str | None = option(
        None, help="language of the source: a code of mBART's tokenizer, or with a data folder one of its two"
    )
    target_lang: str | None = option(None, help="language to translate into, likewise")
    max_source_positions: int | None = option(
        None, help="cut sources to this many tokens, special ones included (default: what the model takes)", minimum=3
    )
    device: str = option("auto", help="device such as cpu or cuda:0; auto takes a GPU if there is one")
    allow_bin_weights: bool = option(False, help="load pickled .bin weights, with torch's restricted unpickler")


@dataclass(frozen=True)
class GenerateConfig:
    """input and output"""

    path: str = option(metavar="DIR", help="student folder, checkpoint folder, or run directory (its best student)")
    data_bin: str | None = option(
        None, positional=True, help="data folder of cktk-preprocess to translate a split of (default: read lines)"
    )
    gen_subset: str = option("test", metavar="SPLIT", help="split of the data folder to translate")
    input: str = option("-", metavar="FILE", help="lines to translate where no data folder is given; - is stdin")
    output: str | None = option(None, metavar="FILE", help="where translations go, in input order (default: stdout)")
    prefix: str | None = option(
        None, metavar="FILE", help="one line per input line that its translation has to begin with; may be empty"
    )
    print_scores: bool = option(
        False, help="write line number, score and translation, tabbed; always so where --nbest is above 1"
    )
    scoring: str | None = option(None, help="score the best translations", choices=("sacrebleu",))
    reference: str | None = option(
        None, metavar="FILE", help="references of --scoring (default with a data folder: its decoded target side)"
    )
    buffer_size: int = option(4096, help="lines that are read, sorted by length and translated together", minimum=1)
