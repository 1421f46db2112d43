"""Learning rates as pure functions of the place in the run: nothing to save, nothing to restore.

``update`` counts the updates already made, 0 before the first; fairseq and transformers give the same rates for it.
``total`` is the number of updates of the whole run: `math.inf` where nobody knows. Where epochs end a run, it is what
the part that is over lets expect, which changes a little as the run goes on.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import NamedTuple

from cktk.errors import ConfigError
from cktk.optim.configs import DecayConfig, PolynomialConfig, WarmupConfig


class Limits(NamedTuple):
    """What ends a run, 0 where it does not: a number of updates, of epochs."""

    max_update: int
    max_epoch: int


class Schedule(ABC):
    """A warm-up in a line from ``warmup_init_lr`` to ``lr`` at update ``warmup_updates``, then what a subclass says.

    ``limits`` are those that end the run.
    """

    def __init__(self, config: WarmupConfig, lr: float, limits: Limits) -> None:  # noqa: ARG002
        self.lr = lr
        self.warmup = config.warmup_updates
        self.start = config.warmup_init_lr

    def __call__(self, update: int, total: float) -> float:
        """The learning rate after ``update`` of ``total`` updates: 0 gives that of the first."""
        if update < self.warmup:
            return self.start + (self.lr - self.start) * update / self.warmup
        return self.after_warmup(update, total)

    @abstractmethod
    def after_warmup(self, update: int, total: float) -> float:
        """The learning rate after ``update`` updates, no fewer than ``warmup_updates``."""


class Constant(Schedule):
    """``lr`` after the warm-up."""

    def after_warmup(self, update: int, total: float) -> float:  # noqa: ARG002
        """``lr``."""
        return self.lr


class InverseSqrt(Schedule):
    """lr * sqrt(warmup_updates / update) (Vaswani et al., 2017, section 5.3, scaled to reach ``lr``)."""

    def after_warmup(self, update: int, total: float) -> float:  # noqa: ARG002
        """lr * sqrt(warmup_updates / update)."""
        return self.lr * math.sqrt(self.warmup / update)


class Decay(Schedule):
    """From ``lr`` at update ``warmup_updates`` to ``end_learning_rate`` at the last update, by a falling share of 1.

    The last update is ``--total-num-update``, else the run's. Raises `ConfigError` if nothing ends the run, or if the
    warm-up does not end before the decay.
    """

    def __init__(self, config: DecayConfig, lr: float, limits: Limits) -> None:
        super().__init__(config, lr, limits)
        self.last = config.total_num_update
        self.end = config.end_learning_rate
        known = self.last or limits.max_update
        if not (known or limits.max_epoch):
            raise ConfigError(
                "this --lr-scheduler decays up to the last update, and nothing says which that is: "
                "give --max-update or --max-epoch, or use --lr-scheduler inverse_sqrt or constant"
            )
        if known and self.warmup >= known:
            raise ConfigError(
                f"--warmup-updates {self.warmup} leaves nothing to decay in {known} updates; "
                "lower it, or raise --max-update or --total-num-update"
            )

    def after_warmup(self, update: int, total: float) -> float:
        """``end_learning_rate`` plus the share of the way that is left."""
        last = self.last or total
        done = min(1.0, (update - self.warmup) / (last - self.warmup)) if last > self.warmup else 1.0
        return self.end + (self.lr - self.end) * self.share(done)

    @abstractmethod
    def share(self, done: float) -> float:
        """Share of the way from ``end_learning_rate`` to ``lr``, when ``done`` (0 to 1) of the decay is over."""


class Linear(Decay):
    """A line."""

    def share(self, done: float) -> float:
        """1 - done."""
        return 1 - done


class Cosine(Decay):
    """Half a period of a cosine, without restarts (Loshchilov and Hutter, 2017)."""

    def share(self, done: float) -> float:
        """(1 + cos(pi done)) / 2."""
        return (1 + math.cos(math.pi * done)) / 2


class Polynomial(Decay):
    """(1 - done) ** power."""

    def __init__(self, config: PolynomialConfig, lr: float, limits: Limits) -> None:
        super().__init__(config, lr, limits)
        self.power = config.power

    def share(self, done: float) -> float:
        """(1 - done) ** power."""
        return float((1 - done) ** self.power)
