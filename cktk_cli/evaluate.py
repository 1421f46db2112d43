"""cktk-evaluate: score files of outputs, or compare models on a split of a data folder."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from cktk.config.command import Command, Settings
from cktk.errors import ConfigError, DataError
from cktk.evaluation.configs import EvaluateConfig
from cktk.plugins import load_plugins
from cktk_cli import lines
from cktk_cli.progress import SentenceBar
from cktk_cli.run import run_command
from cktk_cli.task import MODEL_SECTIONS, TEXT_SECTIONS, open_split, score_texts, task_component, writes_texts


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    command = Command(
        "cktk-evaluate",
        "Score a file of outputs (--hypothesis, --reference), or let one or several models work on a split and compare "
        "their quality, size and speed.",
        [EvaluateConfig, *MODEL_SECTIONS],
        [task_component(argv, of_texts=TEXT_SECTIONS)],
        load_plugins=load_plugins,
    )
    return run_command(command, evaluate, argv)


def evaluate(settings: Settings) -> None:
    """Score what the settings name and print a table, or JSON, on stdout."""
    if not writes_texts(settings):
        from cktk_cli.glue import evaluate as evaluate_glue

        evaluate_glue(settings)
        return
    config = settings.section(EvaluateConfig)
    _check(config)
    if config.hypothesis is not None:
        pairs = _paired_lines(config.hypothesis, str(config.reference))
        rows = [({"name": config.hypothesis}, score_texts(settings, *pairs))]
    else:
        if config.reference is not None:
            expected = lines.rows_of_split(str(config.data_bin), _split(config))
            lines.check_paired("--reference", config.reference, expected, f"the {_split(config)} split")
        rows = [_measure(path, settings) for path in config.path]
    if config.json:
        print(json.dumps([{**facts, **scores.record()} for facts, scores in rows], ensure_ascii=False, indent=2))
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


def _split(config: EvaluateConfig) -> str:
    return config.gen_subset or "test"


def _paired_lines(hypothesis: str, reference: str) -> tuple[list[str], list[str]]:
    """The lines of both files; raises `DataError` naming both where they are not equally many."""
    found = list(lines.read(hypothesis)), list(lines.read(reference))
    ours, theirs = map(len, found)
    if ours != theirs:
        raise DataError(
            f"--hypothesis {hypothesis} has {ours} lines, but --reference {reference} has {theirs}; each hypothesis "
            "needs its reference on the same line"
        )
    if not ours:
        raise DataError(f"--hypothesis {hypothesis} and --reference {reference} are empty; give files with lines")
    return found


def _measure(path: str, settings: Settings) -> tuple[dict[str, Any], Any]:
    """Let one model work on the split: facts about it, and its scores. The time is that of generation alone."""
    from cktk.hub import student_folder

    config = settings.section(EvaluateConfig)
    name, split = _split(config), open_split(settings, path, str(config.data_bin))
    with SentenceBar(path, len(split.data.split(name))) as bar:
        started = time.perf_counter()
        found = split.translate(name, on_progress=bar)
        seconds = time.perf_counter() - started
    references = list(lines.read(config.reference)) if config.reference else split.references(name)
    folder = student_folder(path)
    facts = {
        "name": path,
        "parameters": split.translator.model.num_parameters(),
        "bytes": sum(file.stat().st_size for file in folder.glob("*") if file.is_file()) if folder.is_dir() else None,
        "sentences": len(found),
        "sentences_per_second": len(found) / seconds,
        "truncated": split.translator.counts.truncated,
    }
    return facts, score_texts(settings, [outputs[0].text for outputs in found], references)


def _print_table(rows: list[tuple[dict[str, Any], Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    measures = ("parameters", "size", "sentences/s") if "parameters" in rows[0][0] else ()
    table = Table("name", *measures, *rows[0][1].figures())
    for column in table.columns[1:]:
        column.justify = "right"
    for facts, scores in rows:
        measured = []
        if measures:
            size = "" if facts["bytes"] is None else f"{facts['bytes'] / 1e6:.1f} MB"
            measured = [f"{facts['parameters'] / 1e6:.2f} M", size, f"{facts['sentences_per_second']:.1f}"]
        table.add_row(facts["name"], *measured, *(f"{value:.1f}" for value in scores.figures().values()))
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table)
    console.print("\n".join(rows[0][1].signatures()), highlight=False)
    _warn_of_cuts({facts["name"]: facts.get("truncated", 0) for facts, _ in rows})


def _warn_of_cuts(cut: Mapping[str, int]) -> None:
    """Tell how many sources models have not seen whole: once if all are alike."""
    if len(set(cut.values())) == 1:
        cut = {"": next(iter(cut.values()))}
    for model, number in cut.items():
        if number:
            whom = f" for {model}" if model else ""
            print(f"warning: {number} sources were over-long and cut{whom}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
