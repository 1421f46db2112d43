"""Options of optimizers and learning-rate schedules. Torch-free, so that ``--help`` stays fast."""

from __future__ import annotations

from dataclasses import dataclass

from cktk.config.options import option


@dataclass(frozen=True)
class OptimizerConfig:
    """Optimizer: what every one has, those of plug-ins too, since the schedules start from it"""

    lr: float = option(1e-4, above=0.0, help="highest learning rate")


@dataclass(frozen=True)
class AdamConfig(OptimizerConfig):
    """Adam"""

    adam_betas: tuple[float, float] = option(
        (0.9, 0.999), minimum=0.0, maximum=0.999999, help="decay of the two running means"
    )
    adam_eps: float = option(1e-8, above=0.0, help="added to the root of the second mean")
    weight_decay: float = option(
        0.0, minimum=0.0, help="weight decay of matrices and embeddings; biases and norms have none"
    )


@dataclass(frozen=True)
class WarmupConfig:
    """Learning-rate schedule: warm-up, then constant"""

    warmup_updates: int = option(0, minimum=0, help="updates over which the learning rate rises in a line")
    warmup_init_lr: float = option(0.0, minimum=0.0, help="learning rate that the warm-up rises from")


@dataclass(frozen=True)
class InverseSqrtConfig(WarmupConfig):
    """Learning-rate schedule: warm-up, then inverse square root of the update number"""

    warmup_updates: int = option(4000, minimum=1, help="updates over which the learning rate rises in a line")


@dataclass(frozen=True)
class DecayConfig(WarmupConfig):
    """Learning-rate schedule: warm-up, then decay to the last update"""

    end_learning_rate: float = option(0.0, minimum=0.0, help="learning rate of the last update and after it")
    total_num_update: int | None = option(
        None, minimum=1, help="update at which the decay ends (default: the run's last, by --max-update or --max-epoch)"
    )


@dataclass(frozen=True)
class PolynomialConfig(DecayConfig):
    """Learning-rate schedule: warm-up, then polynomial decay to the last update"""

    power: float = option(1.0, above=0.0, help="exponent of the decay; 1 is a line")
