"""What scores the next token of every hypothesis: a model, or several whose probabilities are averaged.

Shapes: B sentences, W hypotheses of a sentence, S source positions, R = B * W rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from cktk.generation.configs import SearchConfig
from cktk.generation.decoder import DecoderState, IncrementalDecoder
from cktk.generation.head import OutputHead
from cktk.generation.logits import Logits, tile_groups
from cktk.protocols import DecoderLayout


class State(Protocol):
    """What is remembered of a batch while it is decoded."""

    def reorder(self, parents: Tensor) -> None:
        """Continue with new hypotheses: ``parents`` (B, W') holds the one that each comes from."""
        ...

    def keep(self, sentences: Tensor) -> None:
        """Drop all sentences but those at the indices ``sentences``."""
        ...


class Scorer(Protocol):
    """Scores next tokens. ``max_positions`` is how many tokens may be fed, None: no limit."""

    device: torch.device
    max_positions: int | None

    def start(self, input_ids: Tensor, attention_mask: Tensor | None) -> Any:
        """Read sources (B, S) and return the state of their decoding; the mask is None where nothing is padded."""
        ...

    def feed(self, state: Any, tokens: Tensor) -> None:
        """Go on by ``tokens`` (B, W) without asking what follows."""
        ...

    def step(self, state: Any, tokens: Tensor) -> Logits:
        """Go on by ``tokens`` (B, W); the logits of what follows, valid until the next call."""
        ...


class ModelScorer:
    """One model, whose weights are read here; see `Scorer`. Only ``kept`` tokens can be written, None: all."""

    def __init__(
        self, model: Any, layout: DecoderLayout, config: SearchConfig, candidates: int, *, kept: Tensor | None = None
    ) -> None:
        int8 = config.quantization == "int8"
        self._decoder = IncrementalDecoder(model, layout, int8=int8, compiled=config.compile)
        self._head = OutputHead(self._decoder.weights, self._decoder.operators, candidates, kept=kept)
        self.device = self._decoder.device
        self.max_positions = self._decoder.weights.max_positions

    def start(self, input_ids: Tensor, attention_mask: Tensor | None) -> DecoderState:
        """See `Scorer`."""
        return self._decoder.start(input_ids, attention_mask)

    def feed(self, state: DecoderState, tokens: Tensor) -> None:
        """See `Scorer`."""
        self._decoder.step(state, tokens)

    def step(self, state: DecoderState, tokens: Tensor) -> Logits:
        """See `Scorer`."""
        return self._head(self._decoder.step(state, tokens))


class EnsembleState:
    """The states of the members; see `State`."""

    def __init__(self, members: Sequence[State]) -> None:
        self.members = members

    def reorder(self, parents: Tensor) -> None:
        """See `State`."""
        for member in self.members:
            member.reorder(parents)

    def keep(self, sentences: Tensor) -> None:
        """See `State`."""
        for member in self.members:
            member.keep(sentences)


class Ensemble:
    """Several models of one vocabulary, whose probabilities are averaged; see `Scorer`.

    Their logits are in tiles of equal widths, as those of heads for equally many candidates are.
    """

    def __init__(self, members: Sequence[Scorer]) -> None:
        self._members = members
        self.device = members[0].device
        limits = [member.max_positions for member in members if member.max_positions is not None]
        self.max_positions = min(limits, default=None)

    def start(self, input_ids: Tensor, attention_mask: Tensor | None) -> EnsembleState:
        """See `Scorer`."""
        return EnsembleState([member.start(input_ids, attention_mask) for member in self._members])

    def feed(self, state: EnsembleState, tokens: Tensor) -> None:
        """See `Scorer`."""
        for member, own in zip(self._members, state.members, strict=True):
            member.feed(own, tokens)

    def step(self, state: EnsembleState, tokens: Tensor) -> Logits:
        """See `Scorer`; the logits are logs of the mean probabilities, and their normaliser is 0."""
        found = [member.step(own, tokens) for member, own in zip(self._members, state.members, strict=True)]
        first = found[0]
        share = math.log(len(found))
        for group in tile_groups(len(first.tiles), len(first), first.width, self.device):
            together = first.tiles[group].sub_(first.normaliser[:, None])
            for other in found[1:]:
                torch.logaddexp(together, other.tiles[group] - other.normaliser[:, None], out=together)
            torch.amax(together.sub_(share), dim=2, out=first.maxima[group])
        first.normaliser = torch.zeros_like(first.normaliser)
        return first
