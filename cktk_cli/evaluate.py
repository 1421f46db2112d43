"""cktk-evaluate: score translations, or compare models on a split of a data folder."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from typing import Any

from cktk.config.command import Command, Settings
from cktk.errors import ConfigError
from cktk.evaluation.configs import EvaluateConfig
from cktk.generation.configs import ModelConfig, SearchBatchConfig, SearchConfig
from cktk.plugins import load_plugins
from cktk_cli import lines
from cktk_cli.progress import SentenceBar
from cktk_cli.run import run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    command = Command(
        "cktk-evaluate",
        "Score a file of translations (--hypothesis, --reference), or translate a split with one or several models and "
        "compare their quality, size and speed.",
        [EvaluateConfig, SearchConfig, SearchBatchConfig, ModelConfig],
        load_plugins=load_plugins,
    )
    return run_command(command, evaluate, argv)


def evaluate(settings: Settings) -> None:
    """Score what the settings name and print a table, or JSON, on stdout."""
    config = settings.section(EvaluateConfig)
    _check(config)
    if config.hypothesis is not None:
        texts = list(lines.read(config.hypothesis)), list(lines.read(str(config.reference)))
        rows = [{"name": config.hypothesis, **_scores(*texts)}]
    else:
        if config.reference is not None:
            expected = lines.rows_of_split(str(config.data_bin), config.gen_subset)
            lines.check_paired("--reference", config.reference, expected, f"the {config.gen_subset} split")
        rows = [_measure(path, settings) for path in config.path]
    if config.json:
        print(json.dumps(rows, ensure_ascii=False, indent=2))
    else:
        _print_table(rows)


def _check(config: EvaluateConfig) -> None:
    if config.hypothesis is not None:
        if config.path or config.data_bin:
            raise ConfigError("--hypothesis scores a file: leave out --path and the data folder")
        if config.reference is None:
            raise ConfigError("--hypothesis needs --reference FILE")
    elif not config.path or config.data_bin is None:
        raise ConfigError("give a data folder and --path DIR,.. to compare models, or --hypothesis and --reference")


def _measure(path: str, settings: Settings) -> dict[str, Any]:
    """Translate the split with one model. The time is that of translating, without loading."""
    # transformers takes seconds to import: only after the flags have been looked at.
    from cktk.hub import open_split, student_folder

    config = settings.section(EvaluateConfig)
    sections = (settings.section(ModelConfig), settings.section(SearchConfig), settings.section(SearchBatchConfig))
    split = open_split(path, str(config.data_bin), *sections)
    with SentenceBar(path, len(split.data.split(config.gen_subset))) as bar:
        started = time.perf_counter()
        found = split.translate(config.gen_subset, on_progress=bar)
        seconds = time.perf_counter() - started
    references = list(lines.read(config.reference)) if config.reference else split.references(config.gen_subset)
    folder = student_folder(path)
    return {
        "name": path,
        "parameters": split.translator.model.num_parameters(),
        "bytes": sum(file.stat().st_size for file in folder.glob("*") if file.is_file()) if folder.is_dir() else None,
        **_scores([translations[0].text for translations in found], references),
        "sentences": len(found),
        "sentences_per_second": len(found) / seconds,
        "truncated": split.translator.counts.truncated,
    }


def _scores(hypotheses: list[str], references: list[str]) -> dict[str, Any]:
    from cktk.evaluation.bleu import score_translations

    return vars(score_translations(hypotheses, references)).copy()


def _print_table(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("name", *(("parameters", "size", "sentences/s") if "parameters" in rows[0] else ()), "BLEU", "chrF")
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        measured = []
        if "parameters" in row:
            size = "" if row["bytes"] is None else f"{row['bytes'] / 1e6:.1f} MB"
            measured = [f"{row['parameters'] / 1e6:.2f} M", size, f"{row['sentences_per_second']:.1f}"]
        table.add_row(row["name"], *measured, f"{row['bleu']:.1f}", f"{row['chrf']:.1f}")
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table)
    console.print(f"BLEU {rows[0]['bleu_signature']}\nchrF {rows[0]['chrf_signature']}", highlight=False)
    if cut := sum(row.get("truncated", 0) for row in rows):
        print(f"warning: {cut} sources were over-long and cut", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
