"""What the fused and the dense head loss share: their options, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cktk.criteria.configs import Divergence
from cktk.criteria.head.divergences import part_name
from cktk.errors import ConfigError, DataError
from cktk.protocols import HeadParams, SparseTargets

#: The teacher's packed head input (N, p) and its head.
Teacher = tuple[Tensor, HeadParams]


@dataclass(frozen=True)
class HeadLossOptions:
    """loss = ce_weight CE + kl_weight temperature^2 D(teacher, student), summed over rows.

    CE is smoothed as in PyTorch: the target is (1 - label_smoothing) on the gold label plus label_smoothing / V on
    every label. ``skew`` is that of the skewed divergences. ``memory`` is the budget in bytes for the logits that exist
    at one time. With ``top_k`` of a live teacher, D compares its k most probable tokens and all others as one.
    """

    ce_weight: float = 1.0
    kl_weight: float = 0.0
    temperature: float = 1.0
    label_smoothing: float = 0.0
    memory: int = 256 << 20
    divergence: Divergence = "forward_kl"
    skew: float = 0.1
    top_k: int = 0


#: (hidden, labels, head, teacher, options) -> the summed loss, and its parts to log.
HeadLoss = Callable[
    [Tensor, Tensor, HeadParams, "Teacher | SparseTargets | None", HeadLossOptions], tuple[Tensor, dict[str, Tensor]]
]


def check_labels(labels: Tensor, size: int) -> None:
    """`DataError` for a label that is no row of the head."""
    low, high = _bounds(labels)
    if low < 0 or high >= size:
        raise DataError(
            f"the labels reach from {low} to {high}, but the head has {size} rows; "
            "use the data and the model of one tokenizer"
        )


def check_teacher(teacher: Teacher | SparseTargets, rows: int, size: int, options: HeadLossOptions) -> None:
    """`ConfigError` or `DataError` where ``teacher`` does not fit ``rows`` labels and a vocabulary of ``size``."""
    if isinstance(teacher, SparseTargets):
        _check_sparse(teacher, rows, size, options)
    elif len(teacher[1].weight) != size:
        raise ConfigError(
            f"the student's head has {size} rows and the teacher's {len(teacher[1].weight)}: a divergence needs "
            "one vocabulary; give the student the teacher's tokenizer and vocabulary size"
        )


def _check_sparse(targets: SparseTargets, rows: int, size: int, options: HeadLossOptions) -> None:
    if targets.temperature != options.temperature:
        raise ConfigError(
            f"--temperature {options.temperature:g}, but the teacher cache was written for {targets.temperature:g}; "
            "train with the temperature of the cache, or write one for this temperature"
        )
    if targets.sampled and options.divergence != "forward_kl":
        raise ConfigError(
            f"--divergence {options.divergence} cannot be estimated from sampled teacher tokens; use forward_kl, "
            "or write the teacher cache with the most probable tokens"
        )
    if len(targets.ids) != rows:
        raise DataError(
            f"the teacher's targets have {len(targets.ids)} rows for {rows} scored tokens; write the cache anew "
            "from this data"
        )
    low, high = _bounds(targets.ids)
    if low < 0 or high >= size:
        raise DataError(
            f"the teacher's targets name tokens from {low} to {high}, but the head has {size} rows; use the teacher "
            "cache and the model of one tokenizer"
        )


def check_top_k(k: int, size: int) -> None:
    """`ConfigError` where a vocabulary of ``size`` has no ``k`` tokens."""
    if k > size:
        raise ConfigError(
            f"{k} most probable tokens of a vocabulary of {size}: give a smaller --top-k (--teacher-top-k in training)"
        )


def _bounds(ids: Tensor) -> tuple[int, int]:
    if ids.numel() == 0:
        return 0, -1
    low, high = ids.aminmax()
    return int(low), int(high)


def named_parts(sums: Tensor, options: HeadLossOptions, teacher: bool) -> dict[str, Tensor]:
    """The parts to log of ``sums``: ce, nll and temperature^2 D."""
    parts = {"ce": sums[0]}
    if options.label_smoothing > 0:
        parts["nll"] = sums[1]
    if teacher:
        parts[part_name(options.divergence)] = sums[2]
    return parts


def remainder(log_probs: Tensor) -> Tensor:
    """Logarithm (N, 1) of what ``log_probs`` (N, k) leave of the probability.

    A difference from 1, summed in float64; below the resolution of the working dtype it is noise, and set to that.
    """
    left = -torch.expm1(log_probs.double().logsumexp(1, keepdim=True))
    return left.clamp(min=torch.finfo(log_probs.dtype).eps).log().to(log_probs.dtype)
