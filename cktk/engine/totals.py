"""Undivided sums of the loss's parts over micro-batches and ranks, divided once, at the end, by global counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import get_args

import torch
from torch import Tensor

from cktk.protocols import Term, Unit

UNITS: tuple[Unit, ...] = get_args(Unit)


class Totals:
    """Sums by (name, unit) in float64; the entry ``loss`` of each unit is the weighted sum of that unit's terms.

    Values of unit ``"update"`` are whole on every rank already: they replace each other instead of adding up.
    """

    def __init__(self) -> None:
        self._sums: dict[tuple[str, Unit], Tensor] = {}

    def take(self, term: Term) -> None:
        """Add one term of one micro-batch."""
        shown = {term.name: term.total} if term.parts is None else term.parts
        parts = {name: part.detach().double() for name, part in shown.items()}
        value = (term.total if term.value is None else term.value).detach().double()
        self._add({(name, term.unit): part for name, part in parts.items()})
        known = self._sums.get(("loss", term.unit))
        self._sums["loss", term.unit] = term.weight * value if known is None else known + term.weight * value

    def add(self, other: Totals) -> None:
        """Add another micro-batch's sums."""
        self._add(other._sums)

    def _add(self, parts: Mapping[tuple[str, Unit], Tensor]) -> None:
        for key, part in parts.items():
            known = self._sums.get(key)
            self._sums[key] = part if known is None or key[1] == "update" else known + part

    def sums(self) -> dict[tuple[str, Unit], float]:
        """The sums of this process so far, by name and unit."""
        return {key: part.item() for key, part in self._sums.items()}

    def averages(self, counts: Mapping[Unit, int], all_reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Global averages of every part, and their weighted sum as ``loss``; ``counts`` are global already."""
        additive = sorted(key for key in self._sums if key[1] != "update")
        values = {name: part.item() for (name, unit), part in self._sums.items() if unit == "update"}
        if additive:
            table = all_reduce(torch.stack([self._sums[key] for key in additive])).tolist()
            for (name, unit), total in zip(additive, table, strict=True):
                average = total / counts[unit] if counts[unit] else 0.0
                values[name] = values.get(name, 0.0) + average if name == "loss" else average
        return values


def global_counts(
    counts: Sequence[Mapping[Unit, int]], device: torch.device, all_reduce: Callable[[Tensor], Tensor], *extra: int
) -> tuple[dict[Unit, int], list[int]]:
    """Global sums of all ranks' ``counts`` by unit, and of the numbers ``extra``, in one reduction."""
    local = [sum(one.get(unit, 0) for one in counts) for unit in UNITS]
    numbers = all_reduce(torch.tensor([*local, *extra], dtype=torch.int64, device=device)).tolist()
    return {**dict(zip(UNITS, numbers, strict=False)), "update": 1}, numbers[len(UNITS) :]
