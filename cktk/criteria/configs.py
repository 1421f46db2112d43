"""Options of the criteria. Torch-free, so that ``--help`` stays fast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cktk.config.options import option


@dataclass(frozen=True)
class CrossEntropyConfig:
    """cross_entropy: gold labels only"""

    label_smoothing: float = option(
        0.0,
        minimum=0.0,
        maximum=0.999,
        help="share of the target's probability that is spread evenly over the vocabulary",
    )
    logits_memory: int = option(
        256, minimum=1, metavar="MIB", help="MiB for the rows of logits that exist at one time, student's and teacher's"
    )


@dataclass(frozen=True)
class KlKdConfig(CrossEntropyConfig):
    """kl_kd: gold labels and the teacher's distribution"""

    ce_weight: float = option(1.0, minimum=0.0, help="weight of the cross entropy on gold labels")
    kl_weight: float = option(1.0, minimum=0.0, help="weight of KL(teacher || student)")
    temperature: float = option(
        1.0, above=0.0, help="divides both models' logits in the KL, which is multiplied by its square"
    )


@dataclass(frozen=True)
class HiddenKdConfig(KlKdConfig):
    """Matching of hidden states beside gold labels and the teacher's distribution"""

    hidden_weight: float = option(
        1.0, minimum=0.0, help="weight of the hidden-state loss, which is summed over layer pairs"
    )


@dataclass(frozen=True)
class CkaKdConfig(HiddenKdConfig):
    """cka_kd: hidden states matched by centred kernel alignment"""

    cka_scope: Literal["update", "micro"] = option(
        "update",
        help="rows that one CKA value pools: update = all micro-batches and ranks (exact, two passes), "
        "micro = each micro-batch by itself",
    )


@dataclass(frozen=True)
class LinearKdConfig(HiddenKdConfig):
    """linear_kd: hidden states matched by a trained projection per layer"""


@dataclass(frozen=True)
class CosineKdConfig(HiddenKdConfig):
    """cosine_kd: hidden states of equal width matched by their angle"""
