"""Terms of losses that average over the tokens of a side."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from cktk.protocols import LayerPair, Side, Term, Unit

_UNITS: dict[Side, Unit] = {"encoder": "source_token", "decoder": "target_token"}


def side_terms(name: str, pairs: tuple[LayerPair, ...], distance: Callable[[LayerPair], Tensor]) -> list[Term]:
    """One term per side that has pairs: the sum of ``distance`` (itself summed over rows) over its pairs.

    Logged are the mean over the side's pairs as ``name/side``, and each pair as ``name/side i<-j``.
    """
    terms = []
    for side, unit in _UNITS.items():
        own = [pair for pair in pairs if pair.side == side]
        if own:
            values = torch.stack([distance(pair) for pair in own])
            total = values.sum()
            parts = {f"{name}/{side}": total.detach() / len(own)}
            parts |= {f"{name}/{pair}": value for pair, value in zip(own, values.detach().unbind(), strict=True)}
            terms.append(Term(name, total, unit, parts=parts))
    return terms
