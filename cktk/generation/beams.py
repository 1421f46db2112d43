"""The hypotheses of one batch during a beam search, as tensors: those that still grow, and the best that have ended.

The rules are those of `transformers.generation` 5.23 (`_beam_search`), read sentence by sentence: of the ``2 W`` best
continuations the first W may end; the best W that do not end go on; a sentence is done when W hypotheses have ended
and, unless stopping is early, none of them can be improved upon: the best running hypothesis is scored at its present
length, or with ``early_stopping`` "never" at the length that suits it best.
For W = 1 this is greedy search: the first end outscores whatever else could follow, so the sentence is done.

Shapes: B sentences, W beams, K = 2 W continuations, t tokens so far including the decoder start.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cktk.generation.configs import SearchConfig
from cktk.generation.hypotheses import Limits
from cktk.generation.logits import NEVER, Logits
from cktk.protocols import Hypothesis


class Beams:
    """The beams of a batch, ``width`` of a sentence; see `cktk.generation.hypotheses.Hypotheses`."""

    def __init__(self, config: SearchConfig, width: int, limits: Limits, eos: int) -> None:
        self._lenpen = config.lenpen
        self._early_stopping = config.early_stopping
        self._nbest = config.nbest
        self.width = width
        self.limits = limits
        self.eos = eos
        batch, shortest = len(limits.index), int(limits.prompt_length.min())
        self.tokens = limits.prompt[:, None, :shortest]
        self.scores = torch.zeros(batch, 1, device=self.tokens.device)
        self.ended_tokens = self.tokens.new_zeros(batch, width, 0)
        self.ended_lengths = self.tokens.new_zeros(batch, width)
        self.ended_scores = self.scores.new_full((batch, width), NEVER)
        self.done = torch.zeros(batch, dtype=torch.bool, device=self.tokens.device)

    @property
    def length(self) -> int:
        """Tokens of every running hypothesis, decoder start included."""
        return self.tokens.shape[2]

    def choose(self, logits: Logits, forced: Tensor) -> Tensor:  # noqa: ARG002
        """See `Hypotheses.choose`."""
        offsets = self.scores - logits.normaliser.view_as(self.scores)
        return self.advance(*logits.best(offsets, 2 * self.width))

    def advance(self, scores: Tensor, parents: Tensor, tokens: Tensor) -> Tensor:
        """Take the K best continuations (arguments (B, K), best first); returns the parents (B, W) of the new beams."""
        width = self.width
        length = self.length + 1
        in_prompt = length <= self.limits.prompt_length[:, None]
        at_end = length >= self.limits.max_length[:, None]
        ends = ((tokens == self.eos) & ~in_prompt) | at_end
        ending = ends[:, :width] & (scores[:, :width] > NEVER) & ~self.done[:, None]
        written = (length - self.limits.prompt_length[:, None]).clamp(min=1)
        penalty = written.float() ** self._lenpen
        if bool(ending.any()):
            final = (scores[:, :width] / penalty).masked_fill(~ending, NEVER)
            self._add_ended(final, self._extended(parents[:, :width], tokens[:, :width]))
        running, order = scores.masked_fill(ends, NEVER).topk(width, dim=1)
        self.scores, parents = running, parents.gather(1, order)
        self.tokens = self._extended(parents, tokens.gather(1, order))
        self.done |= ~self._improvable(running[:, 0], penalty[:, 0]) | at_end[:, 0]
        return parents

    def _improvable(self, best: Tensor, penalty: Tensor) -> Tensor:
        """Whether sentences (B) whose best running hypothesis has log-probability ``best`` may still gain from it."""
        worst = self.ended_scores[:, -1]
        if self._early_stopping == "true":
            return (worst == NEVER) & (best > NEVER)
        if self._early_stopping == "never" and self._lenpen > 0:
            penalty = (self.limits.max_length - self.limits.prompt_length).clamp(min=1).float() ** self._lenpen
        return best / penalty > worst

    def keep(self, sentences: Tensor) -> None:
        """See `Hypotheses.keep`."""
        self.limits = self.limits.keep(sentences)
        for name in ("tokens", "scores", "ended_tokens", "ended_lengths", "ended_scores", "done"):
            setattr(self, name, getattr(self, name)[sentences])

    def results(self, sentence: int) -> list[Hypothesis]:
        """See `Hypotheses.results`."""
        found = []
        for place in range(min(self._nbest, self.width)):
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
        self.ended_scores, order = merged.topk(self.width, dim=1)
        self.ended_lengths = lengths.gather(1, order)
        self.ended_tokens = torch.cat([old, tokens], dim=1).take_along_dim(order[:, :, None], dim=1)
