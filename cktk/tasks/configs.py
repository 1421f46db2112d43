"""Settings of the tasks."""

from __future__ import annotations

from dataclasses import dataclass

from cktk.config.options import option
from cktk.data.context_config import ContextConfig, PromptConfig
from cktk.data.mixtures.mixture_config import MixtureConfig
from cktk.errors import ConfigError
from cktk.evaluation.configs import RougeConfig
from cktk.generation.configs import SearchConfig


@dataclass(frozen=True)
class SequenceConfig(PromptConfig):
    """sequence to sequence"""

    max_source_positions: int = option(
        1024, minimum=1, help="tokens of a source, special ones included; what is beyond is cut (at most the model's)"
    )
    max_target_positions: int = option(
        1024, minimum=1, help="tokens of a target, special ones included; what is beyond is cut (at most the model's)"
    )
    drop_first_position: bool = option(
        False, help="the first token of a target counts in no loss; the scripts released with the CKA paper do so"
    )


@dataclass(frozen=True)
class EvalSearchConfig:
    """search of a validation"""

    eval_beam: int = option(4, help="beam of a validation's search", minimum=1)
    eval_lenpen: float = option(1.0, help="length penalty of that search")
    eval_min_len: int = option(0, help="its shortest output, in tokens", minimum=0)
    eval_max_len_a: float = option(0.0, help="A of its longest output, A x source tokens + B", minimum=0)
    eval_max_len_b: int = option(200, help="B of its longest output", minimum=1)
    eval_no_repeat_ngram_size: int = option(
        0, help="no n-gram of this size occurs twice in an output of that search; 0 is off", minimum=0
    )

    def __post_init__(self) -> None:
        if self.eval_max_len_a == 0 and self.eval_min_len > self.eval_max_len_b:
            raise ConfigError(
                f"--eval-min-len {self.eval_min_len} is more than --eval-max-len-b {self.eval_max_len_b}; lower one"
            )

    @property
    def search(self) -> SearchConfig:
        """The same as options of the search."""
        return SearchConfig(
            beam=self.eval_beam,
            lenpen=self.eval_lenpen,
            min_len=self.eval_min_len,
            max_len_a=self.eval_max_len_a,
            max_len_b=self.eval_max_len_b,
            no_repeat_ngram_size=self.eval_no_repeat_ngram_size,
        )


@dataclass(frozen=True)
class TranslationConfig(SequenceConfig, ContextConfig, MixtureConfig, EvalSearchConfig):
    """translation"""

    source_lang: str | None = option(
        None,
        help="language to translate from: either one of the data folder's two (default: the one it was made with)",
    )
    target_lang: str | None = option(None, help="language to translate into (default: the data folder's other one)")
    bidirectional: bool = option(
        False, help="translate each corpus in both directions, which share what the mixture gives it equally"
    )
    eval_bleu: bool = option(False, help="translate the validation split by beam search: sacreBLEU and chrF")
    eval_bleu_sentences: int = option(0, help="translate only the first so many sentences; 0: all", minimum=0)
    eval_max_len_a: float = option(1.5, help="A of its longest output, A x source tokens + B", minimum=0)
    eval_max_len_b: int = option(20, help="B of its longest output", minimum=1)

    def __post_init__(self) -> None:
        ContextConfig.__post_init__(self)
        MixtureConfig.__post_init__(self)
        EvalSearchConfig.__post_init__(self)


@dataclass(frozen=True)
class SummarizationConfig(SequenceConfig, RougeConfig, EvalSearchConfig):
    """summarization"""

    max_target_positions: int = option(
        128, minimum=1, help="tokens of a summary, special ones included; what is beyond is cut (at most the model's)"
    )
    eval_rouge: bool = option(False, help="summarise the validation split by beam search: ROUGE-1, -2, -L and -Lsum")
    eval_rouge_documents: int = option(0, help="summarise only the first so many documents; 0: all", minimum=0)
    eval_max_len_b: int = option(128, help="B of its longest output", minimum=1)


@dataclass(frozen=True)
class GlueConfig:
    """glue: sentences and pairs of sentences, classified or rated"""

    max_source_positions: int = option(
        512,
        minimum=1,
        help="tokens of a sentence or pair, special ones included; what is beyond is cut, from the longer text of a "
        "pair first (at most the models')",
    )
    eval_metrics: bool = option(
        True, help="also compute accuracy, f1 and matthews, or pearson and spearman, on the validation split"
    )
