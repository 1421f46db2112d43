"""From decoder states to logits, tile by tile of the vocabulary: a tile is summed up while it is in the cache.

That takes the largest logit and the sum of exponentials of each tile, all that a search needs to normalise scores and
to find the best tokens without sorting the whole vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from cktk.generation.logits import NEVER, Logits, exponential_sums, tile_groups
from cktk.generation.weights import DecoderWeights

#: Columns of a tile. A tile of weights stays in the second cache of a core: half again as fast as all columns at once.
TILE = 384


class OutputHead:
    """Scores all tokens of all beams. One buffer for the logits is reused from step to step.

    There are at least ``candidates`` columns, so that a top-k of so many is always full.
    """

    def __init__(self, weights: DecoderWeights, candidates: int) -> None:
        self.vocab_size = weights.vocab_size
        columns = max(self.vocab_size, candidates)
        self._width = min(TILE, columns)
        self._tiles = -(-columns // self._width)
        spare = self._tiles * self._width - self.vocab_size
        padded = F.pad(weights.head, (0, 0, 0, spare))
        self._weight = padded.view(self._tiles, self._width, -1).transpose(1, 2).contiguous()
        self._bias = None
        if weights.bias is not None:
            self._bias = F.pad(weights.bias, (0, spare)).view(self._tiles, 1, self._width)
        self._buffer = torch.empty(0, device=weights.head.device)

    def __call__(self, states: Tensor) -> Logits:
        """Logits of ``states`` (R, d) in float32, valid until the next call."""
        rows = len(states)
        tiles = self._room(rows)
        maxima, sums = tiles.new_empty(2, self._tiles, rows).unbind()
        for group in tile_groups(self._tiles, rows, self._width, states.device):
            self._multiply(states, group, tiles[group])
            torch.amax(tiles[group], dim=2, out=maxima[group])
            sums[group] = exponential_sums(tiles[group], maxima[group])
        normaliser = sums.log_().add_(maxima).logsumexp(dim=0)
        return Logits(tiles, maxima, normaliser, self.vocab_size)

    def _room(self, rows: int) -> Tensor:
        size = self._tiles * rows * self._width
        if size > len(self._buffer):
            self._buffer = self._buffer.new_empty(size)
        return self._buffer[:size].view(self._tiles, rows, self._width)

    def _multiply(self, states: Tensor, group: slice, out: Tensor) -> None:
        weight = self._weight[group]
        rows = states.expand(len(weight), -1, -1)
        if weight.dtype == out.dtype:
            torch.bmm(rows, weight, out=out)
        else:
            out.copy_(torch.bmm(rows, weight))
        if self._bias is not None:
            out += self._bias[group]
        if group.stop == self._tiles:
            out[-1, :, self._width - (self._tiles * self._width - self.vocab_size) :] = NEVER
