"""Options of generation. Free of torch, so that ``--help`` stays fast."""

from __future__ import annotations

from dataclasses import dataclass

from cktk.config.options import option
from cktk.errors import ConfigError


@dataclass(frozen=True)
class SearchConfig:
    """search"""

    beam: int = option(5, help="beam size; 1 is greedy search", minimum=1)
    nbest: int = option(
        1, help="outputs per sentence, best first; at most the beam size, or with --sampling any number", minimum=1
    )
    lenpen: float = option(
        1.0, help="a score is the sum of log-probabilities divided by length**X; above 1 favours longer output"
    )
    max_len_a: float = option(0.0, help="A of the longest output A*x + B, x the source tokens", minimum=0)
    max_len_b: int = option(
        200, help="B of the longest output A*x + B, in tokens without the end-of-sentence token", minimum=1
    )
    min_len: int = option(0, help="shortest output in tokens without the end-of-sentence token", minimum=0)
    no_repeat_ngram_size: int = option(0, help="no n-gram of this size occurs twice in an output; 0 is off", minimum=0)
    repetition_penalty: float = option(
        1.0, help="log-probabilities of tokens that the output has already are multiplied by X; 1 is off", above=0
    )
    early_stopping: str = option(
        "false",
        help="when a sentence is done: true: as soon as --beam outputs have ended; false: when the best running one, "
        "scored as it is, is no better than these; never: when it cannot become better at any length",
        choices=("false", "true", "never"),
    )
    diverse_beam_groups: int = option(
        1, help="the beam consists of N groups, which avoid the tokens of one another; 1 or -1 is off", minimum=-1
    )
    diverse_beam_strength: float = option(
        0.5, help="what a token loses for each beam of an earlier group that takes it in the same step", minimum=0
    )
    sampling: bool = option(False, help="draw tokens at random instead of searching; needs --beam 1")
    sampling_topk: int = option(-1, help="draw from the K most probable tokens; -1: from all", minimum=-1)
    sampling_topp: float = option(
        -1.0, help="draw from the fewest tokens that have probability P together; -1: from all", minimum=-1, maximum=1
    )
    temperature: float = option(1.0, help="sampling: what logits are divided by; below 1 favours the probable", above=0)
    seed: int = option(1, help="seed of --sampling", minimum=0)
    backend: str = option(
        "cktk",
        help="what searches: cktk's own decoder, or CTranslate2, which has nearly the same options (docs/export.md)",
        choices=("cktk", "ctranslate2"),
    )
    quantization: str = option(
        "none",
        help="int8: multiply in 8-bit integers on a CPU: much faster with a large vocabulary, nearly the same output",
        choices=("none", "int8"),
    )
    compile: bool = option(
        False,
        help="fuse the operators of decoder steps by torch.compile, for much work on a GPU: the first sentences of a "
        "few shapes take a minute or more each",
    )
    target_vocabulary: str | None = option(
        None,
        metavar="FILE",
        help="write only tokens that this text in the target language has: faster with a large vocabulary, but not "
        "exact: other tokens have probability 0",
    )

    @property
    def groups(self) -> int:
        """Groups of the beam; 1 is plain beam search."""
        return max(1, self.diverse_beam_groups)

    def __post_init__(self) -> None:
        if self.max_len_a == 0 and self.min_len > self.max_len_b:
            raise ConfigError(f"--min-len {self.min_len} is more than --max-len-b {self.max_len_b}; lower one")
        if self.backend == "ctranslate2":
            self._check_ctranslate2()
        if self.compile and self.quantization == "int8":
            raise ConfigError("--compile does nothing for --quantization int8; leave one out")
        if self.sampling:
            self._check_sampling()
        else:
            self._check_beams()

    def check_vocabulary(self, size: int, name: str = "the vocabulary") -> None:
        """Raise `ConfigError` for a beam, or a choice of tokens, that is larger than a vocabulary of ``size``."""
        for flag, value in (("--beam", self.beam), ("--sampling-topk", self.sampling_topk)):
            if value > size:
                raise ConfigError(f"{flag} {value} is more than the {size} tokens of {name}; lower it")

    def _check_ctranslate2(self) -> None:
        for flag, given in (
            ("--diverse-beam-groups", self.groups > 1),
            ("--early-stopping never", self.early_stopping == "never"),
            ("--target-vocabulary", self.target_vocabulary is not None),
            ("--compile", self.compile),
        ):
            if given:
                raise ConfigError(f"--backend ctranslate2 has no {flag}; leave it out, or use --backend cktk")

    def _check_sampling(self) -> None:
        if self.beam > 1:
            raise ConfigError(
                f"--sampling and --beam {self.beam} exclude each other: add --beam 1 (and --nbest N for N samples)"
            )
        for flag, given in (
            ("--diverse-beam-groups", self.groups > 1),
            ("--diverse-beam-strength", self.diverse_beam_strength != 0.5),
            ("--early-stopping", self.early_stopping != "false"),
        ):
            if given:
                raise ConfigError(f"--sampling and {flag} exclude each other; give one")
        if self.sampling_topk == 0:
            raise ConfigError("--sampling-topk 0 leaves no token; give -1 to draw from all")
        if -1 < self.sampling_topp <= 0:
            raise ConfigError(f"--sampling-topp {self.sampling_topp:g} leaves no token; give -1 to draw from all")

    def _check_beams(self) -> None:
        if self.nbest > self.beam:
            raise ConfigError(f"--nbest {self.nbest} is more than --beam {self.beam}; raise the beam")
        if self.beam % self.groups:
            raise ConfigError(f"--beam {self.beam} does not part into --diverse-beam-groups {self.groups} equal groups")
        for flag, given in (
            ("--sampling-topk", self.sampling_topk != -1),
            ("--sampling-topp", self.sampling_topp != -1),
            ("--temperature", self.temperature != 1),
            ("--seed", self.seed != 1),
        ):
            if given:
                raise ConfigError(f"{flag} is only looked at with --sampling; add it")
        if self.groups == 1 and self.diverse_beam_strength != 0.5:
            raise ConfigError("--diverse-beam-strength is only looked at with --diverse-beam-groups; add it")


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
    fp16: bool = option(False, help="compute in float16, for GPUs")
    bf16: bool = option(False, help="compute in bfloat16")

    def __post_init__(self) -> None:
        if self.fp16 and self.bf16:
            raise ConfigError("--fp16 and --bf16 exclude each other; choose one")

    @property
    def precision(self) -> str:
        """The type that the model computes in, by torch's name."""
        return "float16" if self.fp16 else "bfloat16" if self.bf16 else "float32"


@dataclass(frozen=True)
class GenerateConfig:
    """input and output"""

    path: str = option(metavar="DIR", help="student folder, checkpoint folder, or run directory (its best student)")
    data_bin: str | None = option(
        None, positional=True, help="data folder of cktk-preprocess to take a split of (default: read lines)"
    )
    gen_subset: str = option("test", metavar="SPLIT", help="split of the data folder")
    input: str = option("-", metavar="FILE", help="lines to work on where no data folder is given; - is stdin")
    output: str | None = option(None, metavar="FILE", help="where outputs go, in input order (default: stdout)")
    prefix: str | None = option(
        None, metavar="FILE", help="one line per input line that its output has to begin with; may be empty"
    )
    print_scores: bool = option(
        False, help="write line number, score and output, tabbed; always so where --nbest is above 1"
    )
    print_alignment: bool = option(
        False, help="write a further field after each output: pairs source-target of its tokens, from 0, tabbed"
    )
    alignment_layer: int | None = option(
        None,
        help="decoder layer whose attention --print-alignment takes, from 1 (default: the last but one)",
        minimum=1,
    )
    scoring: str | None = option(
        None,
        help="score the best outputs: translations by sacrebleu, summaries by rouge",
        choices=("sacrebleu", "rouge"),
    )
    reference: str | None = option(
        None, metavar="FILE", help="references of --scoring (default with a data folder: its decoded target side)"
    )
    buffer_size: int = option(
        4096,
        help="most lines that are read, sorted by length and worked on together: of a file as many, of a pipe those "
        "that wait; with --dest-dir also kept together",
        minimum=1,
    )
    interactive: bool = option(False, help="answer each line at once, with a prompt on a terminal (Ctrl-D ends)")
    workers: int = option(
        1, help="processes that share the work, each with the model in memory and (cores / N) threads", minimum=1
    )

    def __post_init__(self) -> None:
        if self.alignment_layer is not None and not self.print_alignment:
            raise ConfigError("--alignment-layer is only looked at with --print-alignment; add it")
        if not self.interactive:
            return
        for flag, given in (
            (f"the data folder {self.data_bin}", self.data_bin is not None),
            ("--input", self.input != "-"),
            ("--output", self.output is not None),
            ("--prefix", self.prefix is not None),
            ("--scoring", self.scoring is not None),
            ("--reference", self.reference is not None),
            ("--workers", self.workers > 1),
        ):
            if given:
                raise ConfigError(f"--interactive answers what is typed: leave {flag} out")
