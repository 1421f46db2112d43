"""Adam with L2 decay, and AdamW with decoupled decay."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from cktk.errors import ConfigError
from cktk.optim.configs import AdamConfig

#: Devices on which PyTorch updates all moments of a parameter in one kernel.
_FUSED_DEVICES = ("cpu", "cuda", "xpu")


def adam(config: AdamConfig, named_parameters: Iterable[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
    """Adam whose weight decay is an L2 penalty: it passes through the moments."""
    groups = parameter_groups(named_parameters, config.weight_decay)
    return torch.optim.Adam(groups, **_settings(config, groups))


def adamw(config: AdamConfig, named_parameters: Iterable[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
    """AdamW: weights shrink by lr * weight_decay per update, beside the moments (Loshchilov and Hutter)."""
    groups = parameter_groups(named_parameters, config.weight_decay)
    return torch.optim.AdamW(groups, **_settings(config, groups))


def parameter_groups(named_parameters: Iterable[tuple[str, nn.Parameter]], weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters in the order of their names: matrices with ``weight_decay``, vectors without.

    Vectors are the biases and the weights of norms. A parameter that goes by two names is taken once. Raises
    `ConfigError` if nothing is trainable.
    """
    found: dict[int, nn.Parameter] = {}
    for _, parameter in sorted(named_parameters, key=lambda item: item[0]):
        if parameter.requires_grad:
            found.setdefault(id(parameter), parameter)
    if not found:
        raise ConfigError("there is nothing to train: every parameter is frozen; unfreeze some")
    matrices = [parameter for parameter in found.values() if parameter.ndim > 1]
    vectors = [parameter for parameter in found.values() if parameter.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _settings(config: AdamConfig, groups: list[dict[str, Any]]) -> dict[str, Any]:
    betas = tuple(config.adam_betas)
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        given = ",".join(map(str, betas))
        raise ConfigError(f"--adam-betas takes two numbers from 0 to below 1, such as 0.9,0.98; not {given}")
    parameters = [parameter for group in groups for parameter in group["params"]]
    fused = all(p.device.type in _FUSED_DEVICES and p.is_floating_point() for p in parameters)
    return {"lr": config.lr, "betas": betas, "eps": config.adam_eps, "fused": fused}
