"""Quality against the number of parameters, or of training rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from cktk.report.results import Point
from cktk.report.style import Look, legend, looks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Ticks nearer than this part of the axis have their words one below the other.
_NEAR = 0.09
#: Points of several lines at one place stand so far apart, as a part of the axis.
_APART = 0.006


def quality_figure(series: Mapping[str, Sequence[Point]], title: str, y_title: str, *, rows: bool) -> Figure:
    """A line (or point) a name, with seeds as mean and standard deviation; the x axis is logarithmic."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.6))
    axes = figure.add_subplot()
    places = sorted({point.x for points in series.values() for point in points})
    span = math.log10(places[-1] / places[0]) if len(places) > 1 else 1.0
    for (name, points), look in zip(series.items(), looks(len(series)), strict=True):
        _draw(axes, name, points, [_beside(name, point.x, series, span) for point in points], look)
    axes.set_xscale("log")
    margin = 10 ** (0.08 * span)
    axes.set_xlim(places[0] / margin, places[-1] * margin)
    words = {x: _tick(x, series, rows=rows) for x in places}
    _set_ticks(axes, words, span)
    axes.set_title(title)
    axes.set_xlabel("training rows" if rows else "parameters of the model (layers x width)")
    axes.set_ylabel(y_title)
    axes.margins(y=0.12)
    several = any(len(point.results) > 1 for points in series.values() for point in points)
    legend(axes, "mean ± standard deviation of seeds" if several else None)
    return figure


def _beside(name: str, x: float, series: Mapping[str, Sequence[Point]], span: float) -> float:
    """Where the point of ``name`` at ``x`` is drawn: a little aside where others are there, too."""
    there = [other for other, points in series.items() if any(point.x == x for point in points)]
    place: float = x * 10 ** ((there.index(name) - (len(there) - 1) / 2) * _APART * span)
    return place


def _draw(axes: Axes, name: str, points: Sequence[Point], x: Sequence[float], look: Look) -> None:
    mean = [point.mean for point in points]
    seeds = max(len(point.results) for point in points)
    label = f"{name} ({seeds} seeds)" if seeds > 1 else name
    low = [point.mean - point.spread for point in points]
    high = [point.mean + point.spread for point in points]
    axes.plot(x, mean, label=label, gid=f"series {name}", **look._asdict())
    if seeds > 1:
        if len(points) > 1:
            axes.fill_between(x, low, high, color=look.color, alpha=0.15, linewidth=0)
        spread = [point.spread for point in points]
        axes.errorbar(x, mean, spread, fmt="none", ecolor=look.color, elinewidth=1.2, capsize=3)


def _tick(x: float, series: Mapping[str, Sequence[Point]], *, rows: bool) -> str:
    if rows:
        return f"{x:,.0f}"
    shapes = {
        result.size.shape: None
        for points in series.values()
        for point in points
        if point.x == x
        for result in point.results
        if result.size
    }
    return f"{x:.3g} M\n{', '.join(shapes)}"


def _set_ticks(axes: Axes, words: Mapping[float, str], span: float) -> None:
    """A tick at each place, its words lower where they would run into those of the one before."""
    shown, before, lower = [], -math.inf, False
    for x, text in words.items():
        lower = math.log10(x) - before < _NEAR * 1.16 * span and not lower
        shown.append("\n" * (text.count("\n") + 1) * lower + text)
        before = math.log10(x)
    axes.set_xticks(list(words), shown)
    axes.set_xticks([], minor=True)
