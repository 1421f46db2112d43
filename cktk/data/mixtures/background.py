"""Work that goes on beside the training, in a few threads."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")
_Job = tuple[Future[Any], Callable[[], Any]]

#: How long the process waits, when it exits, for jobs to notice (s).
_PATIENCE = 5.0


class Background:
    """Runs jobs in ``threads`` threads, which end with this object or with the process, whichever is first.

    A job that takes long looks at ``ended`` now and then and returns early once it is set; it must not refer to this
    object, which could not end before it. `concurrent.futures` offers pools, too, but lets the process exit only
    when all their jobs are done.
    """

    def __init__(self, threads: int) -> None:
        self.ended = threading.Event()
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        workers = [
            threading.Thread(target=_work, args=(self._jobs,), name="cktk-background", daemon=True)
            for _ in range(threads)
        ]
        for worker in workers:
            worker.start()
        weakref.finalize(self, _end, self.ended, self._jobs, workers)

    def start(self, job: Callable[[], T]) -> Future[T]:
        """What ``job`` will have returned or raised; jobs begin in the order in which they are given."""
        future: Future[T] = Future()
        self._jobs.put((future, job))
        return future


def _work(jobs: SimpleQueue[_Job | None]) -> None:
    while (given := jobs.get()) is not None:
        future, job = given
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(job())
            except BaseException as error:  # it is for whoever asks for the result
                future.set_exception(error)
        # What waits for the next job shall not hold on to the last one.
        del given, future, job


def _end(ended: threading.Event, jobs: SimpleQueue[_Job | None], workers: Sequence[threading.Thread]) -> None:
    ended.set()
    for _ in workers:
        jobs.put(None)
    deadline = time.monotonic() + _PATIENCE
    for worker in workers:
        if worker is not threading.current_thread():  # an object may be collected in any thread
            worker.join(max(0.0, deadline - time.monotonic()))
