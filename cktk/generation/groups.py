"""Diverse beam search: groups of beams that avoid one another's tokens (Vijayakumar et al. 2018, Hamming diversity)."""

from __future__ import annotations

import heapq

import torch
from torch import Tensor

from cktk.generation.beams import Beams
from cktk.generation.configs import SearchConfig
from cktk.generation.head import OutputHead
from cktk.generation.hypotheses import Limits
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

    def choose(self, head: OutputHead, logits: Tensor, normaliser: Tensor, forced: Tensor) -> Tensor:
        """See `Hypotheses.choose`."""
        batch, shared = len(forced), self._at_prompt
        rows, normalisers = logits.view(batch, -1, logits.shape[1]), normaliser.view(batch, -1)
        strength = torch.where(forced < 0, self._strength, 0.0)
        losses = logits.new_zeros(batch, head.columns)
        parents, first = [], 0
        for group in self._groups:
            beams = slice(first, first + group.scores.shape[1])
            own = rows[:, beams] - losses[:, None]
            found = group.choose(head, own.flatten(0, 1), normalisers[:, beams].flatten(), forced)
            parents.append(found + first)
            taken = group.tokens[:, :, -1]
            counts = (strength * ~group.done)[:, None] * (group.scores > float("-inf"))
            losses.scatter_add_(1, taken, counts)
            first = 0 if shared else beams.stop
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
        return [hypothesis for hypothesis in best if hypothesis.score > float("-inf")] or best[:1]
