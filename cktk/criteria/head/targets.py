"""Sparse targets from a teacher's head input and head: its most probable tokens, or draws from its distribution."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from cktk.criteria.head.head_options import check_top_k
from cktk.criteria.head.logits import Logits, gather, log_sum, product_dtype, shaped
from cktk.protocols import HeadParams, SparseTargets

#: Most rows at one time where only a tile of their logits exists: more do not make the products faster.
_ROWS = 512

#: Ids and log probabilities (n, k) of some rows.
_Found = tuple[Tensor, Tensor]


@torch.no_grad()
def top_k_targets(states: Tensor, head: HeadParams, k: int, temperature: float, memory: int) -> SparseTargets:
    """The ``k`` most probable tokens for ``states`` (N, p), most probable first; logits exist a tile at a time.

    ``memory`` is the budget in bytes for them. Matrix products follow autocast, log probabilities are float32, float64
    for float64 states. Raises `ConfigError` if the vocabulary is smaller than ``k``.
    """
    check_top_k(k, len(head.weight))

    def find(logits: Logits) -> list[_Found]:
        columns = 2 * logits.width + 6 * k  # a tile and its exponentials; two sets of candidates with their ids
        chunks = _chunks(logits, columns, memory, _ROWS)
        scratch = [_rows_of(logits, chunks, logits.width) for _ in range(2)]
        return [_top_k(logits, rows, k, temperature, scratch) for rows in chunks]

    return _targets(states, head, k, temperature, find, sampled=False)


@torch.no_grad()
def sampled_targets(
    states: Tensor, head: HeadParams, k: int, temperature: float, memory: int, generator: torch.Generator | None
) -> SparseTargets:
    """``k`` draws for each of ``states`` (N, p) from the teacher's distribution at ``temperature``, repeats included.

    ``memory`` is the budget in bytes for the logits that exist at one time; the draws do not depend on it. Products and
    log probabilities as for `top_k_targets`.
    """
    uniform = torch.rand((len(states), k), generator=generator, dtype=torch.float64, device=states.device)

    def find(logits: Logits) -> list[_Found]:
        chunks = _chunks(logits, logits.size + 4 * logits.width, memory)  # a tile's probabilities are float64
        buffer, scratch = (_rows_of(logits, chunks, width) for width in (logits.size, logits.width))
        return [_draws(logits, rows, uniform[rows], temperature, buffer, scratch) for rows in chunks]

    return _targets(states, head, k, temperature, find, sampled=True)


def _targets(
    states: Tensor,
    head: HeadParams,
    k: int,
    temperature: float,
    find: Callable[[Logits], list[_Found]],
    *,
    sampled: bool,
) -> SparseTargets:
    device = states.device.type
    products = product_dtype(device)
    with torch.autocast(device, enabled=False):
        logits = Logits(states, head, products)
        # The first of these is there for states without rows.
        nothing = (states.new_empty((0, k), dtype=torch.int64), states.new_empty((0, k), dtype=logits.working))
        ids, log_probs = zip(nothing, *find(logits), strict=True)
    return SparseTargets(torch.cat(ids), torch.cat(log_probs), sampled, temperature)


def _chunks(logits: Logits, columns: int, memory: int, most: int | None = None) -> list[slice]:
    """Slices of rows with ``columns`` numbers each that fit the budget."""
    count = len(logits.states)
    rows = max(1, memory // (columns * logits.working.itemsize))
    rows = min(rows, count if most is None else most)
    return [slice(start, min(start + rows, count)) for start in range(0, count, max(1, rows))]


def _rows_of(logits: Logits, chunks: list[slice], width: int) -> Tensor:
    rows = max((chunk.stop - chunk.start for chunk in chunks), default=0)
    return logits.states.new_empty(rows * width, dtype=logits.working)


def _top_k(logits: Logits, rows: slice, k: int, temperature: float, scratch: list[Tensor]) -> _Found:
    """The best of all tiles' best."""
    states = logits.states[rows]
    sums: list[Tensor] = []
    values = states.new_empty((len(states), 0), dtype=logits.working)
    ids = values.to(torch.int64)
    for part in logits.columns:
        tile = shaped(scratch[0], len(states), part.stop - part.start)
        logits.finish(part, logits.multiply(states, part, tile))
        sums.append(log_sum(tile, temperature, part, scratch[1]))
        of_tile, places = tile.topk(min(k, tile.shape[1]), 1)
        values, ids = torch.cat([values, of_tile], 1), torch.cat([ids, places.add_(part.start)], 1)
        values, places = values.topk(min(k, values.shape[1]), 1)
        ids = ids.gather(1, places)
    return ids, values.div_(temperature).sub_(torch.cat(sums, 1).logsumexp(1, keepdim=True))


def _draws(logits: Logits, rows: slice, uniform: Tensor, temperature: float, buffer: Tensor, scratch: Tensor) -> _Found:
    """The tokens at ``uniform`` (n, k) of the cumulative distribution: first the tile of each, then the place in it."""
    tiles, (sums,) = logits.fill(rows, buffer, scratch, (temperature,))
    ends = sums.double().softmax(1).cumsum(1)
    ends /= ends[:, -1:].clone()
    # The last index is out of range for NaN alone, whose log probabilities below are NaN too.
    chosen = torch.searchsorted(ends, uniform, right=True).clamp(max=len(tiles) - 1)
    starts = torch.cat([torch.zeros_like(ends[:, :1]), ends], 1)
    low, high = starts.gather(1, chosen), starts.gather(1, chosen + 1)
    within = (uniform - low) / (high - low)
    ids = torch.zeros_like(chosen)
    for i, (tile, part) in enumerate(zip(tiles, logits.columns, strict=True)):
        log_p = torch.div(tile, temperature, out=shaped(scratch, *tile.shape)).sub_(sums[:, i : i + 1])
        weights = log_p.double().exp_().cumsum_(1)
        places = torch.searchsorted(weights, within * weights[:, -1:], right=True)
        ids = torch.where(chosen == i, part.start + places.clamp(max=tile.shape[1] - 1), ids)
    return ids, gather(tiles, logits.columns, ids).div_(temperature).sub_(sums.logsumexp(1, keepdim=True))
