"""From decoder states to the best next tokens, without sorting the whole vocabulary.

Only the product with the output matrix, the normaliser and one block-wise maximum touch all V columns. The k best of a
row lie in the k blocks with the largest maxima, so only those blocks are searched: exact, and several times cheaper
than a top-k over everything.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cktk.generation.weights import DecoderWeights

#: Floats that one slice of the normaliser works on: it should stay in the cache of a core.
SLICE = 1 << 17


class OutputHead:
    """Scores all tokens of all beams. One buffer for the logits is reused from step to step.

    Columns are padded to whole blocks with -inf, and to at least ``candidates`` of them, so that top-k is always full.
    """

    def __init__(self, weights: DecoderWeights, candidates: int) -> None:
        self.vocab_size = weights.vocab_size
        # Work is about V / block + candidates * block for each row, which is smallest near sqrt(V / candidates).
        self.block = 1 << max(4, round(math.log2(math.sqrt(self.vocab_size / candidates))))
        self.columns = -(-max(self.vocab_size, candidates) // self.block) * self.block
        self._transposed = weights.head.t()
        self._bias = weights.bias
        self._buffer = weights.head.new_empty(0, self.columns)

    def logits(self, states: Tensor) -> Tensor:
        """Logits (R, columns) of ``states`` (R, d) in float32, valid until the next call."""
        rows = len(states)
        if rows > len(self._buffer):
            self._buffer = self._buffer.new_full((rows, self.columns), float("-inf"))
        torch.mm(states, self._transposed, out=self._buffer[:rows, : self.vocab_size])
        if self._bias is not None:
            self._buffer[:rows, : self.vocab_size] += self._bias
        return self._buffer[:rows].float()

    def normaliser(self, logits: Tensor) -> Tensor:
        """log sum exp of each row of ``logits`` (R, columns), as (R)."""
        largest = logits.view(len(logits), -1, self.block).amax(dim=2).amax(dim=1)
        step = max(1, SLICE // self.columns)
        total = torch.empty_like(largest)
        for start in range(0, len(logits), step):
            rows = slice(start, start + step)
            total[rows] = (logits[rows] - largest[rows, None]).exp_().sum(dim=1)
        return total.log_().add_(largest)

    def best(self, logits: Tensor, offsets: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """The ``count`` best continuations of each sentence, best first.

        ``logits`` is (B * W, columns) and ``offsets`` (B, W) is added to the scores of a beam. Returns scores, beams
        and tokens, each (B, count); what cannot be continued has score -inf and an arbitrary valid token.
        """
        batch, beams = offsets.shape
        blocks = logits.view(batch, beams, -1, self.block)
        maxima = (blocks.amax(dim=3) + offsets[:, :, None]).view(batch, -1)
        chosen = maxima.topk(min(count, maxima.shape[1]), dim=1).indices
        beam = chosen // blocks.shape[2]
        values = blocks.view(batch, -1, self.block).take_along_dim(chosen[:, :, None], dim=1)
        values = values + offsets.gather(1, beam)[:, :, None]
        scores, place = values.flatten(1).topk(count, dim=1)
        place, column = place // self.block, place % self.block
        block = chosen.gather(1, place)
        tokens = (block % blocks.shape[2]) * self.block + column
        return scores, beam.gather(1, place), tokens.clamp_(max=self.vocab_size - 1)
