"""Which operators a model is decoded with."""

from __future__ import annotations

import torch

from cktk.errors import ConfigError
from cktk.generation.operators.contract import Operators
from cktk.generation.operators.dense import DenseOperators
from cktk.generation.operators.int8 import Int8Operators
from cktk.generation.operators.kernels import KernelOperators, library


def choose_operators(device: torch.device, dtype: torch.dtype, *, int8: bool) -> Operators:
    """Kernels of our own where they can do it, else PyTorch's; raises `ConfigError` for 8-bit integers it has not."""
    if int8:
        check_int8(device)
    kernels = library() if device.type == "cpu" and dtype == torch.float32 else None
    if kernels is not None:
        return KernelOperators(kernels, int8=int8)
    return Int8Operators() if int8 else DenseOperators()


def check_int8(device: torch.device) -> None:
    """Raise `ConfigError` where 8-bit integers cannot be multiplied."""
    if device.type != "cpu":
        raise ConfigError(f"--quantization int8 works on a CPU, and the device is {device}; add --device cpu")
    if library() is None and not hasattr(torch.ops.onednn, "qlinear_pointwise"):
        raise ConfigError("--quantization int8 needs a torch with oneDNN; leave it out")
