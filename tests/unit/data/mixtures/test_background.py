from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import wait

import pytest

from cktk.data.mixtures.background import Background
from cktk.errors import DataError


def test_jobs_run_in_other_threads_and_give_back_what_they_return_or_raise() -> None:
    background = Background(2)
    assert background.start(threading.current_thread).result(30) is not threading.current_thread()

    def fail() -> None:
        raise DataError("broken")

    with pytest.raises(DataError, match="broken"):
        background.start(fail).result(30)
    assert background.start(lambda: 5).result(30) == 5  # the thread is still there


def test_as_many_jobs_as_threads_run_side_by_side() -> None:
    background, meeting = Background(3), threading.Barrier(3)
    done = [background.start(lambda: meeting.wait(30)) for _ in range(3)]
    assert sorted(future.result(30) for future in done) == [0, 1, 2]


def test_a_job_that_was_called_off_does_not_run() -> None:
    background, go, ran = Background(1), threading.Event(), []
    first, second = background.start(lambda: go.wait(30)), background.start(lambda: ran.append(1))
    assert second.cancel()
    go.set()
    wait([first, background.start(lambda: None)], 30)
    assert not ran


def test_the_threads_end_with_the_object() -> None:
    before = set(threading.enumerate())
    background = Background(2)
    threads = set(threading.enumerate()) - before
    ended, job = background.ended, background.start(background.ended.wait)
    del background
    assert ended.is_set() and job.result(30)
    assert len(threads) == 2 and not any(thread.is_alive() for thread in threads)


def test_a_process_does_not_wait_for_all_that_could_be_done() -> None:
    code = (
        "from cktk.data.mixtures.background import Background\n"
        "one = Background(1)\n"
        "jobs = [one.start(one.ended.wait) for _ in range(9)]\n"
        "raise SystemExit(7)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 7
