"""Random numbers that belong to a sentence, whatever else is in its batch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

_UInt64s = npt.NDArray[np.uint64]


def sentence_key(seed: int, ids: Sequence[int] | np.ndarray[Any, Any]) -> int:
    """64 bits that follow from ``seed`` and the token ids of a source."""
    text = np.asarray(ids, dtype="<i8").tobytes()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8, key=seed.to_bytes(8, "little")).digest(), "little")


def uniforms(keys: _UInt64s, step: int, count: int) -> npt.NDArray[np.float64]:
    """``count`` numbers in (0, 1) for each of ``keys`` (B) in ``step``, as (B, count); no two calls share any."""
    counters = (np.arange(count, dtype=np.uint64) << np.uint64(32)) + np.uint64(step)
    bits = _mixed(_mixed(keys)[:, None] + counters[None])
    return ((bits >> np.uint64(32)).astype(np.float64) + 0.5) / 2.0**32


def _mixed(x: _UInt64s) -> _UInt64s:
    """The output function of SplitMix64 (Steele et al. 2014), which maps counters to independent-looking bits."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
