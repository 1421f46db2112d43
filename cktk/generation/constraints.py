"""What the next token may be: forced tokens, shortest and longest output, nothing repeated.

All of these edit the logits in place, after the normaliser was taken: as in transformers' beam search, probability that
a constraint removes is not given to other tokens, and a forced token costs nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cktk.generation.configs import SearchConfig
from cktk.generation.hypotheses import Hypotheses
from cktk.generation.logits import Logits
from cktk.generation.special_tokens import SpecialTokens


class Constraints:
    """The rules of one search, applied in the order of transformers' logits processors."""

    def __init__(self, config: SearchConfig, special: SpecialTokens) -> None:
        self._config = config
        self.special = special
        # transformers runs its processors on log-probabilities in beam search, on the logits themselves elsewhere.
        self._of_log_probs = config.beam > 1

    def apply(self, logits: Logits, hypotheses: Hypotheses) -> Tensor:
        """Edit ``logits`` of B * W rows; returns the token that each sentence (B) has to take, or -1."""
        config, special, limits = self._config, self.special, hypotheses.limits
        tokens = hypotheses.tokens
        length = tokens.shape[2]
        if config.repetition_penalty != 1.0:
            history = tokens.flatten(0, 1)
            penalise_repeats(logits, history, config.repetition_penalty, of_log_probs=self._of_log_probs)
        if config.no_repeat_ngram_size:
            forbid_repeats(logits, tokens.flatten(0, 1), config.no_repeat_ngram_size)
        if length - limits.most_context <= config.min_len:
            short = torch.repeat_interleave(length - limits.context <= config.min_len, tokens.shape[1])
            rows = short.nonzero().flatten()
            logits.forbid(rows, torch.full_like(rows, special.eos))
        for never in special.never:
            rows = torch.arange(len(logits), device=tokens.device)
            logits.forbid(rows, torch.full_like(rows, never))
        in_prompt = length < limits.prompt.shape[1]
        first = special.forced_first if length == 1 else None
        last = special.forced_last if length + 1 >= limits.least_max_length else None
        forced = limits.prompt[:, length] if in_prompt else torch.full_like(limits.index, -1)
        if first is not None:
            forced = torch.where(limits.prompt_length == 1, first, forced)
        if last is not None:
            forced = torch.where(limits.max_length == length + 1, last, forced)
        if in_prompt or first is not None or last is not None:
            token = torch.repeat_interleave(forced, tokens.shape[1])
            rows = (token >= 0).nonzero().flatten()
            logits.force(rows, token[rows])
        return forced


def penalise_repeats(logits: Logits, history: Tensor, penalty: float, *, of_log_probs: bool) -> None:
    """Make tokens of ``history`` (R, t) less likely: scores above 0 are divided by ``penalty``, others multiplied.

    Scores are the logits, or log-probabilities (Keskar et al. 2019, section 4.1).
    """
    offset = logits.normaliser[:, None] if of_log_probs else 0.0
    scores = logits.at(history) - offset
    logits.put(history, torch.where(scores < 0, scores * penalty, scores / penalty) + offset)


def forbid_repeats(logits: Logits, history: Tensor, size: int) -> None:
    """Ban each token that would complete an n-gram of ``size`` for the second time.

    ``history`` (R, t) holds the tokens so far, decoder start included.
    """
    length = history.shape[1]
    if length < size:
        return
    windows = history.unfold(1, size, 1)
    current = history[:, length + 1 - size :]
    repeats = (windows[:, :, :-1] == current[:, None]).all(dim=2)
    rows, starts = repeats.nonzero(as_tuple=True)
    logits.forbid(rows, windows[rows, starts, -1])
