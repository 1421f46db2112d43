"""Products with fixed weights for a few rows at a time: exact, or in 8-bit integers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from cktk.errors import ConfigError


class Linear(Protocol):
    """``x @ weight.T + bias`` for rows x (R, in); the result is (R, out)."""

    @property
    def features(self) -> tuple[int, int]:
        """Sizes of input and output."""
        ...

    def __call__(self, x: Tensor) -> Tensor: ...


#: Makes a product of a weight (out, in) and a bias (out) or None.
MakeLinear = Callable[[Tensor, Tensor | None], Linear]


class DenseLinear:
    """Weights as they are, kept (in, out): BLAS reads them up to twice as fast for a few rows as it does (out, in)."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight = weight.t().contiguous()
        self._bias = bias

    @property
    def features(self) -> tuple[int, int]:
        """See `Linear`."""
        return self._weight.shape[0], self._weight.shape[1]

    def __call__(self, x: Tensor) -> Tensor:
        if self._bias is None:
            return torch.mm(x, self._weight)
        return torch.addmm(self._bias, x, self._weight)


class Int8Product:
    """``x @ weight.T`` in 8-bit integers: one scale for each output of the weights, and one for each row of x.

    A row's result does not depend on the rows beside it. oneDNN multiplies, adds up in 32 bits and applies the scales
    of the weights (out, in) in one pass.
    """

    def __init__(self, weight: Tensor) -> None:
        self.features = (weight.shape[1], weight.shape[0])
        whole, scales = quantised(weight.float())
        self._weight = torch.ops.onednn.qlinear_prepack(whole, None)
        self._scales = scales.flatten()
        self._zeros = torch.zeros_like(self._scales, dtype=torch.int64)

    def __call__(self, whole: Tensor) -> Tensor:
        """The product (R, out) with rows of integers, still without their scales."""
        # oneDNN has no fast path for a single row of some sizes: it takes a hundred times as long as two rows.
        rows = whole if len(whole) > 1 else whole.expand(2, -1).contiguous()
        multiply = torch.ops.onednn.qlinear_pointwise
        found: Tensor = multiply(
            rows, 1.0, 0, self._weight, self._scales, self._zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
        return found[: len(whole)]


class Int8Linear:
    """`Int8Product` with its scales and a bias."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._product = Int8Product(weight)
        self._bias = None if bias is None else bias.float()

    @property
    def features(self) -> tuple[int, int]:
        """See `Linear`."""
        return self._product.features

    def __call__(self, x: Tensor) -> Tensor:
        whole, scales = quantised(x)
        found = self._product(whole)
        return found.mul_(scales) if self._bias is None else torch.addcmul(self._bias, found, scales)


def quantised(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of integers from -127 to 127, and the scales (R, 1) that they are multiplied by."""
    # A row of zeros stays one.
    scales = x.abs().amax(dim=1, keepdim=True).clamp_(min=1e-30).div_(127.0)
    return (x / scales).round_().to(torch.int8), scales


def check_int8(device: torch.device) -> None:
    """Raise `ConfigError` where 8-bit integers cannot be multiplied."""
    if device.type != "cpu":
        raise ConfigError(f"--quantization int8 works on a CPU, and the device is {device}; add --device cpu")
    if not hasattr(torch.ops.onednn, "qlinear_pointwise"):
        raise ConfigError("--quantization int8 needs a torch with oneDNN; leave it out")


class Int8Module(torch.nn.Module):
    """`Int8Linear` in the place of a `torch.nn.Linear`, for inference."""

    def __init__(self, dense: torch.nn.Linear) -> None:
        super().__init__()
        bias = None if dense.bias is None else dense.bias.detach()
        self._linear = Int8Linear(dense.weight.detach(), bias)
        # What models of transformers look at before they choose a precision.
        self.weight = torch.empty(0, dtype=torch.int8)

    def forward(self, x: Tensor) -> Tensor:
        """``x @ weight.T + bias`` over the last dimension."""
        found: Tensor = self._linear(x.flatten(0, -2))
        return found.view(*x.shape[:-1], -1)
