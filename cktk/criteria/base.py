"""What a hidden-state loss has to offer, and how states are prepared for it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from cktk.protocols import LayerPair, ModelOutput, Term

#: Sums a tensor over all ranks in place and returns it; the identity in a single process.
AllReduce = Callable[[Tensor], Tensor]


class HiddenLoss(nn.Module, ABC):
    """A loss between matched hidden states. A module, so that projectors are trained, moved and saved with it."""

    def __init__(self, pairs: tuple[LayerPair, ...]) -> None:
        super().__init__()
        self.pairs = pairs

    @abstractmethod
    def terms(self, student: ModelOutput, teacher: ModelOutput) -> list[Term]:
        """The undivided terms of one micro-batch, each of weight 1."""


class StatisticsLoss(HiddenLoss):
    """A hidden-state loss whose gradient needs sums over more than a micro-batch: statistics first, then the terms.

    Statistics and coefficients are detached and each loss's own affair; the engine only hands them on.
    """

    #: Whether `terms` needs the `coefficients` of the whole update, so that an update takes two passes.
    two_passes = True

    @abstractmethod
    def terms(self, student: ModelOutput, teacher: ModelOutput, coefficients: Any = None) -> list[Term]:
        """The undivided terms of one micro-batch, given the `coefficients` of the rows that it belongs to."""

    @abstractmethod
    def statistics(self, student: ModelOutput, teacher: ModelOutput) -> Any:
        """Statistics of one micro-batch."""

    @abstractmethod
    def merge(self, first: Any, second: Any) -> Any:
        """Statistics of the rows of both, whatever the split."""

    @abstractmethod
    def coefficients(self, statistics: Any, all_reduce: AllReduce) -> Any:
        """What `terms` needs to give the gradient of the loss over all rows of all ranks."""

    @abstractmethod
    def pooled_term(self, coefficients: Any) -> Term:
        """The loss over all those rows as a term of weight 1 and unit "update", without gradient."""


def working_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 if any of ``tensors`` is, else float32: what losses are computed in, under autocast too."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32
