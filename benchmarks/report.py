"""The result of a benchmark: rows with a target, as a table and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Figure:
    """One measured value. A target of None is reported only; ``meets`` is then true."""

    name: str
    value: float
    target: float | None
    better: Literal["lower", "higher"] = "lower"

    @property
    def meets(self) -> bool:
        if self.target is None:
            return True
        return self.value <= self.target if self.better == "lower" else self.value >= self.target

    def as_row(self) -> dict[str, object]:
        """The row of the JSON list."""
        return {**asdict(self), "meets": self.meets}


def publish(figures: Sequence[Figure], json_file: Path | None) -> None:
    """Print ``figures`` as a table, and write them to ``json_file`` where one is given."""
    width = max(len(figure.name) for figure in figures)
    print(f"{'figure':<{width}}  {'value':>10}  {'target':>10}")
    for figure in figures:
        sign = "<=" if figure.better == "lower" else ">="
        target = "" if figure.target is None else f"{sign} {figure.target:g}"
        print(
            f"{figure.name:<{width}}  {figure.value:>10.3g}  {target:>10}  {'' if figure.meets else 'missed'}".rstrip()
        )
    if json_file is not None:
        json_file.write_text(json.dumps([figure.as_row() for figure in figures], indent=1) + "\n", encoding="utf-8")
