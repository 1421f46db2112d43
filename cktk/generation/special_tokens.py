"""The token ids that steer a search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cktk.errors import CheckpointError


@dataclass(frozen=True)
class SpecialTokens:
    """The ids of a model's generation config, or of the language asked for.

    ``never`` are tokens that a model must not write, such as the pad of MarianMT.
    """

    pad: int
    eos: int
    start: int
    forced_first: int | None
    forced_last: int | None
    never: tuple[int, ...] = ()

    @classmethod
    def of(cls, model: Any, start: int | None, forced_bos: int | None) -> SpecialTokens:
        """Read them from ``model``; ``start`` and ``forced_bos`` replace its decoder start and forced first token."""
        config = model.generation_config
        start = config.decoder_start_token_id if start is None else start
        start = config.bos_token_id if start is None else start
        eos, last = _single(config.eos_token_id), _single(config.forced_eos_token_id)
        if start is None or eos is None:
            missing = "decoder_start_token_id" if start is None else "eos_token_id"
            raise CheckpointError(f"the model's generation config names no {missing}; add it to generation_config.json")
        pad = eos if config.pad_token_id is None else config.pad_token_id
        first = config.forced_bos_token_id if forced_bos is None else forced_bos
        return cls(pad, eos, start, first, last, _never(config))


def _never(config: Any) -> tuple[int, ...]:
    words = [word[0] for word in config.bad_words_ids or () if len(word) == 1]
    return tuple(dict.fromkeys([*words, *(config.suppress_tokens or ())]))


def _single(token: int | list[int] | None) -> int | None:
    if isinstance(token, list):
        if len(token) != 1:
            raise CheckpointError(f"the model's generation config names {len(token)} end tokens; keep one")
        return token[0]
    return token
