"""cktk-preprocess: text to a folder of binarised shards."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from cktk.config.command import Command, Component, Settings
from cktk.config.options import Raw
from cktk.data.preprocessing.configs import PreprocessConfig
from cktk.errors import ConfigError
from cktk.plugins import load_plugins
from cktk.registry import LAYOUTS, SOURCES, TOKENIZERS
from cktk_cli.run import run_command

_COUNTS = {
    "unlabelled": "rows without label",
    "empty": "pairs with an empty side",
    "dropped_empty": "  of them dropped",
    "overlong": "over-long pairs",
    "dropped_overlong": "  of them dropped",
    "truncated": "  of them truncated",
    "unknown": "unknown tokens",
    "special": "pairs that spell a special token",
}
#: The same where a row has a single text.
_SINGLE = {"empty": "empty texts", "overlong": "over-long texts", "special": "texts that spell a special token"}
_SHOWN_LABELS = 20
_ALWAYS_SHOWN = ("empty", "overlong")

_ENDINGS = {"tsv": "tsv", "csv": "csv", "jsonl": "jsonl", "json": "jsonl", "parquet": "parquet"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with ``argv`` (default: the process's arguments) and return its exit code."""
    command = Command(
        "cktk-preprocess",
        "Turns text into a data folder: tokenised shards, the tokenizer, and a manifest.",
        [PreprocessConfig],
        [
            Component("task", LAYOUTS, "translation", "what the data is for"),
            Component("source", SOURCES, "text", "kind of input; otherwise told by its flags and file names", _source),
            Component("train-tokenizer", TOKENIZERS, None, "learn a tokenizer from the train split"),
        ],
        load_plugins,
    )
    return run_command(command, _preprocess, argv)


def _source(given: Mapping[str, Raw]) -> str | None:
    """The kind of input that the given flags speak of."""
    if "dataset" in given:
        return "datasets"
    if "glue_dir" in given:
        return "glue"
    for name in ("train_file", "valid_file", "test_file", "valid_mm_file", "test_mm_file"):
        if name in given:
            ending = str(given[name]).removesuffix(".gz").rpartition(".")[2]
            if ending not in _ENDINGS:
                flag = name.replace("_", "-")
                raise ConfigError(
                    f"--{flag} {given[name]}: its name does not tell the format; add --source tsv, for one"
                )
            return _ENDINGS[ending]
    return None


def _preprocess(settings: Settings) -> None:
    config = settings.section(PreprocessConfig)
    trained = settings.values["train_tokenizer"]
    if (trained is None) == (config.tokenizer is None):
        raise ConfigError("give either --tokenizer PATH or --train-tokenizer unigram")
    task, columns = settings.component("task")
    kind, options = settings.component("source")
    from cktk.data.sources.sources import open_source  # imports numpy, which --help does without

    source, layout = open_source(partial(SOURCES.target(kind), options), LAYOUTS.target(task)(columns))
    # transformers takes seconds to import: only now, after the settings and files have been looked at.
    from cktk.data.preprocessing.prepare import PretrainedTokenizer, TokenizerMaker, TrainedTokenizer, prepare

    maker: TokenizerMaker
    if config.tokenizer is not None:
        maker = PretrainedTokenizer(config.tokenizer, layout)
    else:
        kind, options = settings.component("train-tokenizer")
        maker = TrainedTokenizer(kind, options, TOKENIZERS.target(kind), source, layout, config.workers)
    started = time.perf_counter()
    progress = _Progress()
    with progress.bars:
        prepared = prepare(source, layout, maker, config, progress.show)
    seconds = time.perf_counter() - started
    _print_summary(prepared.manifest)
    if prepared.unchanged:
        print(f"{config.dest_dir}: already made from this text; left as it is")
    else:
        print(f"{config.dest_dir}: written in {seconds:.1f} s")


class _Progress:
    """A bar for each split on stderr."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.bars = Progress(
            TextColumn("{task.description:>6}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("lines"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),
        )
        self._tasks: dict[str, Any] = {}

    def show(self, split: str, total: int | None, lines: int) -> None:
        if split not in self._tasks:
            self._tasks[split] = self.bars.add_task(split, total=total)
        self.bars.advance(self._tasks[split], lines)


def _print_summary(manifest: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    splits = manifest["splits"]
    table = Table("", *splits)
    for column in table.columns[1:]:
        column.justify = "right"
    table.add_row("lines", *(f"{split['counts']['lines']:,}" for split in splits.values()))
    table.add_row("rows written", *(f"{split['rows']:,}" for split in splits.values()))
    for column, lang in manifest["languages"].items():
        tokens = [sum(shard["tokens"][column] for shard in split["shards"]) for split in splits.values()]
        table.add_row(
            f"tokens {lang if manifest['task'] == 'translation' else column}", *(f"{number:,}" for number in tokens)
        )
    words_of = _COUNTS | (_SINGLE if len(manifest["languages"]) == 1 else {})
    for name, words in words_of.items():
        numbers = [split["counts"].get(name, 0) for split in splits.values()]
        if name in _ALWAYS_SHOWN or any(numbers):
            table.add_row(words, *(f"{number:,}" for number in numbers))
    Console().print(table)
    if labels := manifest.get("labels"):
        print(f"labels: {', '.join(labels[:_SHOWN_LABELS])}{', ...' if len(labels) > _SHOWN_LABELS else ''}")


if __name__ == "__main__":
    sys.exit(main())
