"""What a hidden-state loss has to offer, and how states are prepared for it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cktk.protocols import AttentionPair, LayerPair, ModelOutput, Term

#: Sums a tensor over all ranks in place and returns it; the identity in a single process.
AllReduce = Callable[[Tensor], Tensor]


class HiddenLoss(nn.Module, ABC):
    """A loss between matched states. A module, so that projectors are trained, moved and saved with it.

    ``pairs`` are the hidden states that it looks at, ``attention`` the attention blocks, and ``first`` the states of
    which it looks at the first position of each sentence only.
    """

    def __init__(
        self,
        pairs: tuple[LayerPair, ...] = (),
        attention: tuple[AttentionPair, ...] = (),
        first: tuple[LayerPair, ...] = (),
    ) -> None:
        super().__init__()
        self.pairs = pairs
        self.attention = attention
        self.first = first

    @abstractmethod
    def terms(self, student: ModelOutput, teacher: ModelOutput) -> list[Term]:
        """The undivided terms of one micro-batch, each of weight 1."""


class StatisticsLoss(HiddenLoss):
    """A hidden-state loss whose gradient needs sums over more than a micro-batch.

    Statistics, pooled statistics and coefficients are detached and each loss's own affair; the engine only hands them
    on: `statistics` of each micro-batch into those of the ones before, `pool` over ranks, `coefficients`, `terms`.
    """

    @property
    def collects(self) -> Literal["no", "before", "along"]:
        """What the next update has to collect statistics for.

        "no": nothing, `terms` looks at its micro-batch only. "before": `terms` needs the coefficients of the whole
        update, in two passes. "along": `terms` needs none, but `advance` does.
        """
        return "before"

    @property
    def pooled(self) -> bool:
        """Whether a validation pools the statistics of its split; otherwise it averages over micro-batches."""
        return True

    @abstractmethod
    def terms(self, student: ModelOutput, teacher: ModelOutput, coefficients: Any = None) -> list[Term]:
        """The undivided terms of one micro-batch; given ``coefficients``, those of the rows that it belongs to.

        Without gradient and without coefficients a pooled loss has no terms: its value comes from `pooled_term`.
        """

    @abstractmethod
    def statistics(self, student: ModelOutput, teacher: ModelOutput, prior: Any = None) -> Any:
        """Statistics of one micro-batch, joined to ``prior``, those of the ones before, which is used up."""

    @abstractmethod
    def pool(self, statistics: Any, all_reduce: AllReduce) -> Any:
        """``statistics`` (used up) of all ranks: a collective operation, the same calls on all ranks."""

    @abstractmethod
    def coefficients(self, pooled: Any) -> Any:
        """What `terms` needs to give the gradient of the loss over all pooled rows.

        ``pooled`` may be used up, unless the loss `keeps_state`.
        """

    @abstractmethod
    def pooled_term(self, coefficients: Any) -> Term:
        """The loss over all those rows as a term of weight 1 and unit "update", without gradient."""

    @property
    def keeps_state(self) -> bool:
        """Whether `advance` does anything, so that pooled statistics have to be kept for it."""
        return False

    def advance(self, pooled: Any) -> None:
        """Take the statistics of an update that was made into the state that the loss keeps, if it keeps one."""


def working_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 if any of ``tensors`` is, else float32: what losses are computed in, under autocast too."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32
