"""Products in 8-bit integers by oneDNN, where there are no kernels of our own; all else is as in `dense`."""

from __future__ import annotations

import torch
from torch import Tensor

from cktk.generation.operators.contract import Activation, Linear, TileProduct
from cktk.generation.operators.dense import DenseOperators, finish_tiles, normalisers

#: Tiles that are multiplied at once.
TILES_AT_ONCE = 8


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
    """`Int8Product` with its scales, a bias and an activation."""

    def __init__(self, weight: Tensor, bias: Tensor | None, activation: Activation | None = None) -> None:
        self._product = Int8Product(weight)
        self._bias = None if bias is None else bias.float()
        self._activation = activation

    @property
    def features(self) -> tuple[int, int]:
        """See `Linear`."""
        return self._product.features

    def __call__(self, x: Tensor) -> Tensor:
        whole, scales = quantised(x)
        found = self._product(whole)
        found = found.mul_(scales) if self._bias is None else torch.addcmul(self._bias, found, scales)
        return found if self._activation is None else self._activation(found)


class Int8Tiles:
    """Tiles of the output head; see `TileProduct`."""

    def __init__(self, weight: Tensor, bias: Tensor | None, columns: int) -> None:
        starts = range(0, len(weight), TILES_AT_ONCE)
        self._groups = [slice(at, min(at + TILES_AT_ONCE, len(weight))) for at in starts]
        self._products = [Int8Product(weight[group].flatten(0, 1)) for group in self._groups]
        self._bias = None if bias is None else bias[:, None]
        self._columns = columns

    def __call__(self, states: Tensor, tiles: Tensor, maxima: Tensor) -> Tensor:
        whole, scales = quantised(states)
        sums = torch.empty_like(maxima)
        for group, product in zip(self._groups, self._products, strict=True):
            found = product(whole).view(len(whole), -1, tiles.shape[2])
            torch.mul(found.transpose(0, 1), scales, out=tiles[group])
            finish_tiles(group, self._bias, self._columns, (tiles, maxima, sums))
        return normalisers(maxima, sums)


class Int8Operators(DenseOperators):
    """See `Operators`."""

    def linear(self, weight: Tensor, bias: Tensor | None, activation: Activation | None = None) -> Linear:
        """See `Operators`."""
        return Int8Linear(weight, bias, activation)

    def tiles(self, weight: Tensor, bias: Tensor | None, columns: int) -> TileProduct:
        """See `Operators`."""
        return Int8Tiles(weight, bias, columns)


def quantised(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of integers from -127 to 127, and the scales (R, 1) that they are multiplied by."""
    # A row of zeros stays one.
    scales = x.abs().amax(dim=1, keepdim=True).clamp_(min=1e-30).div_(127.0)
    return (x / scales).round_().to(torch.int8), scales
