"""The head loss of models that give a number a sentence: squared errors from gold labels and from a teacher."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from cktk.criteria.base import working_dtype
from cktk.criteria.head.head_options import HeadLossOptions, Teacher
from cktk.errors import ConfigError
from cktk.protocols import HeadParams, SparseTargets


def regression_loss(
    hidden: Tensor,
    labels: Tensor,
    head: HeadParams,
    teacher: Teacher | SparseTargets | None,
    options: HeadLossOptions,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The summed loss of ``hidden`` (N, d) with the numbers ``labels`` (N,), and its unweighted parts, detached.

    loss = ce_weight (y - label)^2 + kl_weight (y - teacher's y)^2, summed over rows. Parts: ``mse``, and with a
    teacher, to which no gradient flows, ``teacher_mse``. Computed in float32 under autocast too, float64 for float64
    states. Raises `ConfigError` for heads of more than one row, and for recorded distributions in a teacher's place.
    """
    if isinstance(teacher, SparseTargets):
        raise ConfigError("a teacher cache holds distributions over classes, and no numbers: train with --teacher")
    found = _numbers(hidden, head, "student")
    mse = (found - labels.to(found)).square().sum()
    parts = {"mse": mse.detach()}
    total = options.ce_weight * mse
    if teacher is not None:
        with torch.no_grad():
            aim = _numbers(*teacher, "teacher")
        teacher_mse = (found - aim.to(found)).square().sum()
        parts["teacher_mse"] = teacher_mse.detach()
        total = total + options.kl_weight * teacher_mse
    return total, parts


def check_regression(options: HeadLossOptions) -> None:
    """`ConfigError` for options that only distributions have."""
    plain = HeadLossOptions()
    for name, flag in (
        ("label_smoothing", "--label-smoothing"),
        ("temperature", "--temperature"),
        ("divergence", "--divergence"),
        ("top_k", "--teacher-top-k"),
    ):
        if (value := getattr(options, name)) != getattr(plain, name):
            raise ConfigError(f"{flag} {value}: the data asks for a number (regression), not for a class; leave it out")


def _numbers(states: Tensor, head: HeadParams, whose: str) -> Tensor:
    """The answers (N,) to ``states`` (N, d)."""
    if len(head.weight) != 1:
        raise ConfigError(f"the {whose}'s head has {len(head.weight)} rows, but regression needs 1")
    with torch.autocast(states.device.type, enabled=False):
        dtype = working_dtype(states, head.weight)
        bias = None if head.bias is None else head.bias.to(dtype)
        return F.linear(states.to(dtype) * head.scale, head.weight.to(dtype), bias)[:, 0]
