"""A metric per epoch, with the points where staged criteria go on to their next stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cktk.errors import ConfigError
from cktk.report.results import Result
from cktk.report.runs import Run, Stage
from cktk.report.style import Look, legend, looks
from cktk.utils.words import alternatives

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats = npt.NDArray[np.float64]


class Course(NamedTuple):
    """The stages that a run, or all of several seeds, went through, and the epoch that it ended in."""

    seed: str
    stages: Sequence[Stage]
    end: float


@dataclass(frozen=True)
class Curve:
    """Mean (n,) and standard deviation (n,) of the seeds of a run at ``epochs`` (n,); ``courses`` are those of each."""

    epochs: Floats
    mean: Floats
    spread: Floats
    seeds: int
    courses: Sequence[Course]


def curves(groups: Mapping[str, Sequence[Result]], metric: str) -> dict[str, Curve]:
    """The curve of each group of seeds.

    Seeds whose validations came at other points are read between these, and the mean goes as far as all of them.
    Raises `ConfigError` for a run whose validations never gave ``metric``.
    """
    return {name: _curve(results, metric) for name, results in groups.items()}


def _curve(results: Sequence[Result], metric: str) -> Curve:
    found = []
    for result in results:
        epochs, values = result.run.curve(metric)
        if not epochs:
            raise ConfigError(
                f"--metric {metric}: the validations of {result.run.path} gave no such figure; "
                f"{alternatives(metric, result.run.figures)}"
            )
        found.append((np.array(epochs), np.array(values)))
    grid = max((epochs for epochs, _ in found), key=len)
    grid = grid[grid <= min(epochs[-1] for epochs, _ in found) + 1e-9]
    if not len(grid):
        grid = found[0][0][:1]
    read = np.stack([np.interp(grid, *curve) for curve in found])
    spread = read.std(axis=0, ddof=1) if len(found) > 1 else np.zeros(len(grid))
    return Curve(grid, read.mean(axis=0), spread, len(found), _courses([result.run for result in results]))


def _courses(runs: Sequence[Run]) -> list[Course]:
    """The stages of the seeds, once where all seeds went through them at the same epochs."""
    staged = [Course(f"seed {run.seed}", run.stages, float(len(run.epoch_ends))) for run in runs if run.stages]
    alike = all(course[1:] == staged[0][1:] for course in staged)
    return [staged[0]._replace(seed="")] if staged and alike else staged


def convergence_figure(found: Mapping[str, Curve], title: str, y_title: str) -> Figure:
    """A line a name with a band of one standard deviation; below, a bar a staged run with its stages."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    drawn = dict(zip(found, looks(len(found)), strict=True))
    bars = [(f"{name} {c.seed}".strip(), drawn[name], c) for name, curve in found.items() for c in curve.courses]
    heights = [4.2] + ([0.34 * len(bars) + 0.1] if bars else [])
    figure = Figure(figsize=(8.8, sum(heights) + 0.5))
    panels: Any = figure.subplots(len(heights), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights})
    axes: Axes = panels[0, 0]
    for name, curve in found.items():
        _draw(axes, name, curve, drawn[name])
    last = max(float(curve.epochs[-1]) for curve in found.values())
    axes.set_xlim(0, last * 1.02)
    axes.set_title(title)
    axes.set_ylabel(y_title)
    several = any(curve.seeds > 1 for curve in found.values())
    legend(axes, "mean, band: ± standard\ndeviation of seeds" if several else None, inside=False)
    if bars:
        _draw_stages(panels[1, 0], bars, last)
    panels[-1, 0].set_xlabel("epochs")
    panels[-1, 0].xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _draw(axes: Axes, name: str, curve: Curve, look: Look) -> None:
    label = f"{name} ({curve.seeds} seeds)" if curve.seeds > 1 else name
    marker = look.marker if len(curve.epochs) <= 40 else ""
    (line,) = axes.plot(curve.epochs, curve.mean, label=label, color=look.color, linestyle=look.linestyle)
    line.set(marker=marker, markersize=4, gid=f"series {name}")
    if curve.seeds > 1:
        low, high = curve.mean - curve.spread, curve.mean + curve.spread
        axes.fill_between(curve.epochs, low, high, color=look.color, alpha=0.15, linewidth=0)
    for course in curve.courses:
        for stage in course.stages[1:]:
            line = axes.axvline(stage.begins, color=look.color, linestyle=(0, (2, 3)), linewidth=0.9, zorder=1)
            line.set_gid(f"switch {name} {stage.number}")


def _draw_stages(axes: Axes, bars: Sequence[tuple[str, Look, Course]], last: float) -> None:
    """A bar a run, cut where a stage ends, with the stages' names inside as far as they fit."""
    for place, (_, look, (_, stages, end)) in enumerate(bars):
        ends = [stage.begins for stage in stages[1:]] + [max(end, stages[-1].begins)]
        sides = any(stage.name.startswith("decoder") for stage in stages)
        for stage, end in zip(stages, ends, strict=True):
            width = end - stage.begins
            axes.barh(place, width, left=stage.begins, height=0.8, color=look.color, alpha=0.25, edgecolor="white")
            room = int(width / last * 85)
            name = stage.name if sides else stage.name.removeprefix("encoder ")
            words = next((text for text in (name, str(stage.number)) if len(text) <= room), "")
            axes.text(stage.begins + width / 2, place, words, ha="center", va="center", fontsize=8)
    axes.set_yticks(range(len(bars)), [name for name, _, _ in bars], fontsize=8)
    axes.set_ylim(len(bars) - 0.4, -0.6)
    axes.set_ylabel("stages")
    axes.grid(visible=False)
    axes.tick_params(left=False)
    for side in ("left", "top", "right"):
        axes.spines[side].set_visible(False)
