"""From decoder states to logits, in tiles of the vocabulary.

Operators sum a tile up while it is in the cache. That takes its largest logit and the sum of its exponentials, all that
a search needs to normalise scores and to find the best tokens without sorting the whole vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from cktk.generation.logits import Logits, Shortlist
from cktk.generation.operators.contract import Operators
from cktk.generation.weights import DecoderWeights

#: Columns of a tile. A tile of weights stays in the second cache of a core: half again as fast as all columns at once.
TILE = 384

#: The width of a tile is a multiple of this, whatever the size of the vocabulary.
STEP = 32


class OutputHead:
    """Scores all tokens of all beams. One buffer for the logits is reused from step to step.

    There are at least ``candidates`` columns, so that a top-k of so many is always full. With ``kept`` (n, rising ids)
    there are columns for these tokens alone.
    """

    def __init__(
        self, weights: DecoderWeights, operators: Operators, candidates: int, *, kept: Tensor | None = None
    ) -> None:
        weight, bias = weights.head, weights.bias
        self._shortlist = None
        if kept is not None:
            self._shortlist = Shortlist(kept, len(weight))
            weight, bias = weight[kept], None if bias is None else bias[kept]
        self._columns = len(weight)
        columns = max(self._columns, candidates)
        self._width = min(TILE, -(-columns // STEP) * STEP)
        self._count = -(-columns // self._width)
        spare = self._count * self._width - self._columns
        tiles = F.pad(weight, (0, 0, 0, spare)).view(self._count, self._width, -1)
        if bias is not None:
            bias = F.pad(bias, (0, spare)).view(self._count, self._width)
        self._product = operators.tiles(tiles, bias, self._columns)
        self._best = operators.best
        self._buffer = torch.empty(0, device=weights.head.device)

    def __call__(self, states: Tensor) -> Logits:
        """Logits of ``states`` (R, d) in float32, valid until the next call."""
        tiles = self._room(len(states))
        maxima = tiles.new_empty(self._count, len(states))
        normaliser = self._product(states, tiles, maxima)
        return Logits(tiles, maxima, normaliser, self._columns, self._shortlist, self._best)

    def _room(self, rows: int) -> Tensor:
        size = self._count * rows * self._width
        if size > len(self._buffer):
            self._buffer = self._buffer.new_empty(size)
        return self._buffer[:size].view(self._count, rows, self._width)
