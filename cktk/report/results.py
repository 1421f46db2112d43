"""One figure of each run, and runs with one name taken together: seeds as mean and spread, sizes as a line."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from cktk.errors import ConfigError, DataError
from cktk.report.runs import Run
from cktk.report.scores import Score
from cktk.report.sizes import Size
from cktk.utils.words import alternatives


@dataclass(frozen=True)
class Result:
    """A run with its name, its size (None: no weights are left) and its value of the metric on ``split``."""

    name: str
    run: Run
    size: Size | None
    value: float
    split: str | None


@dataclass(frozen=True)
class Point:
    """The results that share a name and a place on the axis; ``spread`` is their standard deviation, 0 of one."""

    x: float
    results: tuple[Result, ...]

    @property
    def mean(self) -> float:
        return fmean(result.value for result in self.results)

    @property
    def spread(self) -> float:
        return stdev(result.value for result in self.results) if len(self.results) > 1 else 0.0


def choose_metric(wanted: str | None, runs: Sequence[Run]) -> str:
    """``wanted``, or what all ``runs`` chose their checkpoints by; raises `ConfigError` where these differ."""
    if wanted is not None:
        return wanted
    found = {run.metric: run for run in runs}
    if len(found) > 1:
        words = ", ".join(f"{name} of {run.path.name}" for name, run in found.items())
        raise ConfigError(f"the runs chose their checkpoints by different figures ({words}); choose one with --metric")
    return next(iter(found))


def value_of(run: Run, given: str, metric: str, score: Score | None) -> float:
    """The metric of ``run``: of its score, or of the validation that chose its best checkpoint."""
    figures = run.best if score is None else score.figures
    if metric not in figures:
        present = run.figures if score is None else list(score.figures)
        where = given if score is None else f"{score.file}: {score.model}"
        raise ConfigError(f"--metric {metric}: {where} has no such figure; {alternatives(metric, present)}")
    value = float(figures[metric])
    if not math.isfinite(value):
        raise DataError(f"{given}: {metric} is {value}; leave the run out")
    return value


def seeds_of(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Results that differ in nothing but their seeds, by name; with size and rows where a name stands for several.

    Raises `ConfigError` for two with one seed: they are no seeds of the same thing.
    """
    found: dict[str, list[Result]] = {}
    names = list(dict.fromkeys(result.name for result in results))

    def order(result: Result) -> tuple[int, int, int]:
        return names.index(result.name), result.size.parameters if result.size else 0, result.run.rows or 0

    for result in sorted(results, key=order):
        group = found.setdefault(_label(result, results, size=True, rows=True), [])
        for other in group:
            if other.run.seed == result.run.seed:
                raise ConfigError(
                    f"{other.run.path} and {result.run.path} are both called {result.name} and have seed "
                    f"{result.run.seed}; give names as NAME=DIR"
                )
        group.append(result)
    return found


def by_parameters(results: Sequence[Result]) -> dict[str, list[Point]]:
    """Points along the number of parameters in millions, by name; with rows where a name stands for several."""
    return _points(results, lambda r: r.size.parameters / 1e6 if r.size else None, size=False, rows=True)


def by_rows(results: Sequence[Result]) -> dict[str, list[Point]]:
    """Points along the number of training rows, by name; with sizes where a name stands for several."""
    return _points(results, lambda r: r.run.rows, size=True, rows=False)


def _points(
    results: Sequence[Result], place: Callable[[Result], float | None], *, size: bool, rows: bool
) -> dict[str, list[Point]]:
    found: dict[str, dict[float, list[Result]]] = {}
    for result in results:
        if (x := place(result)) is not None:
            found.setdefault(_label(result, results, size=size, rows=rows), {}).setdefault(x, []).append(result)
    return {name: [Point(x, tuple(groups[x])) for x in sorted(groups)] for name, groups in found.items()}


def _label(result: Result, results: Sequence[Result], *, size: bool, rows: bool) -> str:
    """The name, and what else it takes to tell the result from others of that name."""
    alike = [other for other in results if other.name == result.name]
    words = [result.name]
    if size and result.size and len({other.size for other in alike}) > 1:
        words.append(result.size.shape)
    if rows and result.run.rows and len({other.run.rows for other in alike}) > 1:
        words.append(f"{result.run.rows:,} rows")
    return ", ".join(words)
