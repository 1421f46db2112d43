"""How much of each corpus a mixture takes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from cktk.config.options import option
from cktk.errors import ConfigError
from cktk.utils.words import alternatives

_USUAL_TEMPERATURE = 5.0
#: How far from 1 the sum of ``--mixture-weights`` may be: what adding up decimal fractions loses.
_TOLERANCE = 1e-6


@dataclass(frozen=True)
class MixtureConfig:
    """mixture of corpora"""

    mixture: Literal["proportional", "equal", "temperature", "weights"] = option(
        "proportional",
        help="share of each corpus among the samples: proportional = by its rows; equal; temperature = by its rows to "
        "the power 1 / --mixture-temperature; weights = as --mixture-weights says",
    )
    mixture_temperature: float | None = option(
        None,
        minimum=1,
        help="1 is proportional, large values are nearly equal (with --mixture temperature; default: 5)",
    )
    mixture_weights: tuple[str, ...] = option(
        (), metavar="NAME=W,..", help="share of each corpus, all together 1 (with --mixture weights)"
    )

    def __post_init__(self) -> None:
        if bool(self.mixture_weights) != (self.mixture == "weights"):
            given, missing = "--mixture weights", "--mixture-weights NAME=W,.."
            if self.mixture_weights:
                given, missing = "--mixture-weights", "--mixture weights"
            raise ConfigError(f"{given} goes with {missing}; give both or none")
        if self.mixture_temperature is not None and self.mixture != "temperature":
            raise ConfigError("--mixture-temperature goes with --mixture temperature; leave it out")

    def shares(self, rows: Mapping[str, int | None]) -> dict[str, float]:
        """The share of each corpus with the given rows (None: a stream, of which nobody knows), together 1.

        Raises `ConfigError` for shares that name other corpora or do not sum, and where a size is needed and unknown.
        """
        if self.mixture == "weights":
            found = self._given(rows)
        elif self.mixture == "equal" or len(rows) == 1:
            found = dict.fromkeys(rows, 1.0)
        else:
            power = 1.0 if self.mixture == "proportional" else 1 / (self.mixture_temperature or _USUAL_TEMPERATURE)
            found = {name: _known(name, number, self.mixture) ** power for name, number in rows.items()}
        total = math.fsum(found.values())
        return {name: share / total for name, share in found.items()}

    def _given(self, present: Mapping[str, int | None]) -> dict[str, float]:
        found: dict[str, float] = {}
        for item in self.mixture_weights:
            name, equals, text = item.rpartition("=")
            if not equals:
                raise ConfigError(f"--mixture-weights {item}: give NAME=W with a number W from 0 to 1")
            if name not in present:
                raise ConfigError(f"--mixture-weights {item}: no corpus {name!r}; {alternatives(name, present)}")
            if name in found:
                raise ConfigError(f"--mixture-weights: {name} is given twice")
            found[name] = _share(item, text)
        if missing := [name for name in present if name not in found]:
            raise ConfigError(f"--mixture-weights: none for {missing[0]}; give {missing[0]}=0 to leave it out")
        total = math.fsum(found.values())
        if abs(total - 1) > _TOLERANCE:
            raise ConfigError(f"--mixture-weights sum to {total:.7g}, not to 1; mend them")
        return found


def _known(name: str, rows: int | None, mixture: str) -> int:
    if rows is None:
        raise ConfigError(
            f"--mixture {mixture} needs the size of each corpus, and that of the stream {name} is not known; "
            "give --mixture equal or weights"
        )
    return rows


def _share(item: str, text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share < math.inf:
        raise ConfigError(f"--mixture-weights {item}: give NAME=W with a number W from 0 to 1")
    return share
