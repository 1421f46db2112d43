"""All of it: data, both teachers, eighteen students, and the table of what they reach on the test split.

Every step is a command that can be typed as it is printed, in this folder. Started again, it goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from cktk.utils.files import write_json

HERE = Path(__file__).resolve().parent
TARGETS = {"label": ["accuracy", "f1"], "rating": ["pearson", "spearman"]}
COLUMNS = {
    "label": ["--label-column", "label", "--label-names", "negative,positive"],
    "rating": ["--label-column", "rating", "--regression"],
}
STUDENTS = ("6x192", "3x192", "3x96")
LOSSES = ("kl", "linear", "cka")
RESULTS = HERE / "results.json"

console = Console(width=None if sys.stdout.isatty() else 100, highlight=False)


def main(argv: list[str] | None = None) -> int:
    """Run the experiment; returns the exit code of the first step that fails, or 0."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--show", action="store_true", help="print the table of results.json and do nothing else")
    try:
        if not parser.parse_args(argv).show:
            write_json(RESULTS, {target: _measured(target) for target in TARGETS})
    except subprocess.CalledProcessError as error:
        print("experiment.py: the command above failed", file=sys.stderr)
        return error.returncode
    for target, results in json.loads(RESULTS.read_text()).items():
        console.print(_table(target, results))
    return 0


def _measured(target: str) -> dict[str, dict[str, float]]:
    """Figures of the test split for the teacher and the students of one target."""
    if not (HERE / "work/minilm").exists():
        _run("python", "fetch.py")
    data = f"work/{target}-bin"
    files = [part for split in ("train", "valid", "test") for part in (f"--{split}-file", f"work/data/{split}.tsv")]
    columns = ["--text-columns", "text", *COLUMNS[target]]
    _run("cktk-preprocess", "--task", "glue", *columns, *files, "--tokenizer", "work/minilm", "--dest-dir", data)
    recipes = [f"teacher_{target}", *(f"{size}_{loss}_{target}" for size in STUDENTS for loss in LOSSES)]
    found = {}
    for recipe in recipes:
        _run("cktk-train", "--config", f"{recipe}.yaml")
        said = _run("cktk-evaluate", data, "--path", f"work/{recipe}", "--gen-subset", "test", "--json", capture=True)
        measured = json.loads(said)[0]["tasks"][0]
        figures = {"parameters": measured["parameters"], **measured["splits"]["test"]}
        found[recipe.removesuffix(f"_{target}")] = figures
    return found


def _run(command: str, *arguments: str, capture: bool = False) -> str:
    """Print and run one command in this folder; returns its output if ``capture`` is set."""
    console.print(f"$ {shlex.join((command, *arguments))}", style="dim", soft_wrap=True, markup=False)
    module = f"cktk_cli.{command.removeprefix('cktk-').replace('-', '_')}"
    start = [sys.executable] if command == "python" else [sys.executable, "-m", module]
    output = subprocess.PIPE if capture else None
    done = subprocess.run([*start, *arguments], cwd=HERE, stdout=output, text=True, check=True)
    return done.stdout or ""


def _table(target: str, results: dict[str, dict[str, float]]) -> Table:
    metrics = TARGETS[target]
    table = Table("", "parameters", *metrics, title=f"Test split, {target}")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, figures in results.items():
        cells = [f"{figures[metric]:.1f}" for metric in metrics]
        table.add_row(name, f"{figures['parameters'] / 1e6:.1f} M", *cells)
    return table


if __name__ == "__main__":
    sys.exit(main())
