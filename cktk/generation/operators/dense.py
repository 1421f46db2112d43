"""Decoding by PyTorch's operators, on any device and in any floating-point type."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from cktk.generation.logits import NEVER, best_columns, exponential_sums, tile_groups
from cktk.generation.operators.contract import Activation, Linear, Norm, TileProduct


class DenseLinear:
    """Weights as they are, kept (in, out): BLAS reads them up to twice as fast for a few rows as it does (out, in)."""

    def __init__(self, weight: Tensor, bias: Tensor | None, activation: Activation | None = None) -> None:
        self._weight = weight.t().contiguous()
        self._bias = bias
        self._activation = activation

    @property
    def features(self) -> tuple[int, int]:
        """See `Linear`."""
        return self._weight.shape[0], self._weight.shape[1]

    def __call__(self, x: Tensor) -> Tensor:
        found = torch.mm(x, self._weight) if self._bias is None else torch.addmm(self._bias, x, self._weight)
        return found if self._activation is None else self._activation(found)


@dataclass(frozen=True)
class LayerNorm:
    """Mean 0 and variance 1 over the last dimension, then weight and bias."""

    weight: Tensor
    bias: Tensor
    eps: float

    def __call__(self, x: Tensor, added: Tensor | None = None) -> Tensor:
        x = x if added is None else x + added
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


@dataclass(frozen=True)
class RmsNorm:
    """Mean square 1 over the last dimension, then the weight."""

    weight: Tensor
    eps: float

    def __call__(self, x: Tensor, added: Tensor | None = None) -> Tensor:
        x = x if added is None else x + added
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class DenseTiles:
    """Tiles of the output head, as many at once as fit a cache; see `TileProduct`."""

    def __init__(self, weight: Tensor, bias: Tensor | None, columns: int) -> None:
        self._weight = weight.transpose(1, 2).contiguous()
        self._bias = None if bias is None else bias[:, None]
        self._columns = columns

    def __call__(self, states: Tensor, tiles: Tensor, maxima: Tensor) -> Tensor:
        count, _, width = self._weight.shape
        sums = torch.empty_like(maxima)
        for group in tile_groups(count, len(states), width, states.device):
            weight, out = self._weight[group], tiles[group]
            rows = states.expand(len(weight), -1, -1)
            if weight.dtype == out.dtype:
                torch.bmm(rows, weight, out=out)
            else:
                out.copy_(torch.bmm(rows, weight))
            finish_tiles(group, self._bias, self._columns, (tiles, maxima, sums))
        return normalisers(maxima, sums)


def finish_tiles(group: slice, bias: Tensor | None, columns: int, logits: tuple[Tensor, Tensor, Tensor]) -> None:
    """Add the bias (T, 1, width) to a group of tiles, hide all but the first ``columns`` columns, and sum up."""
    tiles, maxima, sums = logits
    out, width = tiles[group], tiles.shape[2]
    if bias is not None:
        out += bias[group]
    for tile in range(max(group.start, columns // width), group.stop):
        tiles[tile, :, max(columns - tile * width, 0) :] = NEVER
    torch.amax(out, dim=2, out=maxima[group])
    sums[group] = exponential_sums(out, maxima[group])


def normalisers(maxima: Tensor, sums: Tensor) -> Tensor:
    """Logs of the sums of exponentials (R) from the maxima and sums (T, R) of tiles; ``sums`` is overwritten."""
    return sums.log_().add_(maxima).logsumexp(dim=0)


class DenseOperators:
    """See `Operators`."""

    def linear(self, weight: Tensor, bias: Tensor | None, activation: Activation | None = None) -> Linear:
        """See `Operators`."""
        return DenseLinear(weight, bias, activation)

    def norm(self, weight: Tensor, bias: Tensor | None, eps: float) -> Norm:
        """See `Operators`."""
        return RmsNorm(weight, eps) if bias is None else LayerNorm(weight, bias, eps)

    def tiles(self, weight: Tensor, bias: Tensor | None, columns: int) -> TileProduct:
        """See `Operators`."""
        return DenseTiles(weight, bias, columns)

    def best(self, tiles: Tensor, maxima: Tensor, offsets: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """See `Operators`."""
        return best_columns(tiles, maxima, offsets, count)

    def attend(self, query: Tensor, cache: Tensor, mask: Tensor | None) -> Tensor:
        """See `Operators`."""
        keys, values = cache
        return _attend(query.view(len(keys), -1, keys.shape[1], keys.shape[3]).transpose(1, 2), keys, values, mask)

    def append_and_attend(self, mixed: Tensor, cache: Tensor, slots: tuple[int, int], mask: Tensor | None) -> Tensor:
        """See `Operators`."""
        start, stop = slots
        parts = mixed.view(-1, stop - start, 3, cache.shape[2], cache.shape[4]).permute(2, 0, 3, 1, 4)
        cache[:, :, :, start:stop] = parts[1:]
        keys, values = cache[:, :, :, :stop]
        return _attend(parts[0], keys, values, mask)

    def keep_slots(self, cache: Tensor, slots: Tensor) -> None:
        """See `Operators`."""
        sentence = torch.arange(len(slots), device=slots.device)[:, None, None]
        head = torch.arange(cache.shape[2], device=slots.device)[:, None]
        cache[:, :, :, : slots.shape[1]] = cache[:, sentence, head, slots[:, None]]


def _attend(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """Attention of queries (B, H, W, a / H) to n slots (B, H, n, a / H), as rows (B * W, a)."""
    batch, heads, beams, width = query.shape
    mixed = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=1.0)
    return mixed.transpose(1, 2).reshape(batch * beams, heads * width)
