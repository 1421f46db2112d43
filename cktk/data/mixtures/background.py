"""Work that goes on beside the training, in a few threads."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Generator, Sequence
from concurrent.futures import CancelledError, Future
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")
#: Work in steps: each `yield` ends one, and what it returns is the result.
Job = Generator[None, None, T]
_Given = tuple[Future[Any], Job[Any]]

#: How long the process waits, when it exits, for steps to end (s).
_PATIENCE = 5.0


class Background:
    """Runs jobs in ``threads`` threads, which end with this object or with the process, whichever is first.

    Between two steps a job may be broken off, and the process may fork (as data workers make it do): then no step is
    under way, and no lock is taken that the child would wait for. A job must not refer to this object, which could not
    end before it. `concurrent.futures` offers pools, too, but lets the process exit only when all jobs are done.
    """

    def __init__(self, threads: int) -> None:
        self._jobs: SimpleQueue[_Given | None] = SimpleQueue()
        ended = threading.Event()
        workers = [
            threading.Thread(target=_work, args=(self._jobs, ended), name="cktk-background", daemon=True)
            for _ in range(threads)
        ]
        for worker in workers:
            worker.start()
        weakref.finalize(self, _end, ended, self._jobs, workers)

    def start(self, job: Job[T]) -> Future[T]:
        """What ``job`` will have returned or raised; jobs begin in the order in which they are given."""
        future: Future[T] = Future()
        self._jobs.put((future, job))
        return future


class _Steps:
    """Keeps steps and forks of the process apart."""

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Forget everything: a child has none of its parent's threads, and maybe a lock that one of them held."""
        self._changed = threading.Condition()
        self._under_way: set[int] = set()
        self._forking = False

    def __enter__(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._forking)
            self._under_way.add(threading.get_ident())

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._under_way.discard(threading.get_ident())
            self._changed.notify_all()

    def hold(self) -> None:
        """Wait until none is under way, but one that forks itself, and let none begin."""
        with self._changed:
            self._forking = True
            self._changed.wait_for(lambda: self._under_way <= {threading.get_ident()})

    def go_on(self) -> None:
        """Let them begin again."""
        with self._changed:
            self._forking = False
            self._changed.notify_all()


_STEPS = _Steps()
os.register_at_fork(before=_STEPS.hold, after_in_parent=_STEPS.go_on, after_in_child=_STEPS.renew)


def _work(jobs: SimpleQueue[_Given | None], ended: threading.Event) -> None:
    while (given := jobs.get()) is not None:
        future, job = given
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(_result(job, ended))
            except BaseException as error:  # it is for whoever asks for the result
                future.set_exception(error)
        # What waits for the next job shall not hold on to the last one.
        del given, future, job


def _result(job: Job[T], ended: threading.Event) -> T:
    while not ended.is_set():
        with _STEPS:
            try:
                next(job)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
    raise CancelledError


def _end(ended: threading.Event, jobs: SimpleQueue[_Given | None], workers: Sequence[threading.Thread]) -> None:
    ended.set()
    for _ in workers:
        jobs.put(None)
    deadline = time.monotonic() + _PATIENCE
    for worker in workers:
        if worker is not threading.current_thread():  # an object may be collected in any thread
            worker.join(max(0.0, deadline - time.monotonic()))
