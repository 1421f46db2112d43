"""Errors of commands: one line for what people or the machine can mend, tracebacks for faults of the program."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from cktk.config.command import Command, Settings
from cktk.config.options import option
from cktk.errors import ConfigError, DataError
from cktk_cli.run import run_command

ROOT = Path(__file__).resolve().parents[3]


@dataclass(frozen=True)
class Options:
    """Options."""

    lines: int = option(1, help="lines")


def run(work: Callable[[], object]) -> int:
    def call(settings: Settings) -> None:
        work()

    return run_command(Command("prog", "words", [Options]), call, [])


def raiser(error: BaseException) -> Callable[[], object]:
    def work() -> None:
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ConfigError("--x: is\nwrong"), 2, "prog: error: --x: is wrong"),
        (DataError("file:3: bad"), 1, "prog: error: file:3: bad"),
        (PermissionError(errno.EACCES, "Permission denied", "in.txt"), 1, "prog: error: in.txt: Permission denied"),
        (IsADirectoryError(errno.EISDIR, "Is a directory", b"in"), 1, "prog: error: in: Is a directory"),
        (OSError(errno.ENOSPC, "No space left on device", "out"), 1, "prog: error: out: No space left on device"),
        (OSError(errno.EIO, "Input/output error"), 1, "prog: error: Input/output error (CKTK_TRACEBACK=1 shows where)"),
        (MemoryError(), 1, "prog: error: out of memory; ask for less at a time (smaller batches, fewer workers)"),
        (KeyboardInterrupt(), 130, "prog: stopped"),
    ],
)
def test_one_line(
    error: BaseException,
    code: int,
    line: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert run(raiser(error)) == code
    assert capsys.readouterr().err == line + "\n"
    if code != 130:
        monkeypatch.setenv("CKTK_TRACEBACK", "1")
        with pytest.raises(type(error)):
            run(raiser(error))


@pytest.mark.parametrize("error", [ValueError("fault"), KeyError("fault"), OSError("a library's own words")])
def test_faults_of_the_program_keep_their_traceback(error: Exception) -> None:
    with pytest.raises(type(error)):
        run(raiser(error))


def test_real_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(lambda: tmp_path.read_text()) == 1
    assert run(lambda: (tmp_path / "file" / "x").mkdir()) == 1
    assert capsys.readouterr().err.splitlines() == [
        f"prog: error: {tmp_path}: Is a directory",
        f"prog: error: {tmp_path}/file/x: No such file or directory",
    ]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("lines", [1, 100_000])  # that fit into the buffer, and that do not
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_standard_output(lines: int, unbuffered: str) -> None:
    script = (
        "from cktk.config.command import Command\nfrom cktk_cli.run import run_command\n"
        f"raise SystemExit(run_command(Command('prog', 'words', []), lambda _: print('line\\n' * {lines}), []))"
    )
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", script],
            cwd=ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr == "prog: error: standard output: No space left on device\n"


def test_a_reader_that_leaves_early_is_no_error() -> None:
    script = (
        "from cktk.config.command import Command\nfrom cktk_cli.run import run_command\n"
        "raise SystemExit(run_command(Command('prog', 'words', []), lambda _: print('line\\n' * 10**6), []))"
    )
    reading, writing = os.pipe()
    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=writing, stderr=subprocess.PIPE) as process:
        os.close(writing)
        os.read(reading, 10)
        os.close(reading)
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert process.returncode == 1
