"""Settings of cktk-preprocess: where text comes from, how it is tokenised, and what becomes of unusual lines."""

from __future__ import annotations

from dataclasses import dataclass

from cktk.config.options import option


@dataclass(frozen=True)
class PreprocessConfig:
    """data preparation"""

    dest_dir: str = option("data-bin", help="folder to write", metavar="DIR")
    tokenizer: str | None = option(
        None, help="Hugging Face tokenizer: a folder or a hub name (or train one: --train-tokenizer)", metavar="PATH"
    )
    workers: int = option(1, help="processes that tokenise", minimum=1, resume="free")
    shard_size: int = option(100_000, help="rows per shard", minimum=1)
    empty_lines: str = option(
        "drop",
        help="rows with an empty text: drop them from the train split, or keep them (other splits, and glue, keep all)",
        choices=("drop", "keep"),
    )
    max_length: int = option(1024, help="a text with more tokens than this is over-long", minimum=1)
    overlong_lines: str = option(
        "keep",
        help="over-long texts: keep and count, truncate to --max-length, or drop the row from the train split",
        choices=("keep", "truncate", "drop"),
    )


@dataclass(frozen=True)
class TextSourceConfig:
    """text files side by side: PREFIX.LANG or PREFIX.NAME, plain or .gz, a row a line"""

    train_prefix: str | None = option(None, help="files of the train split, without their endings", metavar="PREFIX")
    valid_prefix: str | None = option(None, help="files of the valid split, without their endings", metavar="PREFIX")
    test_prefix: str | None = option(None, help="files of the test split, without their endings", metavar="PREFIX")


@dataclass(frozen=True)
class TableSourceConfig:
    """tables: JSON lines (.jsonl, .jsonl.gz) or Parquet"""

    train_file: str | None = option(
        None, help="train split; a pattern such as 'train-*' takes all files", metavar="FILE"
    )
    valid_file: str | None = option(None, help="valid split (file or pattern)", metavar="FILE")
    test_file: str | None = option(None, help="test split (file or pattern)", metavar="FILE")


@dataclass(frozen=True)
class DelimitedSourceConfig(TableSourceConfig):
    """tables: TSV (no quoting) or CSV, plain or .gz"""

    header: bool = option(True, help="the first line of a file names its columns")


@dataclass(frozen=True)
class DatasetsSourceConfig:
    """Hugging Face datasets"""

    dataset: str = option(help="folder saved by `datasets`, or a hub name", metavar="NAME")
    dataset_config: str | None = option(None, help="configuration of the dataset, such as ro-en", metavar="NAME")
    train_split: str | None = option(None, help="its train split (default: train, if there)", metavar="NAME")
    valid_split: str | None = option(None, help="its valid split (default: validation, if there)", metavar="NAME")
    test_split: str | None = option(None, help="its test split (default: test, if there)", metavar="NAME")


@dataclass(frozen=True)
class GlueSourceConfig:
    """the TSV files of a GLUE task as gluebenchmark.com has them"""

    glue_dir: str = option(help="folder with the task's train.tsv, dev.tsv and test.tsv", metavar="DIR")


@dataclass(frozen=True)
class UnigramTokenizerConfig:
    """SentencePiece unigram, trained on all texts of the train split"""

    vocab_size: int = option(help="entries of the vocabulary, special tokens and bytes included", minimum=8)
    character_coverage: float = option(
        0.9995, help="share of the text's characters that get their own entry", above=0, maximum=1
    )
    byte_fallback: bool = option(True, help="spell characters outside of the vocabulary as bytes")
    tokenizer_sentences: int = option(2_000_000, help="learn from a random sample of so many lines", minimum=100)
