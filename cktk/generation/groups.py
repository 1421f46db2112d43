"""Diverse beam search: groups of beams that avoid one another's tokens (Vijayakumar et al. 2018, Hamming diversity)."""

from __future__ import annotations

import heapq

import torch
from torch import Tensor

from cktk.generation.beams import Beams
from cktk.generation.configs import SearchConfig
from cktk.generation.hypotheses import Limits
from cktk.generation.logits import NEVER, Logits
from cktk.protocols import Hypothesis


class GroupedBeams:
    """Beams in groups, each a beam search of its own; see `cktk.generation.hypotheses.Hypotheses`.

    In every step the groups choose one after the other. A token loses ``diverse_beam_strength`` for each beam of an
    earlier group that goes on with it; as in fairseq the loss stays in the scores. Nothing is lost where a token is
    forced, and groups that have finished a sentence do not count there.
    """

    def __init__(self, config: SearchConfig, limits: Limits, eos: int) -> None:
        self._strength = config.diverse_beam_strength
        self._nbest = config.nbest
        self._groups = [Beams(config, config.beam // config.groups, limits, eos) for _ in range(config.groups)]
        # Before the first choice all groups stand at the one beam of the prompt.
        self._at_prompt = True

    @property
    def limits(self) -> Limits:
        """See `Hypotheses`."""
        return self._groups[0].limits

    @property
    def tokens(self) -> Tensor:
        """See `Hypotheses`."""
        first = self._groups[0].tokens
        return first if self._at_prompt else torch.cat([group.tokens for group in self._groups], dim=1)

    @property
    def done(self) -> Tensor:
        """See `Hypotheses`."""
        return torch.stack([group.done for group in self._groups]).all(dim=0)

    def choose(self, logits: Logits, forced: Tensor) -> Tensor:
        """See `Hypotheses.choose`."""
        batch, shared = len(forced), self._at_prompt
        beams = torch.arange(len(logits), device=logits.device).view(batch, -1)
        strength = torch.where(forced < 0, self._strength, 0.0)[:, None]
        taken, losses = forced.new_empty(batch, 0), logits.normaliser.new_empty(batch, 0)
        parents, first = [], 0
        for group in self._groups:
            count = group.scores.shape[1]
            own = logits.rows(beams[:, first : first + count].flatten())
            _lower(own, taken.repeat_interleave(count, 0), losses.repeat_interleave(count, 0))
            parents.append(group.choose(own, forced) + first)
            chosen = strength * ~group.done[:, None] * (group.scores > NEVER)
            taken, losses = torch.cat([taken, group.tokens[:, :, -1]], 1), torch.cat([losses, chosen], 1)
            first = 0 if shared else first + count
        self._at_prompt = False
        return torch.cat(parents, dim=1)

    def keep(self, sentences: Tensor) -> None:
        """See `Hypotheses.keep`."""
        for group in self._groups:
            group.keep(sentences)

    def results(self, sentence: int) -> list[Hypothesis]:
        """See `Hypotheses.results`; the groups' best together, where several may hold the same tokens."""
        found = [hypothesis for group in self._groups for hypothesis in group.results(sentence)]
        best = heapq.nlargest(self._nbest, found, key=lambda hypothesis: hypothesis.score)
        return [hypothesis for hypothesis in best if hypothesis.score > NEVER] or best[:1]


def _lower(logits: Logits, tokens: Tensor, losses: Tensor) -> None:
    """Take ``losses`` (R, n) off the logits of ``tokens`` (R, n); a token that occurs several times loses their sum."""
    if tokens.shape[1]:
        together = ((tokens[:, :, None] == tokens[:, None, :]) * losses[:, None, :]).sum(dim=2)
        logits.put(tokens, logits.at(tokens) - together)
