"""The scores of all tokens for some rows, in tiles of columns: what a search may ask of them, and change in them.

Shapes: R rows, V tokens, T tiles of so many columns that they hold all tokens; columns without a token are -inf.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

NEVER = float("-inf")

#: Bytes of logits that are worked on at once: they stay in a core's cache.
CACHED_BYTES = 1 << 20


FindBest = Callable[[Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor, Tensor]]


class Shortlist:
    """Tokens ``kept`` (n, rising ids) of a vocabulary of ``size``: one column each, in their order."""

    def __init__(self, kept: Tensor, size: int) -> None:
        self._tokens = kept
        self._columns = torch.full((size,), -1, device=kept.device)
        self._columns[kept] = torch.arange(len(kept), device=kept.device)

    def columns(self, tokens: Tensor) -> Tensor:
        """Columns of ``tokens``, -1 where there is none."""
        return self._columns[tokens]

    def tokens(self, columns: Tensor) -> Tensor:
        """Tokens of ``columns``."""
        return self._tokens[columns]


class Logits:
    """Logits ``tiles`` (T, R, columns of a tile) with the largest of each tile, and the normaliser before any change.

    ``maxima`` (T, R) follow what is changed; ``normaliser`` (R), the log of the sum of the exponentials, does not.
    Columns are tokens, or those of a ``shortlist``; tokens without a column have logit -inf, whatever is done to them.
    ``find_best`` does what `best_columns` does.
    """

    def __init__(
        self,
        tiles: Tensor,
        maxima: Tensor,
        normaliser: Tensor,
        columns: int,
        shortlist: Shortlist | None = None,
        find_best: FindBest | None = None,
    ) -> None:
        self.tiles = tiles
        self.maxima = maxima
        self.normaliser = normaliser
        self.columns = columns
        self._shortlist = shortlist
        self._find_best = find_best or best_columns
        self.width = tiles.shape[2]

    def __len__(self) -> int:
        return self.tiles.shape[1]

    @property
    def device(self) -> torch.device:
        """Where the logits are."""
        return self.tiles.device

    def rows(self, numbers: Tensor) -> Logits:
        """A copy of some rows, in any order."""
        tiles, maxima = self.tiles[:, numbers], self.maxima[:, numbers]
        return Logits(tiles, maxima, self.normaliser[numbers], self.columns, self._shortlist, self._find_best)

    def at(self, tokens: Tensor) -> Tensor:
        """Logits (R, n) of ``tokens`` (R, n)."""
        columns = self._columns_of(tokens)
        found = self.tiles[columns // self.width, self._rows_of(tokens), columns % self.width]
        return found if self._shortlist is None else found.masked_fill(columns < 0, NEVER)

    def put(self, tokens: Tensor, values: Tensor) -> None:
        """Change the logits of ``tokens`` (R, n) to ``values`` (R, n); a token that occurs twice has equal values."""
        self._set(self._rows_of(tokens), tokens, values)

    def forbid(self, rows: Tensor, tokens: Tensor) -> None:
        """Make the tokens with the numbers ``tokens`` (n) impossible in the rows ``rows`` (n)."""
        self._set(rows, tokens, NEVER)

    def force(self, rows: Tensor, tokens: Tensor) -> None:
        """Make every other token impossible in the rows ``rows`` (n), and ``tokens`` (n) certain."""
        self.tiles[:, rows] = NEVER
        self.maxima[:, rows] = NEVER
        self._set(rows, tokens, self.normaliser[rows])

    def best(self, offsets: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """The ``count`` best continuations of each sentence, best first; exact, though most tiles are not looked at.

        ``offsets`` (B, W) is added to the logits of the rows, which are the W beams of B sentences. Returns scores,
        beams and tokens, each (B, count); what cannot be continued has score -inf and an arbitrary valid token.
        """
        scores, beams, columns = self._find_best(self.tiles, self.maxima, offsets, count)
        return scores, beams, self.tokens(columns)

    def tokens(self, columns: Tensor) -> Tensor:
        """The tokens of ``columns``, that of the last one where there are fewer."""
        columns = columns.clamp(max=self.columns - 1)
        return columns if self._shortlist is None else self._shortlist.tokens(columns)

    def _columns_of(self, tokens: Tensor) -> Tensor:
        return tokens if self._shortlist is None else self._shortlist.columns(tokens)

    def _rows_of(self, tokens: Tensor) -> Tensor:
        return torch.arange(len(self), device=self.device)[:, None].expand_as(tokens)

    def _set(self, rows: Tensor, tokens: Tensor, values: Tensor | float) -> None:
        columns = self._columns_of(tokens)
        if self._shortlist is not None:
            known = columns >= 0
            rows, columns = rows[known], columns[known]
            values = values[known] if isinstance(values, Tensor) else values
        tile = columns // self.width
        self.tiles[tile, rows, columns % self.width] = values
        self.maxima[tile, rows] = self.tiles[tile, rows].amax(dim=-1)


def best_columns(tiles: Tensor, maxima: Tensor, offsets: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, beams and columns (B, count) of the best continuations of sentences, best first.

    ``offsets`` (B, W) is added to the logits ``tiles`` (T, B * W, width), whose maxima are (T, B * W). The k best lie
    in the k tiles with the largest maxima.
    """
    batch, beams = offsets.shape
    heights = (maxima.t().view(batch, beams, -1) + offsets[:, :, None]).flatten(1)
    chosen = heights.topk(min(count, heights.shape[1]), dim=1).indices
    beam, tile = chosen // len(tiles), chosen % len(tiles)
    first = torch.arange(0, batch * beams, beams, device=tiles.device)[:, None]
    values = tiles[tile, first + beam] + offsets.gather(1, beam)[:, :, None]
    scores, place = values.flatten(1).topk(count, dim=1)
    place, column = place // tiles.shape[2], place % tiles.shape[2]
    return scores, beam.gather(1, place), tile.gather(1, place) * tiles.shape[2] + column


def tile_groups(tiles: int, rows: int, width: int, device: torch.device) -> list[slice]:
    """Neighbouring tiles (of ``rows`` x ``width`` floats each) that fit a cache together, all in order."""
    size = tiles if device.type != "cpu" else max(1, CACHED_BYTES * torch.get_num_threads() // (4 * rows * width))
    return [slice(start, min(start + size, tiles)) for start in range(0, tiles, size)]


def exponential_sums(tiles: Tensor, maxima: Tensor) -> Tensor:
    """Sums (T, R) over the columns of ``tiles`` (T, R, columns) of exp(logit - maximum)."""
    # A tile without any token has the maximum -inf.
    shifted = tiles - maxima.clamp(min=-1e30)[:, :, None]
    return shifted.exp_().sum(dim=2)
