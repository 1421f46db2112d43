"""The hypotheses of one batch during a beam search, as tensors: those that still grow, and the best that have ended.

The rules are those of `transformers.generation` 5.23 (`_beam_search` with ``early_stopping=False``), read sentence by
sentence: of the ``2 W`` best continuations the first W may end; the best W that do not end go on; a sentence is done
when its best running hypothesis, scored at its present length, is no better than the worst of W ended ones.
For W = 1 this is greedy search: the first end outscores whatever else could follow, so the sentence is done.

Shapes: B sentences, W beams, K = 2 W continuations, t tokens so far including the decoder start.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cktk.generation.configs import SearchConfig
from cktk.generation.constraints import NEVER
from cktk.protocols import Hypothesis


class Limits:
    """Per-sentence facts that never change: where it stands in the input, its prompt, and its longest length.

    ``prompt`` (B, P) holds decoder start and prefix, filled up with -1; ``prompt_length`` and ``max_length`` (B) count
    the decoder start, as transformers' ``max_length`` does.
    """

    def __init__(self, index: Tensor, prompt: Tensor, max_length: Tensor) -> None:
        self.index = index
        self.prompt = prompt
        self.prompt_length = (prompt >= 0).sum(dim=1)
        self.max_length = max_length

    def keep(self, sentences: Tensor) -> Limits:
        """The facts of some of the sentences."""
        return Limits(self.index[sentences], self.prompt[sentences], self.max_length[sentences])


class Beams:
    """State of the search; starts with one beam per sentence that holds the part of the prompts that all have."""

    def __init__(self, config: SearchConfig, limits: Limits, eos: int) -> None:
        self.config = config
        self.limits = limits
        self.eos = eos
        batch, shortest = len(limits.index), int(limits.prompt_length.min())
        self.tokens = limits.prompt[:, None, :shortest]
        self.scores = torch.zeros(batch, 1, device=self.tokens.device)
        self.ended_tokens = self.tokens.new_zeros(batch, config.beam, 0)
        self.ended_lengths = self.tokens.new_zeros(batch, config.beam)
        self.ended_scores = self.scores.new_full((batch, config.beam), NEVER)
        self.done = torch.zeros(batch, dtype=torch.bool, device=self.tokens.device)

    @property
    def length(self) -> int:
        """Tokens of every running hypothesis, decoder start included."""
        return self.tokens.shape[2]

    def advance(self, scores: Tensor, parents: Tensor, tokens: Tensor) -> Tensor:
        """Take the K best continuations (arguments (B, K), best first); returns the parents (B, W) of the new beams."""
        width = self.config.beam
        length = self.length + 1
        in_prompt = length <= self.limits.prompt_length[:, None]
        at_end = length >= self.limits.max_length[:, None]
        ends = ((tokens == self.eos) & ~in_prompt) | at_end
        ending = ends[:, :width] & (scores[:, :width] > NEVER) & ~self.done[:, None]
        penalty = (length - self.limits.prompt_length[:, None]).clamp(min=1).float() ** self.config.lenpen
        if bool(ending.any()):
            final = (scores[:, :width] / penalty).masked_fill(~ending, NEVER)
            self._add_ended(final, self._extended(parents[:, :width], tokens[:, :width]))
        running, order = scores.masked_fill(ends, NEVER).topk(width, dim=1)
        self.scores, parents = running, parents.gather(1, order)
        self.tokens = self._extended(parents, tokens.gather(1, order))
        improvable = running[:, :1] / penalty > self.ended_scores.min(dim=1, keepdim=True).values
        self.done |= (~improvable | at_end).flatten()
        return parents

    def keep(self, sentences: Tensor) -> None:
        """Drop all sentences but those at the indices ``sentences``."""
        self.limits = self.limits.keep(sentences)
        for name in ("tokens", "scores", "ended_tokens", "ended_lengths", "ended_scores", "done"):
            setattr(self, name, getattr(self, name)[sentences])

    def results(self, sentence: int) -> list[Hypothesis]:
        """The n best ended hypotheses of a sentence; an empty one with score -inf if every path was forbidden."""
        found = []
        for place in range(min(self.config.nbest, self.config.beam)):
            score = float(self.ended_scores[sentence, place])
            if score > NEVER:
                length = int(self.ended_lengths[sentence, place])
                found.append(Hypothesis(tuple(self.ended_tokens[sentence, place, 1:length].tolist()), score))
        return found or [Hypothesis((), NEVER)]

    def _extended(self, parents: Tensor, tokens: Tensor) -> Tensor:
        history = self.tokens.gather(1, parents[:, :, None].expand(-1, -1, self.length))
        return torch.cat([history, tokens[:, :, None]], dim=2)

    def _add_ended(self, scores: Tensor, tokens: Tensor) -> None:
        """Merge newly ended hypotheses (B, W, t) into the table of the best W."""
        old = torch.nn.functional.pad(self.ended_tokens, (0, tokens.shape[2] - self.ended_tokens.shape[2]))
        lengths = torch.cat([self.ended_lengths, self.ended_lengths.new_full(scores.shape, tokens.shape[2])], dim=1)
        merged = torch.cat([self.ended_scores, scores], dim=1)
        self.ended_scores, order = merged.topk(self.config.beam, dim=1)
        self.ended_lengths = lengths.gather(1, order)
        self.ended_tokens = torch.cat([old, tokens], dim=1).take_along_dim(order[:, :, None], dim=1)
