"""Logits of a head for some rows, in tiles of columns that stay in a processor's cache."""

from __future__ import annotations

import torch
from torch import Tensor

from cktk.criteria.base import working_dtype
from cktk.protocols import HeadParams

#: Columns of logits handled at one time. On a CPU small enough for its caches; elsewhere fewer launches count for more.
_CPU_TILE, _DEVICE_TILE = 4096, 65536


def product_dtype(device: str) -> torch.dtype | None:
    """The dtype that autocast, where it is on, gives to matrix products on ``device``."""
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


class Logits:
    """One model's rows and head, in the dtype of its matrix products; makes logits in the working dtype.

    The working dtype is float32, or float64 for float64 states. ``columns`` are the tiles' slices of the vocabulary.
    """

    def __init__(self, states: Tensor, head: HeadParams, autocast: torch.dtype | None) -> None:
        self.working = working_dtype(states, head.weight)
        dtype = torch.promote_types(states.dtype, head.weight.dtype)
        if autocast is not None and dtype != torch.float64:
            dtype = autocast
        self.states = states.detach().to(dtype)
        self.weight = head.weight.detach().to(dtype)
        # The bias of most heads is a buffer of zeros.
        self.bias = None if head.bias is None or not head.bias.any() else head.bias.detach().to(self.working)
        self.scale = head.scale
        self.size = len(self.weight)
        self.width = min(_CPU_TILE if states.device.type == "cpu" else _DEVICE_TILE, self.size)
        self.columns = [slice(i, min(i + self.width, self.size)) for i in range(0, self.size, self.width)]

    def fill(
        self,
        rows: slice,
        buffer: Tensor,
        scratch: Tensor,
        temperatures: tuple[float, ...],
        hidden: Tensor | None = None,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Tiles (n, columns) of logits; for each temperature t their log sums (n, tiles) of exp(logits / t).

        The logits are in ``buffer``, with room for n rows; ``scratch`` has room for n rows of one tile. The sums of the
        last temperature leave out the ids ``hidden`` (n, k).
        """
        states = self.states[rows]
        logits = shaped(buffer, len(states), self.size)
        tiles: list[Tensor] = []
        sums: list[list[Tensor]] = [[] for _ in temperatures]
        for part in self.blocks(buffer.dtype):
            self.multiply(states, part, logits[:, part])
        for part in self.columns:
            tile = self.finish(part, logits[:, part])
            for i, t in enumerate(temperatures):
                leave_out = hidden if i == len(temperatures) - 1 else None
                sums[i].append(log_sum(tile, t, part, scratch, leave_out))
            tiles.append(tile)
        return tiles, [torch.cat(parts, 1) for parts in sums]

    def blocks(self, dtype: torch.dtype) -> list[slice]:
        """Columns of one matrix product: all, which is fastest; tiles where ``dtype`` asks for a converted copy."""
        return [slice(0, self.size)] if self.states.dtype == dtype else self.columns

    def multiply(self, states: Tensor, part: slice, tile: Tensor) -> Tensor:
        """The product of ``states`` and the weight's rows ``part``, written to ``tile``."""
        if states.dtype == tile.dtype:
            return torch.mm(states, self.weight[part].T, out=tile)
        return tile.copy_(states @ self.weight[part].T)

    def finish(self, part: slice, tile: Tensor) -> Tensor:
        """Makes products in the columns ``part`` logits."""
        if self.scale != 1:
            tile.mul_(self.scale)
        if self.bias is not None:
            tile.add_(self.bias[part])
        return tile


def shaped(buffer: Tensor, rows: int, width: int) -> Tensor:
    """The beginning of a flat ``buffer`` as (rows, width)."""
    return buffer[: rows * width].view(rows, width)


def log_sum(tile: Tensor, t: float, part: slice, scratch: Tensor, hidden: Tensor | None = None) -> Tensor:
    """log sum exp(tile / t) per row (n, 1), without the columns of ``hidden`` ids; -inf where nothing is left.

    `torch.logsumexp`, but all in ``scratch``, which has room for a tile.
    """
    tops = tile.amax(1, keepdim=True)
    tops.clamp_(min=torch.finfo(tops.dtype).min)  # of a row of -inf alone: nothing of it may become NaN
    terms = torch.sub(tile, tops, out=shaped(scratch, *tile.shape))
    if t != 1:
        terms.div_(t)
    if hidden is not None:
        hide(terms, hidden, part)
    return terms.exp_().sum(1, keepdim=True).log_().add_(tops, alpha=1 / t)


def locate(ids: Tensor, part: slice) -> tuple[Tensor, Tensor]:
    """Where in a tile of columns ``part`` the ``ids`` (n, k) are, and whether they are there at all."""
    place = ids - part.start
    width = part.stop - part.start
    return place.clamp(0, width - 1), (place >= 0) & (place < width)


def gather(tiles: list[Tensor], columns: list[slice], ids: Tensor) -> Tensor:
    """The elements (n, k) that ``tiles`` hold for ``ids`` (n, k)."""
    found = tiles[0].new_zeros(ids.shape)
    for tile, part in zip(tiles, columns, strict=True):
        place, here = locate(ids, part)
        found = torch.where(here, tile.gather(1, place), found)
    return found


def scatter_add(tile: Tensor, part: slice, ids: Tensor, values: Tensor | float) -> Tensor:
    """Adds ``values`` (n, k) to those columns of ``tile`` that have ``ids`` (n, k), each as often as it is named."""
    place, here = locate(ids, part)
    # What is elsewhere adds zero to some column of this tile; the shapes do not depend on the data.
    zero = tile.new_zeros(())
    return tile.scatter_add_(1, place, torch.where(here, torch.as_tensor(values).to(zero), zero).expand_as(place))


def hide(tile: Tensor, ids: Tensor, part: slice) -> Tensor:
    """Sets the logarithms of ``ids`` (n, k) in ``tile`` to -inf."""
    return scatter_add(tile, part, ids, float("-inf"))
