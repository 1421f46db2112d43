"""Reading run directories: what was trained, what its validations said, when its stages changed."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from cktk.engine.configs import ValidationConfig
from cktk.engine.selection import BestTracker
from cktk.errors import ConfigError, DataError
from cktk.utils.files import read_json
from cktk.utils.run_layout import LAST

_ABOUT = ("group", "update", "epoch")


@dataclass(frozen=True)
class Stage:
    """A stage of a staged criterion: which one, what it trains, and how many epochs were over when it began."""

    number: int
    name: str
    begins: float


@dataclass(frozen=True)
class Run:
    """A run directory; ``config`` are its options, ``records`` the lines of its log, ``rows`` what it is trained on.

    ``epoch_ends`` are the updates after which epochs 1, 2, ... were over, the last one perhaps at the rate of those
    before.
    """

    path: Path
    config: Mapping[str, Any]
    records: Sequence[Mapping[str, Any]]
    rows: int | None
    epoch_ends: Sequence[float]

    @property
    def seed(self) -> int:
        return int(self.config.get("seed", 1))

    @property
    def metric(self) -> str:
        """The figure that chose its best checkpoint."""
        return self._validation.best_checkpoint_metric

    @property
    def split(self) -> str:
        """The split that it was validated on."""
        return str(self.config.get("valid_subset", "valid"))

    @cached_property
    def validations(self) -> list[Mapping[str, Any]]:
        """All validations; raises `DataError` where there are none."""
        found = [record for record in self.records if record["group"] == "valid"]
        if not found:
            raise DataError(
                f"{self.path}: has no validations; train without --disable-validation, or give scores of "
                "cktk-evaluate --json"
            )
        return found

    @property
    def figures(self) -> list[str]:
        """Names of what validations gave, those of single layers and corpora at the end."""
        names = dict.fromkeys(name for record in self.validations for name in record if name not in _ABOUT)
        return sorted(names, key=lambda name: "/" in name)

    @property
    def best(self) -> Mapping[str, Any]:
        """The validation that chose the best checkpoint: of those of the last stage that was validated."""
        settings = self._validation
        tracker = BestTracker(settings.best_checkpoint_metric, settings.maximize_best_checkpoint_metric, 0)
        best = self.validations[0]
        for record in self.records:
            if record["group"] == "stage":
                tracker.begin_anew()
            elif record["group"] == "valid" and settings.best_checkpoint_metric in record and tracker.improved(record):
                best = record
        return best

    @property
    def stages(self) -> list[Stage]:
        """The stages that it went through, in order; none where its criterion has none."""
        found = [record for record in self.records if record["group"] == "stage"]
        return [Stage(int(r["stage"]), str(r["name"]), self.epoch_of(r["update"])) for r in found]

    def epoch_of(self, update: float) -> float:
        """How many epochs were over after ``update`` updates."""
        return float(np.interp(update, [0.0, *self.epoch_ends], np.arange(len(self.epoch_ends) + 1)))

    def curve(self, metric: str) -> tuple[list[float], list[float]]:
        """Epochs and values of the validations that gave ``metric``."""
        found = [record for record in self.validations if metric in record]
        return [self.epoch_of(record["update"]) for record in found], [float(record[metric]) for record in found]

    def locate(self, path: str) -> str:
        """``path`` as its training meant it, which may have run in another folder."""
        saved = Path(str(self.config.get("save_dir", "")))
        if Path(path).exists() or not saved.parts or self.path.parts[-len(saved.parts) :] != saved.parts:
            return path
        beside = Path(*self.path.parts[: -len(saved.parts)]) / path
        return str(beside) if beside.exists() else path

    @cached_property
    def _validation(self) -> ValidationConfig:
        return ValidationConfig(
            best_checkpoint_metric=str(self.config.get("best_checkpoint_metric", "loss")),
            maximize_best_checkpoint_metric=bool(self.config.get("maximize_best_checkpoint_metric", False)),
        )


def read_run(path: Path) -> Run:
    """The run directory ``path``; raises `ConfigError` for another folder, `DataError` for a damaged one."""
    if not path.is_dir():
        raise ConfigError(f"{path}: no such folder; give run directories of cktk-train")
    if not (path / "config.yaml").is_file():
        raise ConfigError(f"{path}: no run directory (config.yaml is missing); give what cktk-train --save-dir made")
    config = _config(path / "config.yaml")
    records = _records(path / "log.jsonl")
    state = path / LAST / "trainer.json"
    newest = read_json(state) if state.is_file() else {}
    rows = config.get("train_subset") or _rows(newest.get("data", {}).get("plan", {}))
    return Run(path.resolve(), config, records, rows, _epoch_ends(records, newest))


def _config(path: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        found = None
    if not isinstance(found, dict):
        raise DataError(f"{path}: damaged; leave the run out")
    return found


def _records(path: Path) -> list[dict[str, Any]]:
    """The lines of a log; one that a running training is just writing is left out."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; the run has not begun to train, leave it out") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); leave the run out") from error
    found = []
    for number, line in enumerate(text.split("\n")[:-1], start=1):
        try:
            record = json.loads(line)
            found.append({**record, "group": record["group"], "update": int(record["update"])})
        except (ValueError, KeyError, TypeError):
            raise DataError(f"{path}: line {number} is damaged; delete it, or leave the run out") from None
    return found


def _rows(plan: Mapping[str, Any]) -> int | None:
    """The rows that a data position is about; None where streams leave that open."""
    if "corpora" in plan:
        found = [corpus.get("rows") for corpus in plan["corpora"].values()]
        return None if None in found else sum(found)
    return plan.get("rows")


def _epoch_ends(records: Sequence[Mapping[str, Any]], newest: Mapping[str, Any]) -> list[float]:
    """After which update each epoch was over, as far as log and newest checkpoint tell.

    An epoch ends no earlier than the last line about it. Of the last epoch, which may not be over, only a checkpoint
    at its end says so; otherwise it is taken to be as long as those before were in the mean.
    """
    last: dict[int, int] = {}
    switched: dict[int, float] = {}
    for record in records:
        epoch = int(record.get("epoch", 1))
        if record["group"] != "stage":
            last[epoch] = record["update"]
        elif epoch > 1:  # the line of a stage stands between two epochs, and names the one that is to come
            switched[epoch - 1] = float(record["update"])
    if not last:
        return []
    final = max(last)
    known = {0: 0.0, **{epoch: float(last[epoch]) for epoch in sorted(last)}}
    if newest.get("epoch_end") and newest.get("epoch") == final and newest.get("update", 0) >= last[final]:
        known[final] = float(newest["update"])
    elif earlier := max((epoch for epoch in last if epoch < final), default=0):
        known[final] = max(known[final], known[earlier] * final / earlier)
    known = dict(sorted({**known, **switched}.items()))
    ends: list[float] = np.interp(np.arange(1, final + 1), list(known), list(known.values())).tolist()
    return ends


def labels(paths: Sequence[Path], runs: Sequence[Run]) -> list[str]:
    """Names for ``runs`` found at ``paths``: what tells their paths apart, seed and number of rows left out.

    ``runs/cka/subset-1000/seed-2`` and ``runs/cka_s1`` are both called ``cka`` beside ``runs/kl``.
    """
    kept = []
    for path, run in zip(paths, runs, strict=True):
        text = path.resolve().as_posix()
        for words, number in (("seed|s", run.seed), ("subset|rows|n", run.config.get("train_subset"))):
            text = re.sub(rf"[-_./](?:{words})[-_]?{number}(?=[-_./]|$)", "", text)
        kept.append(Path(text).parts)
    shared = 0
    while len({parts[: shared + 1] for parts in kept}) == 1 and all(len(parts) > shared + 1 for parts in kept):
        shared += 1
    return ["/".join(parts[shared:]) for parts in kept]
