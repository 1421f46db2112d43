"""What the scores of a task's texts have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from cktk.errors import DataError


class Scores(Protocol):
    """Figures about hypotheses, from 0 to 100, and what else is needed to compare them with others'.

    ``str`` gives the lines for people.
    """

    def figures(self) -> dict[str, float]:
        """The figures by the heads of their columns in a table, most looked-at first."""

    def signatures(self) -> list[str]:
        """Lines that say how the figures were made."""

    def record(self) -> dict[str, Any]:
        """All of it under names for programs."""


#: Scores hypotheses against one reference each; raises `DataError` where they do not pair up.
ScoreTexts = Callable[[Sequence[str], Sequence[str]], Scores]


def check_paired(hypotheses: Sequence[str], references: Sequence[str]) -> None:
    """Raise `DataError` unless there are references, and as many as hypotheses."""
    if len(hypotheses) != len(references):
        raise DataError(f"{len(hypotheses)} hypotheses but {len(references)} references; each needs its own line")
    if not references:
        raise DataError("there are no references to score against; give files with at least one line")
