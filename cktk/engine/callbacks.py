"""What watches a run: the metric log and the progress bar. The loop calls them and never waits for their answers."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

from cktk.engine.update import UpdateResult
from cktk.metrics.meters import Meters
from cktk.metrics.writers import JsonlWriter, Writer


class MetricLog:
    """Averages the loss's parts between two log lines and hands them to the writers; `speed` is the present one.

    ``log`` is the JSONL file whose bytes are a function of the run alone; figures that depend on the clock go to the
    other writers only, under the group "speed".
    """

    def __init__(self, log: JsonlWriter, others: Sequence[Writer], interval: int) -> None:
        self._log, self._others, self._interval = log, others, interval
        self._meters = Meters()
        self._tokens, self._since = 0, time.monotonic()
        self.speed: dict[str, float] = {}

    def on_update(self, epoch: int, update: int, lr: float, result: UpdateResult) -> dict[str, float] | None:
        """Take an update in; at the end of an interval, write and return its averages."""
        for name, value in result.values.items():
            self._meters.add(name, value, 1)
        self._meters.add("grad_norm", result.grad_norm, 1)
        self._tokens += result.counts["target_token"]
        self.speed = {"target_tokens_per_second": self._tokens / max(time.monotonic() - self._since, 1e-9)}
        if update % self._interval:
            return None
        values = {"epoch": epoch, "lr": lr, **self._meters.averages()}
        self._write("train", update, values)
        for writer in self._others:
            writer.write("speed", update, self.speed)
        self._meters.reset()
        self._tokens, self._since = 0, time.monotonic()
        return {**values, **self.speed}

    def on_validation(self, epoch: int, update: int, values: Mapping[str, float]) -> None:
        """Write the figures of a validation; its time does not count against the speed."""
        self._write("valid", update, {"epoch": epoch, **values})
        self._tokens, self._since = 0, time.monotonic()

    def on_stage(self, epoch: int, update: int, name: str, figures: Mapping[str, float]) -> None:
        """Write that the stage ``name`` of a staged criterion begins with ``epoch``, after ``update`` updates."""
        self._write("stage", update, {"epoch": epoch, "name": name, **figures})

    @property
    def empty(self) -> bool:
        """Whether nothing has been written."""
        return self._log.position() == 0

    def _write(self, group: str, update: int, values: Mapping[str, float | str]) -> None:
        for writer in (self._log, *self._others):
            writer.write(group, update, values)

    def state_dict(self) -> dict[str, Any]:
        return {"meters": self._meters.state_dict(), "bytes": self._log.position()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue the averages of an interrupted interval; the file was cut back when it was opened."""
        self._meters.load_state_dict(state["meters"])

    def close(self) -> None:
        for writer in (self._log, *self._others):
            writer.close()


class ProgressBar:
    """A live bar on stderr with the newest loss terms, speed and time left; plain lines where stderr is no terminal."""

    def __init__(self, fraction_before: float) -> None:
        self.console = Console(stderr=True)
        columns: list[ProgressColumn] = [TextColumn("{task.description}"), BarColumn(bar_width=20)]
        columns += [TextColumn("{task.percentage:>5.1f}%"), TimeElapsedColumn(), _TimeLeft(fraction_before)]
        self._progress = Progress(*columns, console=self.console, disable=not self.console.is_terminal)
        self._task = self._progress.add_task("starting", total=1.0)
        self._progress.update(self._task, completed=fraction_before)
        self._left = _TimeLeft(fraction_before)
        self._progress.start()

    def on_update(self, place: str, fraction: float, values: Mapping[str, float]) -> None:
        """Show the newest update; ``place`` says where in the run it is."""
        words = f"{place} | {describe(values)}"
        self._progress.update(self._task, description=words, completed=fraction)

    def say(self, words: str, fraction: float) -> None:
        """Print a lasting line above the bar."""
        left = "" if self.console.is_terminal else f" | {self._left.words(fraction)}"
        self.console.print(words + left, highlight=False, soft_wrap=True, markup=False)

    def close(self) -> None:
        self._progress.stop()


class _TimeLeft(ProgressColumn):
    """Time left at the speed of this process, which may have started in the middle of the run."""

    def __init__(self, fraction_before: float) -> None:
        super().__init__()
        self._before, self._start = fraction_before, time.monotonic()

    def render(self, task: Task) -> Text:
        return Text(self.words(task.completed))

    def words(self, fraction: float) -> str:
        done = fraction - self._before
        if done <= 0:
            return "-:--:-- left"
        seconds = int((time.monotonic() - self._start) * max(0.0, 1 - fraction) / done)
        return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d} left"


_HIDDEN = {"epoch", "grad_norm"}


def describe(values: Mapping[str, float]) -> str:
    """``loss 3.214 ce 2.90 kl 0.31``: the figures in short, without those of single layer pairs."""
    shown = [(name, value) for name, value in values.items() if "<-" not in name and name not in _HIDDEN]
    shown.sort(key=lambda item: item[0] != "loss")
    short = {"target_tokens_per_second": "tokens/s"}
    return " ".join(f"{short.get(name, name)} {value:.4g}" for name, value in shown)
