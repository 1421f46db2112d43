from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, wait

import pytest

from cktk.data.mixtures.background import Background, Job
from cktk.errors import DataError


def one_step(call: Callable[[], object]) -> Job[object]:
    found = call()
    yield
    return found


def for_ever(begun: threading.Event) -> Job[None]:
    while True:
        begun.set()
        yield


def fail() -> None:
    raise DataError("broken")


def test_jobs_run_in_other_threads_and_give_back_what_they_return_or_raise() -> None:
    background = Background(2)
    assert background.start(one_step(threading.current_thread)).result(30) is not threading.current_thread()
    with pytest.raises(DataError, match="broken"):
        background.start(one_step(fail)).result(30)
    assert background.start(one_step(lambda: 5)).result(30) == 5  # the thread is still there


def test_as_many_jobs_as_threads_run_side_by_side() -> None:
    background, meeting = Background(3), threading.Barrier(3)
    done = [background.start(one_step(lambda: meeting.wait(30))) for _ in range(3)]
    assert sorted(future.result(30) for future in done) == [0, 1, 2]


def test_a_job_that_was_called_off_does_not_run() -> None:
    background, go, ran = Background(1), threading.Event(), []
    first = background.start(one_step(lambda: go.wait(30)))
    second = background.start(one_step(lambda: ran.append(1)))
    assert second.cancel()
    go.set()
    wait([first, background.start(one_step(lambda: None))], 30)
    assert not ran


def test_the_threads_end_with_the_object() -> None:
    before, begun = set(threading.enumerate()), threading.Event()
    background = Background(2)
    threads = set(threading.enumerate()) - before
    job = background.start(for_ever(begun))
    assert begun.wait(30)
    del background
    with pytest.raises(CancelledError):
        job.result(30)
    assert len(threads) == 2 and not any(thread.is_alive() for thread in threads)


def test_a_process_does_not_wait_for_all_that_could_be_done() -> None:
    code = (
        "import threading\n"
        "from tests.unit.data.mixtures.test_background import Background, for_ever\n"
        "one = Background(1)\n"
        "jobs = [one.start(for_ever(threading.Event())) for _ in range(9)]\n"
        "raise SystemExit(7)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 7


def test_a_fork_finds_no_lock_taken() -> None:
    lock, begun = threading.Lock(), threading.Event()

    def locks() -> Job[None]:
        while True:
            with lock:
                begun.set()
                threading.Event().wait(0.002)
            yield

    background = Background(2)
    job = background.start(locks())
    assert begun.wait(30)
    for _ in range(20):
        if not (child := os.fork()):
            os._exit(0 if lock.acquire(blocking=False) else 1)
        assert os.waitpid(child, 0)[1] == 0
    assert not job.done()
    assert background.start(one_step(lambda: 5)).result(30) == 5
