"""Scores that cktk-evaluate --json printed, found again for the runs that they are of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cktk.errors import DataError
from cktk.report.runs import Run
from cktk.utils.files import read_json
from cktk.utils.run_layout import BEST, LAST, STUDENT

#: Numbers of a record that are no scores.
_FACTS = {"parameters", "bytes", "sentences", "sentences_per_second", "truncated", "rows", "rows_per_second"}


@dataclass(frozen=True)
class Score:
    """The figures of one model in a file of scores; ``split`` is None where the file does not say it."""

    model: str
    file: Path
    split: str | None
    figures: Mapping[str, float]

    def is_of(self, run: Run, given: str) -> bool:
        """Whether the model is ``run``, which the command line calls ``given``: by its path, or by its --save-dir."""
        path = Path(self.model)
        parts = list(path.parts)
        while parts and (parts[-1] in (STUDENT, BEST, LAST) or parts[-1].startswith("checkpoint")):
            parts.pop()
        folder = Path(*parts)
        names = {Path(given), Path(str(run.config.get("save_dir", given)))}
        return folder in names or folder.resolve() == run.path


def read_scores(path: Path) -> list[Score]:
    """All scores in a file of cktk-evaluate --json, for whichever task; raises `DataError` for another file."""
    found = read_json(path)
    try:
        scores = [score for row in found for score in _scores(row, path)]
    except (TypeError, KeyError, AttributeError, StopIteration):
        scores = []
    if not scores:
        raise DataError(f"{path}: holds no scores; give what cktk-evaluate --json printed")
    return scores


def scores_of(runs: Sequence[Run], given: Sequence[str], scores: Sequence[Score]) -> list[Score]:
    """The score of each run; raises `DataError` for a run that has none, or several that differ."""
    found = []
    for run, name in zip(runs, given, strict=True):
        own = [score for score in scores if score.is_of(run, name)]
        if not own:
            files = ", ".join(dict.fromkeys(str(score.file) for score in scores))
            known = ", ".join(dict.fromkeys(score.model for score in scores))
            raise DataError(f"{name}: {files} has no score of this run, but of {known}; evaluate it, or leave it out")
        if any(score.figures != own[0].figures for score in own):
            raise DataError(f"{name}: has several scores ({', '.join(str(s.file) for s in own)}); give one of them")
        found.append(own[0])
    return found


def _scores(row: Mapping[str, Any], path: Path) -> list[Score]:
    if "tasks" not in row:
        return [Score(row["name"], path, None, _numbers(row))]
    found = []
    for task in row["tasks"]:
        split, figures = next(iter(task["splits"].items()))
        found.append(Score(task["model"], path, split, _numbers(figures)))
    return found


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and name not in _FACTS
    }
