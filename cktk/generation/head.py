"""From decoder states to logits, tile by tile of the vocabulary: a tile is summed up while it is in the cache.

That takes the largest logit and the sum of exponentials of each tile, all that a search needs to normalise scores and
to find the best tokens without sorting the whole vocabulary.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from cktk.generation.linear import Int8Product, quantised
from cktk.generation.logits import NEVER, Logits, Shortlist, exponential_sums, tile_groups
from cktk.generation.weights import DecoderWeights

#: Columns of a tile. A tile of weights stays in the second cache of a core: half again as fast as all columns at once.
TILE = 384

#: Tiles that are multiplied at once in 8-bit integers.
INT8_TILES = 8


class Tiles(Protocol):
    """The output matrix in tiles of columns."""

    def groups(self, rows: int) -> list[slice]:
        """Which tiles are multiplied at once, in order."""
        ...

    def prepare(self, states: Tensor) -> tuple[Tensor, ...]:
        """Decoder states (R, d) in the form that `multiply` takes."""
        ...

    def multiply(self, states: tuple[Tensor, ...], group: slice, out: Tensor) -> None:
        """Write the products with the tiles of a group to ``out`` (tiles, R, columns of a tile)."""
        ...


class DenseTiles:
    """Tiles of ``weight`` (T, columns, d) as they are."""

    def __init__(self, weight: Tensor) -> None:
        self._weight = weight.transpose(1, 2).contiguous()

    def groups(self, rows: int) -> list[slice]:
        """See `Tiles`."""
        count, _, width = self._weight.shape
        return tile_groups(count, rows, width, self._weight.device)

    def prepare(self, states: Tensor) -> tuple[Tensor, ...]:
        """See `Tiles`."""
        return (states,)

    def multiply(self, states: tuple[Tensor, ...], group: slice, out: Tensor) -> None:
        """See `Tiles`."""
        weight = self._weight[group]
        rows = states[0].expand(len(weight), -1, -1)
        if weight.dtype == out.dtype:
            torch.bmm(rows, weight, out=out)
        else:
            out.copy_(torch.bmm(rows, weight))


class Int8Tiles:
    """Tiles of ``weight`` (T, columns, d) in 8-bit integers."""

    def __init__(self, weight: Tensor) -> None:
        self._groups = [slice(at, at + INT8_TILES) for at in range(0, len(weight), INT8_TILES)]
        self._products = {group.start: Int8Product(weight[group].flatten(0, 1)) for group in self._groups}

    def groups(self, rows: int) -> list[slice]:  # noqa: ARG002
        """See `Tiles`."""
        return self._groups

    def prepare(self, states: Tensor) -> tuple[Tensor, ...]:
        """See `Tiles`."""
        return quantised(states)

    def multiply(self, states: tuple[Tensor, ...], group: slice, out: Tensor) -> None:
        """See `Tiles`."""
        whole, scales = states
        found = self._products[group.start](whole)
        torch.mul(found.view(len(found), -1, out.shape[2]).transpose(0, 1), scales, out=out)


class OutputHead:
    """Scores all tokens of all beams. One buffer for the logits is reused from step to step.

    There are at least ``candidates`` columns, so that a top-k of so many is always full. With ``kept`` (n, rising ids)
    there are columns for these tokens alone.
    """

    def __init__(
        self, weights: DecoderWeights, candidates: int, *, int8: bool = False, kept: Tensor | None = None
    ) -> None:
        weight, bias = weights.head, weights.bias
        self._shortlist = None
        if kept is not None:
            self._shortlist = Shortlist(kept, len(weight))
            weight, bias = weight[kept], None if bias is None else bias[kept]
        self._columns = len(weight)
        columns = max(self._columns, candidates)
        self._width = min(TILE, columns)
        self._count = -(-columns // self._width)
        spare = self._count * self._width - self._columns
        padded = F.pad(weight, (0, 0, 0, spare)).view(self._count, self._width, -1)
        self._tiles: Tiles = Int8Tiles(padded) if int8 else DenseTiles(padded)
        self._used_of_last = self._width - spare
        self._bias = None
        if bias is not None:
            self._bias = F.pad(bias, (0, spare)).view(self._count, 1, self._width)
        self._buffer = torch.empty(0, device=weights.head.device)

    def __call__(self, states: Tensor) -> Logits:
        """Logits of ``states`` (R, d) in float32, valid until the next call."""
        rows = len(states)
        tiles, prepared = self._room(rows), self._tiles.prepare(states)
        maxima, sums = tiles.new_empty(2, self._count, rows).unbind()
        for group in self._tiles.groups(rows):
            out = tiles[group]
            self._tiles.multiply(prepared, group, out)
            if self._bias is not None:
                out += self._bias[group]
            if group.stop >= self._count:
                out[-1, :, self._used_of_last :] = NEVER
            torch.amax(out, dim=2, out=maxima[group])
            sums[group] = exponential_sums(out, maxima[group])
        normaliser = sums.log_().add_(maxima).logsumexp(dim=0)
        return Logits(tiles, maxima, normaliser, self._columns, self._shortlist)

    def _room(self, rows: int) -> Tensor:
        size = self._count * rows * self._width
        if size > len(self._buffer):
            self._buffer = self._buffer.new_empty(size)
        return self._buffer[:size].view(self._count, rows, self._width)
