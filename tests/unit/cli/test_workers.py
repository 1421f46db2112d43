"""Processes that share the work, with a model that only reads the lines as commands."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from cktk.config.command import Settings
from cktk.errors import CktkError, DataError
from cktk_cli.outputs import Output, Window
from cktk_cli.workers import Workers, _cores

ROOT = Path(__file__).resolve().parents[3]

MODEL = """
import os, signal, sys, time
import cktk_cli.workers
from cktk.errors import ConfigError, DataError
from cktk_cli.outputs import Output

class Model:
    def __init__(self, settings):
        if settings.values.get("refuses"):
            raise ConfigError("--path: no such model")
        print("this is no output", flush=True)

    def threads(self):
        return os.environ["OMP_NUM_THREADS"]

    def batches(self, lines):
        order = sorted(range(len(lines)), key=lambda at: -len(lines[at]))
        return [order[start : start + 3] for start in range(0, len(order), 3)]

    def translate(self, lines, prefixes=None):
        for line in lines:
            if line == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            if line == "refuse":
                raise DataError("line: is bad; mend it")
            if line == "fault":
                raise ValueError("a fault")
            if line.startswith("sleep"):
                time.sleep(float(line[5:]))
        begin = prefixes or [""] * len(lines)
        outputs = [[Output(one + line.upper(), float(os.getpid()))] for one, line in zip(begin, lines)]
        return outputs, {"sentences": len(lines)}

cktk_cli.workers.open_model = Model
"""


def settings(folder: Path, **values: Any) -> Settings:
    plugin = folder / "model.py"
    plugin.write_text(MODEL, encoding="utf-8")
    return Settings({"user_dir": str(plugin), **values}, (), ())


def window(lines: list[str], prefixes: list[str] | None = None) -> Window:
    return Window(lines, prefixes, [0.0] * len(lines))


def lines_of(outputs: list[list[Output]]) -> list[str]:
    return [one[0].text for one in outputs]


@pytest.fixture(scope="module", params=[False, True], ids=["file", "live"])
def workers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    os.environ["OMP_NUM_THREADS"], before = "5", os.environ.get("OMP_NUM_THREADS")
    with Workers(settings(tmp_path_factory.mktemp("model")), 2, live=request.param) as found:
        os.environ.pop("OMP_NUM_THREADS")
        if before is not None:
            os.environ["OMP_NUM_THREADS"] = before
        yield found


def test_order_is_kept_and_counts_are_summed(workers: Workers) -> None:
    parts = [["a", "", "ccc", "bb", "sleep0.2", "ddddd", "e"], ["x"], ["yy", "z"] * 9, ["sleep0.1"], ["", ""]]
    told: list[int] = []
    found = list(workers.work(map(window, parts), told.append))
    assert [lines_of(done.outputs) for done in found] == [[line.upper() for line in part] for part in parts]
    assert [done.counts["sentences"] for done in found] == list(map(len, parts))
    assert sum(told) == sum(map(len, parts))
    assert len({one[0].score for done in found for one in done.outputs}) == 2  # both worked


def test_prefixes_go_with_their_lines(workers: Workers) -> None:
    lines, prefixes = ["a", "bbb", "cc", "dddd", "e"], ["1", "2", "", "4", "5"]
    (done,) = workers.work([window(lines, prefixes)], lambda _: None)
    assert lines_of(done.outputs) == ["1A", "2BBB", "CC", "4DDDD", "5E"]


def test_threads_are_shared_out(workers: Workers) -> None:
    assert workers.ask("threads") == "2"


def test_errors_come_after_the_outputs_before(workers: Workers) -> None:
    def windows() -> Iterator[Window]:
        yield window(["a", "b"])
        raise DataError("in:3: bad")

    for source, kind, words in (
        (windows(), DataError, "in:3: bad"),
        (iter([window(["a", "b"]), window(["c", "refuse"])]), DataError, "line: is bad; mend it"),
        (iter([window(["a", "b"]), window(["c", "fault"])]), ValueError, "a fault"),
    ):
        found = workers.work(source, lambda _: None)
        assert lines_of(next(found).outputs) == ["A", "B"]
        with pytest.raises(kind, match=words) as caught:
            next(found)
        if kind is ValueError:
            assert "in translate" in caught.value.__notes__[0]


def test_outputs_do_not_wait_for_further_input(workers: Workers) -> None:
    answered = threading.Event()

    def windows() -> Iterator[Window]:
        yield window(["a"])
        assert answered.wait(20)
        yield window(["b"])

    found = workers.work(windows(), lambda _: None)
    assert lines_of(next(found).outputs) == ["A"]
    answered.set()
    assert lines_of(next(found).outputs) == ["B"]


def test_input_is_not_read_far_ahead(workers: Workers) -> None:
    read: list[int] = []
    found = workers.work((read.append(at) or window([str(at)]) for at in range(50)), lambda _: None)  # type: ignore[func-returns-value]
    for at in range(10):
        next(found)
        time.sleep(0.005)
        assert len(read) <= at + 1 + 2
    found.close()  # type: ignore[attr-defined]


def test_a_worker_that_is_killed(tmp_path: Path) -> None:
    with Workers(settings(tmp_path), 2, live=False) as workers:
        found = workers.work([window(["a"]), window(["sleep0.1", "x", "y", "die"])], lambda _: None)
        assert lines_of(next(found).outputs) == ["A"]
        with pytest.raises(CktkError, match="a worker process was ended by signal 9, perhaps for lack of memory; run"):
            next(found)
        processes = workers._processes
    assert not any(process.is_alive() for process in processes)


def test_a_model_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(CktkError, match="--path: no such model"), Workers(settings(tmp_path, refuses=1), 2, live=False):
        raise AssertionError("not reached")


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_the_command(tmp_path: Path, how: signal.Signals) -> None:
    settings(tmp_path)
    script = tmp_path / "run.py"
    script.write_text(
        "import json, sys\n"
        "from cktk.config.command import Settings\n"
        "from cktk_cli.outputs import Window\n"
        "from cktk_cli.workers import Workers\n"
        "def windows():\n"
        "    yield Window(['sleep9999'] * 9, None, [0.0] * 9)\n"
        "    print(json.dumps([process.pid for process in workers._processes]), flush=True)\n"  # that was dealt out
        "if __name__ == '__main__':\n"
        "    with Workers(Settings({'user_dir': sys.argv[1]}, (), ()), 2, live=False) as workers:\n"
        "        list(workers.work(windows(), lambda _: None))\n"
    )
    command = [sys.executable, str(script), str(tmp_path / "model.py")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        pids = json.loads(process.stdout.readline())  # what workers print does not get there
        time.sleep(0.3)
        if how == signal.SIGINT:
            for pid in pids:  # a terminal sends it to all; workers leave it to the command
                os.kill(pid, how)
            time.sleep(0.3)
        process.send_signal(how)
        try:
            _, errors = process.communicate(timeout=90)  # ends when the last of them has ended
        finally:
            for pid in (process.pid, *pids):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
    assert (
        errors.count("Traceback") == errors.count("\nKeyboardInterrupt") == (how == signal.SIGINT)
    )  # the command's own


def test_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert _cores() == 7
    monkeypatch.setenv("OMP_NUM_THREADS", "no number")
    assert _cores() == len(os.sched_getaffinity(0))
