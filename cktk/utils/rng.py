"""Random numbers as a function of place: nothing to save, nothing to restore, the same on every world size."""

from __future__ import annotations

import hashlib

import torch


def place_seed(*place: int | str) -> int:
    """A seed of 63 bits that follows from ``place``."""
    digest = hashlib.blake2b(repr(place).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def seed_everything_from(*place: int) -> None:
    """Seed torch's generators (CPU and devices) from ``place``, e.g. (seed, update, micro-batch of the update).

    Dropout then depends on where in the run a micro-batch stands and on nothing that ran before: a replayed forward
    draws the same masks, and a resumed run needs no saved generator state.
    """
    torch.manual_seed(place_seed(*place))
