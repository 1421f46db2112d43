"""``--workers``: several processes that each open the model and share the cores."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, Self

from cktk.config.command import Settings
from cktk.errors import CktkError
from cktk.plugins import load_plugins
from cktk_cli.outputs import Finished, Output, Window, open_model
from cktk_cli.task import task_component

#: Most sentences of a pipe that a worker gets together: as many as a batch has.
_PART = 64
#: Windows of a file that are in work side by side: there is always one more to go on with.
_WINDOWS = 2


class _Part(NamedTuple):
    """Positions in a window, and what will come of them: their outputs and counts."""

    positions: list[int]
    result: Future[tuple[list[list[Output]], dict[str, int]]]


class _Dealt(NamedTuple):
    """A window on its way."""

    window: Window
    started: float
    parts: list[_Part]


class Workers:
    """``count`` processes that each open the model that ``settings`` ask for, with their share of the cores.

    Batches of a window are those that one process would have, and are dealt out. With ``live`` windows, which may be
    single lines, as many are in work side by side as there are workers. Errors of a worker are raised here, and
    the end of one that was killed is a `CktkError`. Leaving the context ends all processes.
    """

    def __init__(self, settings: Settings, count: int, *, live: bool) -> None:
        self._settings, self._count, self._live = settings, count, live
        self._jobs: queue.SimpleQueue[tuple[Future[Any], tuple[Any, ...]] | None] = queue.SimpleQueue()
        self._processes: list[multiprocessing.process.BaseProcess] = []

    def __enter__(self) -> Self:
        spawn = multiprocessing.get_context("spawn")
        threads = max(1, _cores() // self._count)
        openings = []
        try:
            for _ in range(self._count):
                ours, theirs = spawn.Pipe()
                process = spawn.Process(target=_work, args=(theirs, self._settings.values, threads), daemon=True)
                with _deaf_to_interrupts():
                    process.start()
                theirs.close()
                self._processes.append(process)
                openings.append(opening := Future[None]())
                threading.Thread(target=self._serve, args=(process, ours, opening), daemon=True).start()
            for opening in openings:
                opening.result()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._end()

    def _end(self) -> None:
        for process in self._processes:
            process.terminate()
            self._jobs.put(None)
        for process in self._processes:
            process.join()

    def ask(self, question: str, *arguments: Any) -> Any:
        """What a worker's model returns from its method of that name."""
        return self._submit(question, *arguments).result()

    def work(self, windows: Iterable[Window], on_progress: Callable[[int], None]) -> Iterator[Finished]:
        """Each window with its outputs, in order; ``on_progress`` is told how many sentences were finished."""
        slots, ended = threading.Semaphore(max(_WINDOWS, self._count) if self._live else _WINDOWS), threading.Event()
        dealt: queue.SimpleQueue[_Dealt | BaseException | None] = queue.SimpleQueue()

        def deal() -> None:
            # In a thread of its own: while it waits for input, what is finished gets written.
            try:
                source = iter(windows)
                while slots.acquire() and not ended.is_set() and (window := next(source, None)) is not None:
                    dealt.put(self._deal(window))
                dealt.put(None)
            except BaseException as error:  # it is for whoever waits for outputs
                dealt.put(error)

        threading.Thread(target=deal, name="cktk-deal", daemon=True).start()
        try:
            while (found := dealt.get()) is not None:
                if isinstance(found, BaseException):
                    raise found
                yield _collected(found, on_progress)
                slots.release()
        finally:
            ended.set()
            slots.release()

    def _deal(self, window: Window) -> _Dealt:
        started = time.perf_counter()
        parts = []
        for positions in self._parts(window):
            items = [window.items[position] for position in positions]
            prefixes = window.prefixes and [window.prefixes[position] for position in positions]
            parts.append(_Part(positions, self._submit("translate", items, prefixes)))
        return _Dealt(window, started, parts)

    def _parts(self, window: Window) -> list[list[int]]:
        """Positions in a window that a worker gets together."""
        if not self._live:
            found: list[list[int]] = self.ask("batches", window.items)
            return found
        # No other run has the same windows, so that nothing has to be alike: all workers get a share of each.
        order = sorted(range(len(window.items)), key=lambda position: -len(window.items[position]))
        size = min(_PART, -(-len(order) // self._count))
        return [order[start : start + size] for start in range(0, len(order), size)]

    def _submit(self, *call: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self._jobs.put((future, call))
        return future

    def _serve(self, process: Any, connection: Connection, opening: Future[Any]) -> None:
        """Hand jobs to a worker, one after the other; runs in a thread."""
        _receive(process, connection, opening)
        while (given := self._jobs.get()) is not None:
            future, call = given
            with suppress(OSError):  # it has ended: receiving says so
                connection.send(call)
            _receive(process, connection, future)


def _receive(process: Any, connection: Connection, future: Future[Any]) -> None:
    try:
        failed, found = connection.recv()
    except (EOFError, OSError):
        process.join()
        failed, found = True, _death(process.exitcode)
    except Exception as error:  # what came cannot be read
        failed, found = True, error
    if failed:
        future.set_exception(found)
    else:
        future.set_result(found)


def _death(exit_code: int | None) -> CktkError:
    how = f" by signal {-exit_code}" if exit_code is not None and exit_code < 0 else ""
    return CktkError(
        f"a worker process was ended{how}, perhaps for lack of memory; run the command again with fewer --workers or "
        "a smaller --batch-size"
    )


def _collected(dealt: _Dealt, on_progress: Callable[[int], None]) -> Finished:
    outputs: list[list[Output]] = [[] for _ in dealt.window.items]
    counts: Counter[str] = Counter()
    for part in dealt.parts:
        found, counted = part.result.result()
        for position, nbest in zip(part.positions, found, strict=True):
            outputs[position] = nbest
        counts.update(counted)
        on_progress(len(part.positions))
    return Finished(outputs, dealt.started, dealt.window.read, dict(counts))


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """What is started here never hears of Ctrl-C, which is the parent's to handle."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _cores() -> int:
    """The cores that this process may use, or as many threads as OMP_NUM_THREADS says."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    if given.isdecimal() and int(given) > 0:
        return int(given)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _work(connection: Connection, values: dict[str, Any], threads: int) -> None:
    """What a worker does: open the model, then answer calls until it is ended."""
    os.dup2(2, 1)  # stdout is for outputs
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    os.environ["OMP_NUM_THREADS"] = str(threads)  # torch looks at it when it is loaded, which it is not yet
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    model: Any = None

    def open_it() -> None:
        nonlocal model
        load_plugins(values["user_dir"])
        model = open_model(Settings(values, (), [task_component([])]))

    with suppress(EOFError, ConnectionError):  # the parent has ended
        _answer(connection, open_it)
        while True:
            method, *arguments = connection.recv()
            _answer(connection, partial(getattr(model, method), *arguments))


def _answer(connection: Connection, call: Callable[[], Any]) -> None:
    """Send whether ``call`` failed, and what it returned or raised."""
    try:
        found = (False, call())
    except Exception as error:
        if not isinstance(error, (CktkError, OSError, MemoryError)):  # a fault: keep where it happened
            error.add_note(traceback.format_exc())
        found = (True, error)
    try:
        connection.send(found)
    except (TypeError, AttributeError, ValueError) as error:  # an error that cannot be sent
        connection.send((True, RuntimeError(f"{found[1]!r} cannot be sent: {error}")))


def _exit_with_parent() -> None:
    # A killed parent cannot end its workers, and they would wait for calls for ever.
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
