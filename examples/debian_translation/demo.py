"""The whole road in under ten minutes: data, preprocessing, distillation, translation, and what came out of it.

Every step is a command that can be typed as it is printed, in this folder.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
DATA, DATA_BIN = "work/data", "work/data-bin"
TEACHER, STUDENT = "models/teacher", "models/student"
BEAM = ["--beam", "4"]
#: Sentences of the test split to show, from short to long.
WORDS_SHOWN = (6, 9, 13, 18, 25)

console = Console(width=None if sys.stdout.isatty() else 110, highlight=False)


def main(argv: list[str] | None = None) -> int:
    """Run the demo; returns the exit code of the first step that fails, or 0."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--from-scratch", action="store_true", help="train the student from its start: about two hours")
    from_scratch: bool = parser.parse_args(argv).from_scratch
    started = time.monotonic()
    try:
        _demo(from_scratch)
    except subprocess.CalledProcessError as error:
        print("demo.py: the command above failed", file=sys.stderr)
        return error.returncode
    console.print(f"\n{_minutes(time.monotonic() - started)} in all")
    return 0


def _demo(from_scratch: bool) -> None:
    _heading("1. English-French package descriptions of Debian")
    _run("python", "fetch.py", "--dest", DATA)
    _heading("2. Tokenise and pack them, with the teacher's vocabulary")
    files = [part for split in ("train", "valid", "test") for part in (f"--{split}-prefix", f"{DATA}/{split}")]
    _run(
        "cktk-preprocess", "--source-lang", "en", "--target-lang", "fr", *files,
        "--tokenizer", TEACHER, "--workers", "2", "--dest-dir", DATA_BIN,
    )  # fmt: skip
    _heading("3. The teacher, and the student before")
    before = [TEACHER] if from_scratch else [TEACHER, STUDENT]
    rows = _evaluate(before)
    _heading("4. Distil: gold labels, the teacher's word distributions, and its hidden states by CKA")
    if from_scratch:
        run = "work/cka_kd"
        _run("cktk-train", "--config", "cka_kd.yaml")
    else:
        run = "work/demo"
        _run("cktk-train", "--config", "demo.yaml")
    _heading("5. Translate the test split with the student")
    _run(
        "cktk-generate", DATA_BIN, "--path", run, *BEAM,
        "--scoring", "sacrebleu", "--output", "work/student.fr",
    )  # fmt: skip
    _heading("6. The teacher's view of five of its sentences, and the student measured like the others")
    chosen = _choose(_lines(f"{DATA}/test.en"))
    (HERE / "work/shown.en").write_text("".join(_lines(f"{DATA}/test.en")[i] + "\n" for i in chosen), encoding="utf-8")
    _run("cktk-generate", "--path", TEACHER, *BEAM, "--input", "work/shown.en", "--output", "work/shown.fr")
    rows += _evaluate([run])
    names = ["teacher", "student"] if from_scratch else ["teacher", "student before", "student after"]
    _results(names, rows)
    _translations(chosen)


def _heading(words: str) -> None:
    console.print(f"\n[bold]{words}[/bold]")


def _run(command: str, *arguments: str, capture: bool = False) -> str:
    """Print and run one command in this folder; returns its output if ``capture`` is set."""
    console.print(f"$ {shlex.join((command, *arguments))}", style="dim", soft_wrap=True, markup=False)
    # The same interpreter, whether or not its scripts are on the PATH.
    module = f"cktk_cli.{command.removeprefix('cktk-').replace('-', '_')}"
    start = [sys.executable] if command == "python" else [sys.executable, "-m", module]
    paths = os.pathsep.join(filter(None, [str(HERE.parents[1]), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [*start, *arguments],
        cwd=HERE,
        env={**os.environ, "PYTHONPATH": paths},
        stdout=subprocess.PIPE if capture else None,
        text=True,
        check=True,
    )
    return done.stdout or ""


def _evaluate(models: list[str]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(
        _run("cktk-evaluate", DATA_BIN, "--path", ",".join(models), *BEAM, "--json", capture=True)
    )
    for row in rows:
        console.print(f"{row['name']}: BLEU {row['bleu']:.1f}, chrF {row['chrf']:.1f}")
    return rows


def _lines(name: str) -> list[str]:
    return (HERE / name).read_text(encoding="utf-8").split("\n")[:-1]


def _choose(sentences: list[str]) -> list[int]:
    """Line numbers of five sentences of growing length, the first of each, so that every run shows the same."""
    lengths = [len(sentence.split()) for sentence in sentences]
    return [min(range(len(lengths)), key=partial(_distance, lengths, words)) for words in WORDS_SHOWN]


def _distance(lengths: list[int], words: int, number: int) -> int:
    return abs(lengths[number] - words)


def _results(names: list[str], rows: list[dict[str, Any]]) -> None:
    table = Table("", "parameters", "BLEU", "chrF", "sentences/s", "on disk", title="Test split, beam 4")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, row in zip(names, rows, strict=True):
        table.add_row(
            name,
            f"{row['parameters'] / 1e6:.2f} M",
            f"{row['bleu']:.1f}",
            f"{row['chrf']:.1f}",
            f"{row['sentences_per_second']:.1f}",
            f"{row['bytes'] / 1e6:.1f} MB",
        )
    console.print()
    console.print(table)
    teacher, student = rows[0], rows[-1]
    console.print(
        f"The student has {teacher['parameters'] / student['parameters']:.1f} times fewer parameters, keeps "
        f"{student['bleu'] / teacher['bleu']:.0%} of the teacher's BLEU, and is "
        f"{student['sentences_per_second'] / teacher['sentences_per_second']:.1f} times as fast. "
        "(What lies in models/ is float16; training writes float32.)"
    )


def _translations(chosen: list[int]) -> None:
    sources, references, students = (_lines(name) for name in (f"{DATA}/test.en", f"{DATA}/test.fr", "work/student.fr"))
    for number, teacher in zip(chosen, _lines("work/shown.fr"), strict=True):
        console.print()
        rows = {"source": sources[number], "reference": references[number], "teacher": teacher}
        for name, text in {**rows, "student": students[number]}.items():
            console.print(f"{name:>9}  {text}", markup=False, soft_wrap=True)


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60} min {int(seconds) % 60} s"


if __name__ == "__main__":
    sys.exit(main())
