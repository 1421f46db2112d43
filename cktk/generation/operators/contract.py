"""What decoding computes with. `choose_operators` says which implementation a device and a precision get.

Shapes: R rows (a row is a beam of a sentence), B sentences, W beams of each, H heads, a width of all of them, n cache
slots, T tiles.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor
from torch.nn import functional as F

Activation = Callable[[Tensor], Tensor]


def gelu_tanh(x: Tensor) -> Tensor:
    """The approximation of GELU by a hyperbolic tangent (Hendrycks and Gimpel 2016)."""
    return F.gelu(x, approximate="tanh")


class Linear(Protocol):
    """``activation(x @ weight.T + bias)`` for rows x (R, in); the result is (R, out)."""

    @property
    def features(self) -> tuple[int, int]:
        """Sizes of input and output."""
        ...

    def __call__(self, x: Tensor) -> Tensor: ...


class Norm(Protocol):
    """The norm of rows ``x + added`` (R, d)."""

    def __call__(self, x: Tensor, added: Tensor | None = None) -> Tensor: ...


class TileProduct(Protocol):
    """Writes the logits of rows (R, d) to ``tiles`` (T, R, width) and the largest of each to ``maxima`` (T, R).

    Returns their normaliser (R), the log of the sum of exponentials of a row. All that is written to is contiguous.
    """

    def __call__(self, states: Tensor, tiles: Tensor, maxima: Tensor) -> Tensor: ...


class Operators(Protocol):
    """Makes the parts of a decoder from its weights, and computes its attention."""

    def linear(self, weight: Tensor, bias: Tensor | None, activation: Activation | None = None) -> Linear:
        """The product with ``weight`` (out, in)."""
        ...

    def norm(self, weight: Tensor, bias: Tensor | None, eps: float) -> Norm:
        """LayerNorm with ``weight`` and ``bias`` (d), RMS norm without ``bias``."""
        ...

    def tiles(self, weight: Tensor, bias: Tensor | None, columns: int) -> TileProduct:
        """The output head: ``weight`` (T, width, d), ``bias`` (T, width); only the first ``columns`` columns count.

        A width is a multiple of 32. The logits of columns that do not count are -inf.
        """
        ...

    def best(self, tiles: Tensor, maxima: Tensor, offsets: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """The best continuations of each sentence; see `cktk.generation.logits.best_columns`."""
        ...

    def attend(self, query: Tensor, cache: Tensor, mask: Tensor | None) -> Tensor:
        """Attention of scaled queries (R, a) to the slots of ``cache`` (2, B, H, n, a / H), as rows (R, a).

        ``mask`` is added to the scores, -inf hides a slot; it broadcasts to (B, H, W, n).
        """
        ...

    def append_and_attend(self, mixed: Tensor, cache: Tensor, slots: tuple[int, int], mask: Tensor | None) -> Tensor:
        """Write keys and values of ``mixed`` (R, 3 a: query, key, value) to ``slots`` (from, to); attend up to them.

        ``cache`` (2, B, H, capacity, a / H) is contiguous; ``mask`` is for all slots up to these.
        """
        ...

    def keep_slots(self, cache: Tensor, slots: Tensor) -> None:
        """Move the slots ``slots`` (B, m; rising numbers) to the beginning of ``cache`` (2, B, H, n, a / H)."""
        ...
