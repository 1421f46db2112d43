"""A report of runs: what they reached, in numbers and figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cktk.errors import CheckpointError, ConfigError
from cktk.report.configs import AttentionConfig, FigureName, ReportConfig
from cktk.report.results import Result, by_parameters, by_rows, choose_metric, seeds_of, value_of
from cktk.report.runs import Run, labels, read_run
from cktk.report.scores import Score, read_scores, scores_of
from cktk.report.sizes import Size, size_of
from cktk.report.style import metric_title, styled, write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from cktk.report.attention import Maps

_FILES = {"parameters": "parameters", "data": "training-rows", "convergence": "convergence", "attention": "attention"}


@dataclass
class Report:
    """What is to be said about some runs: ``groups`` are their results by name, seeds together."""

    metric: str
    results: list[Result]
    groups: dict[str, list[Result]]
    maps: Maps | None = None
    files: list[Path] = field(default_factory=list)


def make_report(config: ReportConfig, attention: AttentionConfig) -> Report:
    """Read the runs, and draw the figures that were asked for into ``config.output``.

    Raises `ConfigError` and `DataError` for what is no run, and for figures that the runs have nothing for.
    """
    _check(config, attention)
    given, runs, names = _runs([text for text in config.runs if not _is_scores(text)])
    files = [Path(text) for text in config.runs if _is_scores(text)]
    scores: list[Score] = [score for path in files for score in read_scores(path)]
    found: Sequence[Score | None] = scores_of(runs, given, scores) if scores else [None] * len(runs)
    metric = choose_metric(config.metric, runs)
    results = []
    for name, path, run, score in zip(names, given, runs, found, strict=True):
        value = value_of(run, path, metric, score)
        results.append(Result(name, run, _size(path), value, run.split if score is None else score.split))
    splits = {result.split for result in results}
    if len(splits) > 1:
        raise ConfigError(f"the scores are of different splits ({', '.join(map(str, splits))}); give those of one")
    report = Report(metric, results, seeds_of(results))
    if attention.attention_text is not None:
        report.maps = _maps(report, given, attention)
    if config.output is not None:
        report.files = _draw(report, config, Path(config.output))
    return report


def record(report: Report) -> dict[str, Any]:
    """The report as JSON values."""
    groups = {result.run.path: name for name, results in report.groups.items() for result in results}
    found: dict[str, Any] = {
        "metric": report.metric,
        "split": report.results[0].split,
        "runs": [_row(result, groups[result.run.path]) for result in report.results],
        "figures": [str(path) for path in report.files],
    }
    if report.maps is not None:
        teacher, *students = report.maps.maps
        found["attention"] = {
            "kind": report.maps.kind,
            "head": report.maps.head,
            "tokens": report.maps.queries,
            "teacher_layer": teacher.layer,
            "students": [{"name": s.name, "layer": s.layer, "kl": s.kl, "kl_of_layers": s.layers} for s in students],
        }
    return found


def _row(result: Result, group: str) -> dict[str, Any]:
    run = result.run
    return {
        "name": result.name,
        "group": group,
        "run": str(run.path),
        "seed": run.seed,
        "parameters": result.size.parameters if result.size else None,
        "shape": result.size.shape if result.size else None,
        "training_rows": run.rows,
        "value": result.value,
        "stages": [{"number": s.number, "name": s.name, "begins": s.begins} for s in run.stages],
    }


def _is_scores(text: str) -> bool:
    return text.endswith(".json") and not Path(text).is_dir()


def _check(config: ReportConfig, attention: AttentionConfig) -> None:
    if all(_is_scores(text) for text in config.runs):
        raise ConfigError("RUNS: no run directory is given; name some that cktk-train --save-dir made")
    if config.figures and config.output is None:
        raise ConfigError("--figures needs a folder to draw into: give --output DIR")
    if "attention" in config.figures and attention.attention_text is None:
        raise ConfigError("--figures attention needs a text: give --attention-text TEXT")


def _runs(arguments: Sequence[str]) -> tuple[list[str], list[Run], list[str]]:
    """What the command line calls the runs, the runs, and their names."""
    given, names = [], []
    for text in arguments:
        name, equals, path = text.partition("=")
        named = bool(equals and name) and not Path(text).exists()
        given.append(path if named else text)
        names.append(name if named else None)
    runs = [read_run(Path(path)) for path in given]
    for number, run in enumerate(runs):
        if run.path in (other.path for other in runs[:number]):
            raise ConfigError(f"RUNS: {given[number]} is given twice; name each run once")
    found = labels([Path(path) for path in given], runs)
    return given, runs, [name or label for name, label in zip(names, found, strict=True)]


def _size(path: str) -> Size | None:
    try:
        return size_of(path)
    except CheckpointError:
        return None  # its checkpoints were deleted: the log still says how it went


def _maps(report: Report, given: Sequence[str], attention: AttentionConfig) -> Maps:
    from cktk.report.attention import attention_maps

    several = {result.run.path for results in report.groups.values() if len(results) > 1 for result in results}
    names = {result.run.path: name for name, results in report.groups.items() for result in results}
    shown = []
    for path, result in zip(given, report.results, strict=True):
        seed = f", seed {result.run.seed}" if result.run.path in several else ""
        shown.append((names[result.run.path] + seed, path, result.run))
    return attention_maps(shown, attention)


def _draw(report: Report, config: ReportConfig, folder: Path) -> list[Path]:
    wanted = config.figures or _default_figures(report)
    with styled():
        # All are made before the first is written: an error leaves no part of a report.
        made = {name: _figure(name, report) for name in dict.fromkeys(wanted)}
        return [path for name, figure in made.items() for path in write(figure, folder, _FILES[name], config.format)]


def _default_figures(report: Report) -> list[FigureName]:
    """What the runs have something to show for."""
    found: list[FigureName] = []
    if len({result.size.parameters for result in report.results if result.size}) > 1:
        found.append("parameters")
    if len({result.run.rows for result in report.results if result.run.rows}) > 1:
        found.append("data")
    if all(any(record["group"] == "valid" for record in result.run.records) for result in report.results):
        found.append("convergence")
    return found if report.maps is None else [*found, "attention"]


def _figure(name: FigureName, report: Report) -> Figure:
    # matplotlib takes a second to import, which a table does without.
    from cktk.report.attention_figure import attention_figure
    from cktk.report.convergence import convergence_figure, curves
    from cktk.report.quality import quality_figure

    y_title = metric_title(report.metric, report.results[0].split)
    if name == "attention":
        assert report.maps is not None
        return attention_figure(report.maps)
    if name == "convergence":
        run = report.results[0].run
        found = curves(report.groups, report.metric)
        return convergence_figure(found, "Quality per epoch", metric_title(report.metric, run.split))
    rows = name == "data"
    series = by_rows(report.results) if rows else by_parameters(report.results)
    if not series:
        missing = "number of training rows" if rows else "weights, which would tell their size"
        raise ConfigError(f"--figures {name}: the runs have no {missing}; leave it out")
    title = "Quality against training-set size" if rows else "Quality against parameters"
    return quality_figure(series, title, y_title, rows=rows)
