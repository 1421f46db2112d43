"""Exponential moving average of the student's weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """``average <- decay * average + (1 - decay) * weights`` after every update, in the weights' own precision."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self._decay = decay
        self._weights = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.average = {name: p.detach().clone() for name, p in self._weights.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take the present weights in."""
        torch._foreach_lerp_(list(self.average.values()), list(self._weights.values()), 1 - self._decay)

    @contextmanager
    def swapped_in(self) -> Iterator[Mapping[str, Tensor]]:
        """The module holds the average inside; yields the raw weights, which return afterwards."""
        raw = {name: p.data for name, p in self._weights.items()}
        try:
            for name, p in self._weights.items():
                p.data = self.average[name]
            yield raw
        finally:
            for name, p in self._weights.items():
                p.data = raw[name]
