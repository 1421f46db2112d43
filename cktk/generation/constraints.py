"""What the next token may be: forced tokens, shortest and longest output, no repeated n-grams.

All of them edit the logits in place, after the normaliser was taken: as in transformers' beam search, probability that
a constraint removes is not given to other tokens, and a forced token costs nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

NEVER = float("-inf")


def forbid_repeats(logits: Tensor, history: Tensor, size: int) -> None:
    """Ban each token that would complete an n-gram of ``size`` for the second time.

    ``logits`` is (R, V or more), ``history`` (R, t) holds the tokens so far, decoder start included.
    """
    length = history.shape[1]
    if length < size:
        return
    windows = history.unfold(1, size, 1)
    current = history[:, length + 1 - size :]
    repeats = (windows[:, :, :-1] == current[:, None]).all(dim=2)
    rows, starts = repeats.nonzero(as_tuple=True)
    logits[rows, windows[rows, starts, -1]] = NEVER


def force(logits: Tensor, normaliser: Tensor, tokens: Tensor) -> None:
    """Allow only ``tokens`` (R), at log-probability 0, in the rows where it is not negative."""
    rows = (tokens >= 0).nonzero().flatten()
    if len(rows):
        logits[rows] = NEVER
        logits[rows, tokens[rows]] = normaliser[rows]


def per_row(values: Tensor, beams: int) -> Tensor:
    """Repeat per-sentence ``values`` (B) for each beam: (B * W)."""
    return torch.repeat_interleave(values, beams)
