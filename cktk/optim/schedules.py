"""Learning rates as pure functions of the update number: nothing to save, nothing to restore.

``update`` counts the updates already made, 0 before the first; fairseq and transformers give the same rates for it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

from cktk.errors import ConfigError
from cktk.optim.configs import DecayConfig, PolynomialConfig, WarmupConfig


class Schedule(ABC):
    """A warm-up in a line from ``warmup_init_lr`` to ``lr`` at update ``warmup_updates``, then what a subclass says.

    ``total_updates`` is the number of the run's last update where it is known beforehand (``--max-update``).
    """

    def __init__(self, config: WarmupConfig, lr: float, total_updates: int | None) -> None:
        self.lr = lr
        self.warmup = config.warmup_updates
        self.start = config.warmup_init_lr
        self.total = total_updates

    def __call__(self, update: int) -> float:
        """The learning rate after ``update`` updates: 0 gives that of the first."""
        if update < self.warmup:
            return self.start + (self.lr - self.start) * update / self.warmup
        return self.after_warmup(update)

    @abstractmethod
    def after_warmup(self, update: int) -> float:
        """The learning rate after ``update`` updates, no fewer than ``warmup_updates``."""


class Constant(Schedule):
    """``lr`` after the warm-up."""

    def after_warmup(self, update: int) -> float:  # noqa: ARG002
        """``lr``."""
        return self.lr


class InverseSqrt(Schedule):
    """lr * sqrt(warmup_updates / update) (Vaswani et al., 2017, section 5.3, scaled to reach ``lr``)."""

    def after_warmup(self, update: int) -> float:
        """lr * sqrt(warmup_updates / update)."""
        return self.lr * math.sqrt(self.warmup / update)


class Decay(Schedule):
    """From ``lr`` at update ``warmup_updates`` to ``end_learning_rate`` at the last update, by a falling share of 1.

    The last update is ``--total-num-update``, else ``total_updates``; raises `ConfigError` if neither is known, or if
    the warm-up does not end before it.
    """

    def __init__(self, config: DecayConfig, lr: float, total_updates: int | None) -> None:
        last = config.total_num_update or total_updates
        if last is None:
            raise ConfigError(
                "this --lr-scheduler decays up to the last update, which is not known; "
                "give --max-update or --total-num-update, or use --lr-scheduler inverse_sqrt or constant"
            )
        if config.warmup_updates >= last:
            raise ConfigError(
                f"--warmup-updates {config.warmup_updates} leaves nothing to decay in {last} updates; "
                "lower it, or raise --max-update or --total-num-update"
            )
        super().__init__(config, lr, last)
        self.last = last
        self.end = config.end_learning_rate

    def after_warmup(self, update: int) -> float:
        """``end_learning_rate`` plus the share of the way that is left."""
        done = min(1.0, (update - self.warmup) / (self.last - self.warmup))
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

    def __init__(self, config: PolynomialConfig, lr: float, total_updates: int | None) -> None:
        super().__init__(config, lr, total_updates)
        self.power = config.power

    def share(self, done: float) -> float:
        """(1 - done) ** power."""
        return float((1 - done) ** self.power)
