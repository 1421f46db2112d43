"""What every search keeps for a batch of sentences, whether it follows beams or draws.

Shapes: B sentences, W hypotheses of a sentence that grow side by side, t tokens so far including the decoder start.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from cktk.generation.logits import Logits
from cktk.protocols import Hypothesis


class Limits:
    """Per-sentence facts that never change: where it stands in the input, its prompt, and its longest length.

    ``prompt`` (B, P) holds decoder start and prefix, filled up with -1; ``prompt_length`` and ``max_length`` (B) count
    the decoder start, as transformers' ``max_length`` does. ``context`` (B) tokens of the prompt belong to sentences
    before.
    """

    def __init__(self, index: Tensor, prompt: Tensor, max_length: Tensor, context: Tensor) -> None:
        self.index = index
        self.prompt = prompt
        self.prompt_length = (prompt >= 0).sum(dim=1)
        self.max_length = max_length
        self.context = context
        #: Bounds as plain numbers: most steps are beyond or before all of them, and need not look at any sentence.
        self.least_max_length = int(max_length.min()) if len(max_length) else 0
        self.most_context = int(context.max()) if len(context) else 0

    def keep(self, sentences: Tensor) -> Limits:
        """The facts of some of the sentences."""
        kept = (self.index, self.prompt, self.max_length, self.context)
        return Limits(*(fact[sentences] for fact in kept))


class Hypotheses(Protocol):
    """The hypotheses of a batch: those that grow, ``tokens`` (B, W, t), and those that have ended.

    They start with W = 1 and the part of the prompts that all sentences have.
    """

    @property
    def tokens(self) -> Tensor: ...

    @property
    def limits(self) -> Limits: ...

    @property
    def done(self) -> Tensor:
        """Which sentences (B) need no further step."""
        ...

    def choose(self, logits: Logits, forced: Tensor) -> Tensor:
        """Grow by one token; returns the parents (B, W') of the new hypotheses.

        ``logits`` of B * W rows are those of `OutputHead` with all constraints; ``forced`` (B) is not negative where a
        sentence has no choice.
        """
        ...

    def keep(self, sentences: Tensor) -> None:
        """Drop all sentences but those at the indices ``sentences``."""
        ...

    def results(self, sentence: int) -> list[Hypothesis]:
        """The n best hypotheses of a sentence; an empty one with score -inf if every path was forbidden."""
        ...
