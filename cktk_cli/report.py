"""cktk-report: figures and a table of what runs reached."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

from cktk.config.command import Command, Settings
from cktk.plugins import load_plugins
from cktk.report.configs import AttentionConfig, ReportConfig
from cktk_cli.run import run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    command = Command(
        "cktk-report",
        "Show what runs reached: a table, and figures of quality against parameters and training rows, of convergence "
        "with the stages of internal distillation, and of attention maps.",
        [ReportConfig, AttentionConfig],
        load_plugins=load_plugins,
    )
    return run_command(command, _report, argv)


def _report(settings: Settings) -> None:
    config = settings.section(ReportConfig)
    # transformers takes seconds to import: only after the flags have been looked at.
    from cktk.report.report import make_report, record

    report = make_report(config, settings.section(AttentionConfig))
    if config.json:
        print(json.dumps(record(report), ensure_ascii=False, indent=2))
        return
    _print_table(report)
    if report.maps is not None:
        _print_attention(report.maps)
    for path in report.files:
        print(f"wrote {path}")


def _print_table(report: Any) -> None:
    split = report.results[0].split
    table = _table("", "seeds", "layers x width", "parameters", "training rows", report.metric)
    for name, results in report.groups.items():
        first, values = results[0], [result.value for result in results]
        size = ("", "") if first.size is None else (first.size.shape, f"{first.size.parameters / 1e6:.3g} M")
        spread = f" ± {stdev(values):.{2 if abs(values[0]) >= 10 else 4}f}" if len(values) > 1 else ""
        rows = "" if first.run.rows is None else f"{first.run.rows:,}"
        table.add_row(name, str(len(values)), *size, rows, f"{_shown(fmean(values))}{spread}")
    _console().print(table)
    several = any(len(results) > 1 for results in report.groups.values())
    words = "of the best checkpoint" + (f", {split} split" if split else "")
    print(f"{report.metric} {words}" + ("; mean ± standard deviation of seeds" if several else ""))


def _print_attention(maps: Any) -> None:
    head = "mean over heads" if maps.head is None else f"head {maps.head}"
    table = _table(f"{maps.kind} attention", "layer", "teacher's", f"KL, {head}", "KL, all matched layers")
    teacher, *students = maps.maps
    for student in students:
        mean = fmean(student.layers.values())
        table.add_row(student.name, str(student.layer), str(teacher.layer), f"{student.kl:.4f}", f"{mean:.4f}")
    _console().print(table)
    print("KL(teacher ‖ student) in nats: mean over the tokens of the text; over all matched layers also over heads")


def _table(*columns: str) -> Any:
    from rich.table import Table

    table = Table(*columns)
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def _console() -> Any:
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 120, highlight=False)


def _shown(value: float) -> str:
    """Percentages with two decimals, losses with more."""
    return f"{value:.2f}" if abs(value) >= 10 else f"{value:.4f}"


if __name__ == "__main__":
    sys.exit(main())
