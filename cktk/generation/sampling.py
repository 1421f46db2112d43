"""Outputs that are drawn token by token, from the whole vocabulary or its most probable part.

Draws invert the cumulative distribution at random numbers that belong to the sentence (`random_numbers`), so that
neither the batch nor the order of the input changes an output. Nothing sorts the whole vocabulary: `Logits.best`
gives the most probable tokens, and a draw from all tokens chooses a tile of columns first.

Shapes: B sentences, N draws of a sentence, R rows of logits, D draws from a row, K tokens to draw from.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cktk.generation.configs import SearchConfig
from cktk.generation.hypotheses import Limits
from cktk.generation.logits import NEVER, Logits, exponential_sums, tile_groups
from cktk.generation.random_numbers import uniforms
from cktk.protocols import Hypothesis

#: Tokens looked at first for ``--sampling-topp``; doubled until they hold the probability asked for.
FIRST_CANDIDATES = 64


class Samples:
    """``config.nbest`` draws for each sentence; see `cktk.generation.hypotheses.Hypotheses`.

    ``keys`` (B) are those of `random_numbers.sentence_key`. A score is that of the model itself, as in a search:
    neither temperature nor the choice of tokens to draw from enters it.
    """

    def __init__(self, config: SearchConfig, limits: Limits, eos: int, keys: Tensor) -> None:
        self._config = config
        self._keys = keys
        self.limits = limits
        self.eos = eos
        self.tokens = limits.prompt[:, None, : int(limits.prompt_length.min())]
        self._scores = torch.zeros(len(keys), 1, device=self.tokens.device)
        self._lengths = torch.zeros(len(keys), 1, dtype=torch.long, device=self.tokens.device)  # 0: still grows

    @property
    def done(self) -> Tensor:
        """See `Hypotheses`."""
        return (self._lengths > 0).all(dim=1)

    def choose(self, logits: Logits, forced: Tensor) -> Tensor:  # noqa: ARG002
        """See `Hypotheses.choose`."""
        batch, rows, length = self.tokens.shape
        draws = self._config.nbest
        numbers = uniforms(self._keys.numpy().view("u8"), length, draws)
        at = torch.from_numpy(numbers).to(logits.device).view(batch * rows, draws // rows)
        tokens = draw(logits, at, self._config)
        gained = (logits.at(tokens) - logits.normaliser[:, None]).view(batch, draws)
        parents = torch.arange(rows, device=logits.device).repeat_interleave(draws // rows).expand(batch, -1)
        self._grow(parents, tokens.view(batch, draws), gained)
        return parents

    def _grow(self, parents: Tensor, tokens: Tensor, gained: Tensor) -> None:
        lengths = self._lengths.gather(1, parents)
        running = lengths == 0
        tokens = torch.where(running, tokens, self.eos)
        history = self.tokens.gather(1, parents[:, :, None].expand(-1, -1, self.tokens.shape[2]))
        self.tokens = torch.cat([history, tokens[:, :, None]], dim=2)
        self._scores = self._scores.gather(1, parents) + torch.where(running, gained, 0.0)
        length = self.tokens.shape[2]
        in_prompt = length <= self.limits.prompt_length[:, None]
        ends = ((tokens == self.eos) & ~in_prompt) | (length >= self.limits.max_length[:, None])
        # Where every token was forbidden, nothing can follow.
        ends |= self._scores == NEVER
        self._lengths = torch.where(running & ends, length, lengths)

    def keep(self, sentences: Tensor) -> None:
        """See `Hypotheses.keep`."""
        self.limits = self.limits.keep(sentences)
        self._keys = self._keys[sentences.cpu()]
        self.tokens, self._scores, self._lengths = (
            tensor[sentences] for tensor in (self.tokens, self._scores, self._lengths)
        )

    def results(self, sentence: int) -> list[Hypothesis]:
        """See `Hypotheses.results`; all draws, the most probable first."""
        prompt = int(self.limits.prompt_length[sentence])
        found = []
        rows = zip(self.tokens[sentence].tolist(), self._lengths[sentence], self._scores[sentence], strict=True)
        for tokens, length, score in rows:
            if float(score) > NEVER:
                penalty = float(max(int(length) - prompt, 1)) ** self._config.lenpen
                found.append(Hypothesis(tuple(tokens[1 : int(length)]), float(score) / penalty))
        return sorted(found, key=lambda hypothesis: -hypothesis.score) or [Hypothesis((), NEVER)]


def draw(logits: Logits, at: Tensor, config: SearchConfig) -> Tensor:
    """Tokens (R, D) drawn from ``logits`` at the numbers ``at`` (R, D), which lie in (0, 1)."""
    if config.sampling_topk > 0 or 0 < config.sampling_topp < 1:
        weights, tokens = _candidates(logits, config)
        return tokens.gather(1, _inverse(weights, at))
    return _draw_from_all(logits, at, config.temperature)


def _candidates(logits: Logits, config: SearchConfig) -> tuple[Tensor, Tensor]:
    """The tokens (R, K) to draw from, most probable first, and their weights, which need not add up to 1."""
    mass = config.sampling_topp if 0 < config.sampling_topp < 1 else None
    if config.sampling_topk > 0:
        values, tokens = _best(logits, config.sampling_topk)
        weights = torch.softmax(values / config.temperature, dim=1)
        return (weights if mass is None else _nucleus(weights, mass)), tokens
    assert mass is not None
    largest, sums = _sums_of_tiles(logits, config.temperature)
    total, count = sums.sum(dim=1, keepdim=True), FIRST_CANDIDATES
    while True:
        count = min(count, logits.columns)
        values, tokens = _best(logits, count)
        weights = (values / config.temperature - largest).exp_() / total
        if count == logits.columns or bool((weights.sum(dim=1) >= mass).all()):
            return _nucleus(weights, mass), tokens
        count *= 2


def _best(logits: Logits, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` highest of each row of ``logits``, and their tokens, both (R, count)."""
    values, _, tokens = logits.best(logits.normaliser.new_zeros(len(logits), 1), count)
    return values, tokens


def _nucleus(weights: Tensor, mass: float) -> Tensor:
    """``weights`` (R, K), which fall, with zeros behind the first so many that hold ``mass`` (Holtzman et al. 2020)."""
    before = weights.cumsum(dim=1) - weights
    return weights.masked_fill(before >= mass, 0.0)


def _inverse(weights: Tensor, at: Tensor) -> Tensor:
    """The index (R, D) where the cumulative share of ``weights`` (R, K) passes ``at`` (R, D)."""
    total = weights.double().cumsum(dim=1)
    found = torch.searchsorted(total, at * total[:, -1:], right=True)
    return found.clamp_(max=weights.shape[1] - 1)


def _draw_from_all(logits: Logits, at: Tensor, temperature: float) -> Tensor:
    """`_inverse` over the whole vocabulary: first the tile of columns, then the column."""
    largest, sums = _sums_of_tiles(logits, temperature)
    tile = _inverse(sums, at)
    total = sums.double().cumsum(dim=1)
    size = sums.double().gather(1, tile)
    rest = (at * total[:, -1:] - (total.gather(1, tile) - size)) / size
    # Rounding of the sums may leave the tile by a hair; NaN, from rows without weights, picks any column.
    rest = rest.nan_to_num(0.5).clamp_(1e-12, 1 - 1e-12)
    rows = torch.arange(len(logits), device=logits.device)[:, None]
    inside = (logits.tiles[tile, rows] / temperature - largest[:, :, None]).exp_()
    column = _inverse(inside.flatten(0, 1), rest.flatten()[:, None]).view_as(tile)
    return logits.tokens(tile * logits.width + column)


def _sums_of_tiles(logits: Logits, temperature: float) -> tuple[Tensor, Tensor]:
    """The largest tempered logit of each row, (R, 1), and sums (R, T) over tiles of exponentials less by it."""
    # The bound keeps a row without any finite logit from becoming NaN.
    maxima = (logits.maxima / temperature).clamp_(min=-1e30)
    sums = torch.empty_like(maxima)
    for group in tile_groups(len(maxima), len(logits), logits.width, logits.device):
        sums[group] = exponential_sums(logits.tiles[group] / temperature, maxima[group])
    largest = maxima.amax(dim=0)
    return largest[:, None], (sums * (maxima - largest).exp_()).t().contiguous()
