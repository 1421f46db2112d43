"""The sums of fourth order that debiased CKA needs beside second moments, exact under any shift of the mean."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

#: Picks the layers of the pairs from a stack of layers.
Pick = Callable[[Tensor], Tensor]


@dataclass
class ShiftedRows:
    """Rows (K, N, w) about their own mean, seen about a mean from which theirs is ``shift`` (K, w) away."""

    rows: Tensor
    shift: Tensor
    squares: Tensor  # |x + shift|^2 (K, N), float64

    @classmethod
    def about(cls, rows: Tensor, shift: Tensor) -> ShiftedRows:
        own = torch.linalg.vector_norm(rows, dim=-1).double().square()
        return cls(rows, shift, own + 2 * _times(rows, shift) + shift.square().sum(-1, keepdim=True))

    def of(self, pick: Pick) -> ShiftedRows:
        return ShiftedRows(pick(self.rows), pick(self.shift), pick(self.squares))

    def weighted(self, weights: Tensor) -> Tensor:
        """Sum of the shifted rows, each times its weight (K, N)."""
        return _times(self.rows.mT, weights) + self.shift * weights.sum(-1, keepdim=True)


@dataclass
class Shift:
    """How far the rows of K layers are ``by`` (K, w), and the ``trace`` (K,) of their second moment before it."""

    by: Tensor
    trace: Tensor

    def of(self, pick: Pick) -> Shift:
        return Shift(pick(self.by), pick(self.trace))


@dataclass
class ProductSums:
    """Sums over rows x (width v) and y (width w) of K products, about the means of all rows; float64."""

    both: Tensor  # sum |x|^2 |y|^2 (K,)
    first: Tensor  # sum x |y|^2 (K, v)
    second: Tensor  # sum y |x|^2 (K, w)

    @classmethod
    def zeros(cls, products: int, first: int, second: int, device: torch.device) -> ProductSums:
        sizes = ((products,), (products, first), (products, second))
        return cls(*(torch.zeros(size, dtype=torch.float64, device=device) for size in sizes))

    def add(self, x: ShiftedRows, y: ShiftedRows) -> None:
        """Add the products of more rows."""
        self.both += (x.squares * y.squares).sum(-1)
        self.first += x.weighted(y.squares)
        self.second += y.weighted(x.squares)

    def move(self, rows: Tensor, x: Shift, y: Shift, cross: Tensor) -> None:
        """Make these sums those of the rows x + d and y + e, where d and e are the shifts.

        ``rows`` () is their number, ``cross`` (K, v, w) is sum x y'. As sum x = sum y = 0 so far, every product
        expands into sums that are known: |x + d|^2 |y + e|^2 = (|x|^2 + 2 d x + |d|^2) (|y|^2 + 2 e y + |e|^2).
        """
        d, e = x.by, y.by
        dd, ee = d.square().sum(-1), e.square().sum(-1)
        along_e, along_d = _times(cross, e), _times(cross.mT, d)
        self.both += 2 * ((e * self.second).sum(-1) + (d * self.first).sum(-1)) + 4 * (d * along_e).sum(-1)
        self.both += ee * x.trace + dd * y.trace + rows * dd * ee
        self.first += 2 * along_e + d * (y.trace + rows * ee)[:, None]
        self.second += 2 * along_d + e * (x.trace + rows * dd)[:, None]


@dataclass
class FourthMoments:
    """Of the P pairs of a student and a teacher layer, and of each of the L_s and L_t layers with itself."""

    pairs: ProductSums
    student: ProductSums
    teacher: ProductSums

    def tensors(self) -> list[Tensor]:
        return [t for sums in (self.pairs, self.student, self.teacher) for t in (sums.both, sums.first, sums.second)]


def _times(matrices: Tensor, vectors: Tensor) -> Tensor:
    return torch.bmm(matrices, vectors.to(matrices).unsqueeze(-1)).squeeze(-1).double()
