"""Presets: named values for options and components, above defaults and below run files and flags."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cktk.config.options import Raw


@dataclass(frozen=True)
class Case:
    """Further ``values``, where each option or component in ``when`` has one of the values that are listed for it."""

    when: Mapping[str, tuple[str, ...]]
    values: Mapping[str, str]

    def holds(self, given: Mapping[str, Raw]) -> bool:
        """Whether ``given``, the components chosen and the options written so far, is such a case."""
        return all(given.get(name) in values for name, values in self.when.items())


@dataclass(frozen=True)
class Preset:
    """Values as a run file would hold them, with underscores in names. Of several cases that hold, the last one wins.

    A case sees what was written by the user, not what is found out later, such as a language of the data folder.
    ``summary`` is for ``--help``.
    """

    summary: str
    values: Mapping[str, str]
    cases: tuple[Case, ...] = ()

    def resolve(self, given: Mapping[str, Raw]) -> dict[str, str]:
        """The values where ``given`` has been chosen and written."""
        found = dict(self.values)
        for case in self.cases:
            if case.holds(given):
                found.update(case.values)
        return found
