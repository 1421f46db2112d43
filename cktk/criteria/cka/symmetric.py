"""Sums of symmetric matrices X'X at little more than half the work: only the blocks on and right of the diagonal.

Such a sum is a stack (L, w, w) whose blocks left of the diagonal hold nothing of meaning until `mirror` fills them.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

#: Rows of a block: smaller ones save more multiplications, but make products too thin to be fast.
_BLOCK = 256


def add_squares(sums: Tensor, rows: Tensor) -> None:
    """Add X'X of each ``rows`` (L, R, w) to ``sums`` (L, w, w), in place."""
    for start, end in _blocks(sums):
        sums[:, start:end, start:].baddbmm_(rows[:, :, start:end].mT, rows[:, :, start:])


def mirror(sums: Tensor) -> Tensor:
    """Fill the blocks left of the diagonal, in place."""
    for start, end in _blocks(sums):
        sums[:, end:, start:end] = sums[:, start:end, end:].mT
    return sums


def norms(sums: Tensor) -> Tensor:
    """Frobenius norms (L,) in float64."""
    squares = torch.zeros(len(sums), dtype=torch.float64, device=sums.device)
    for start, end in _blocks(sums):
        squares += _squares(sums[:, start:end, start:end]) + 2 * _squares(sums[:, start:end, end:])
    return squares.sqrt()


def dots(first: Tensor, second: Tensor) -> Tensor:
    """Inner products (L,) in float64 of two such sums."""
    found = torch.zeros(len(first), dtype=torch.float64, device=first.device)
    for start, end in _blocks(first):
        product = first[:, start:end, start:] * second[:, start:end, start:]
        product[:, :, end - start :] *= 2
        found += product.sum(-1).double().sum(-1)
    return found


def dense_norms(matrices: Tensor) -> Tensor:
    """Frobenius norms (L,) in float64 of any ``matrices`` (L, v, w)."""
    return _squares(matrices).sqrt()


def traces(sums: Tensor) -> Tensor:
    """Traces (L,) in float64."""
    return sums.diagonal(dim1=1, dim2=2).double().sum(-1)


def _squares(matrices: Tensor) -> Tensor:
    # Each row's norm in the matrices' own precision: a copy of all in float64 would take as long as a product.
    rows: Tensor = torch.linalg.vector_norm(matrices, dim=2)
    return rows.double().square().sum(-1)


def _blocks(sums: Tensor) -> Iterator[tuple[int, int]]:
    width = sums.shape[-1]
    for start in range(0, width, _BLOCK):
        yield start, min(start + _BLOCK, width)
