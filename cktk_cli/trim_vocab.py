"""cktk-trim-vocab: a teacher, and its data and student, with the part of the vocabulary that the data needs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from cktk.config.command import Command, Settings
from cktk.data.preprocessing.trim_config import TrimConfig
from cktk.plugins import load_plugins
from cktk_cli.progress import SentenceBar
from cktk_cli.run import run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    command = Command(
        "cktk-trim-vocab",
        "Write a teacher that has only the tokens that a data folder uses, with bytes, special tokens and language "
        "codes; its students are smaller by all the rows that it lost. On kept tokens it says what it said before.",
        [TrimConfig],
        load_plugins=load_plugins,
    )
    return run_command(command, _trim, argv)


def _trim(settings: Settings) -> None:
    config = settings.section(TrimConfig)
    # transformers takes seconds to import: only after the flags have been looked at.
    from cktk.assemble.trim import restore, trim

    if config.restore is not None:
        restored = restore(config)
        print(
            f"{restored.folder}: {restored.after.total / 1e6:.2f} M parameters, with the vocabulary of {config.model}"
        )
        return
    report = trim(config, SentenceBar)
    _print_table(report)
    if report.languages:
        print(f"languages: {', '.join(report.languages)}")
    if report.left_out:
        print(
            f"{report.left_out:,} tokens of the data are left out: preprocess the text again with --tokenizer "
            f"{config.dest_dir}"
        )


def _print_table(report: Any) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("", "before", "after", "after / before")
    for column in table.columns[1:]:
        column.justify = "right"

    def row(name: str, before: int, after: int) -> None:
        table.add_row(name, f"{before:,}", f"{after:,}", f"{after / before:.1%}")

    row("vocabulary", report.old_rows, report.new_rows)
    for model in report.models:
        row(f"{model.name}: parameters", model.before.total, model.after.total)
        row("  of them embeddings and head", model.before.embedding, model.after.embedding)
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table)
    console.print(
        f"of {report.used:,} tokens in the data {report.used - report.left_out:,} are kept "
        f"({report.covered:.2%} of its running text)",
        highlight=False,
    )


if __name__ == "__main__":
    sys.exit(main())
