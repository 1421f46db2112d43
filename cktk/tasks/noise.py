"""What a pretraining objective does to a text: BART's infilling, T5's span corruption, BERT's masking."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from cktk.data.batching import Int64s
from cktk.errors import ConfigError
from cktk.protocols import IGNORED
from cktk.tasks.pretraining_config import PretrainingConfig

Bools = npt.NDArray[np.bool_]

_USUAL_SPAN = 3.0


class Noise(Protocol):
    """Makes a source and a target of a text's tokens, without what a template puts around either.

    For encoders the target has as many tokens as the source, `IGNORED` where a position is not scored.
    """

    def __call__(self, text: Int64s, rng: np.random.Generator) -> tuple[Int64s, Int64s]: ...

    def lengths(self, lengths: Int64s) -> Int64s:
        """(n, 2): the most tokens that source and target of texts of ``lengths`` (n,) have."""


class _NeverLonger:
    """Noise whose source is at most as long as the text, and whose target is just as long."""

    def lengths(self, lengths: Int64s) -> Int64s:
        """See `Noise.lengths`."""
        return np.stack([lengths, lengths], axis=1)


class Reconstruct(_NeverLonger):
    """The text as its own target."""

    def __call__(self, text: Int64s, rng: np.random.Generator) -> tuple[Int64s, Int64s]:  # noqa: ARG002
        """See `Noise`."""
        return text, text


@dataclass(frozen=True)
class Infilling(_NeverLonger):
    """BART's noise (Lewis et al. 2020, section 2.2): spans of Poisson length become one mask each.

    A ``ratio`` of the tokens, rounded up, is in spans; those of length 0 insert a mask, as long as the source does not
    get longer than the text. Arrangements in which spans do not touch are equally likely. ``ends`` (vocabulary) marks
    the tokens that end sentences: these are put in random order first.
    """

    mask: int
    ratio: float
    mean_span: float
    ends: Bools | None = None

    def __call__(self, text: Int64s, rng: np.random.Generator) -> tuple[Int64s, Int64s]:
        """See `Noise`."""
        source = text if self.ends is None else permute_sentences(text, self.ends, rng)
        removed = min(len(text), int(np.ceil(self.ratio * len(text) - 1e-9)))
        if not removed:
            return source, text
        spans, inserted = self._spans(removed, rng)
        kept = len(text) - removed
        while len(spans) > kept + 1:  # no room for a token between all of them
            spans[-2:] = [spans[-2] + spans[-1]]
        inserted = min(inserted, removed - len(spans), kept + 1 - len(spans))
        # Slot i is before the i-th of the kept tokens; each takes one mask at most.
        slots = rng.permutation(kept + 1)[: len(spans) + inserted]
        width = np.zeros(kept + 1, np.int64)
        width[slots[: len(spans)]] = spans
        remaining = source[np.arange(kept) + np.cumsum(width)[:kept]]
        return np.insert(remaining, np.sort(slots), self.mask), text

    def _spans(self, total: int, rng: np.random.Generator) -> tuple[list[int], int]:
        """Lengths that sum to ``total``, the last one cut for it, and how many of length 0 were drawn among them."""
        spans: list[int] = []
        inserted, left = 0, total
        while left:
            drawn = min(left, int(rng.poisson(self.mean_span)))
            if drawn:
                spans.append(drawn)
            else:
                inserted += 1
            left -= drawn
        return spans, inserted


@dataclass(frozen=True)
class SpanCorruption:
    """T5's noise (Raffel et al. 2020, section 3.1.4): each span becomes a sentinel, the target says what was there.

    The target is, for each span, its sentinel and its tokens, and a last sentinel. ``sentinels`` stand in the order of
    their use. A ratio of the tokens is in spans of ``mean_span`` tokens on average, whose number follows from the
    length alone. Texts of less than two tokens stay as they are.
    """

    sentinels: tuple[int, ...]
    ratio: float
    mean_span: float

    def __call__(self, text: Int64s, rng: np.random.Generator) -> tuple[Int64s, Int64s]:
        """See `Noise`."""
        noise, spans = (int(number[0]) for number in self._numbers(np.array([len(text)])))
        if not spans:
            return text, text
        hidden, shown = _parts(noise, spans, rng), _parts(len(text) - noise, spans, rng)
        ends = np.cumsum(np.stack([shown, hidden], axis=1))  # shown first, then hidden, and so on
        pieces = np.split(text, ends[:-1])
        sentinels = [np.array([token]) for token in self.sentinels[: spans + 1]]
        source = [part for pair in zip(pieces[::2], sentinels, strict=False) for part in pair]
        target = [part for pair in zip(sentinels, pieces[1::2], strict=False) for part in pair]
        return np.concatenate(source), np.concatenate([*target, sentinels[spans]])

    def lengths(self, lengths: Int64s) -> Int64s:
        """See `Noise.lengths`; exact."""
        noise, spans = self._numbers(lengths)
        target = np.where(spans > 0, noise + spans + 1, lengths)
        return np.stack([lengths - noise + spans, target], axis=1)

    def _numbers(self, lengths: Int64s) -> tuple[Int64s, Int64s]:
        """How many tokens of texts of ``lengths`` are in spans, and how many spans there are."""
        noise = np.clip(np.rint(lengths * self.ratio).astype(np.int64), 1, np.maximum(lengths - 1, 1))
        spans = np.maximum(np.rint(noise / self.mean_span).astype(np.int64), 1)
        spans = np.minimum(spans, np.minimum(np.minimum(noise, lengths - noise), len(self.sentinels) - 1))
        whole = lengths < 2
        return np.where(whole, 0, noise), np.where(whole, 0, spans)


@dataclass(frozen=True)
class Masking(_NeverLonger):
    """BERT's masking (Devlin et al. 2019): of a ``ratio`` of the tokens 80 % become masks, 10 % any of ``words``.

    The rest of them stays. Targets are the tokens before that, all of them or, with ``only_chosen``, the chosen ones.
    """

    mask: int
    words: Int64s
    ratio: float
    only_chosen: bool

    def __call__(self, text: Int64s, rng: np.random.Generator) -> tuple[Int64s, Int64s]:
        """See `Noise`."""
        number = min(len(text), max(1, round(len(text) * self.ratio)))
        chosen = rng.permutation(len(text))[:number]
        fate = rng.random(number)
        source = text.copy()
        source[chosen[fate < 0.8]] = self.mask
        changed = chosen[(fate >= 0.8) & (fate < 0.9)]
        source[changed] = rng.choice(self.words, len(changed))
        if not self.only_chosen:
            return source, text
        target = np.full_like(text, IGNORED)
        target[chosen] = text[chosen]
        return source, target


def make_noise(config: PretrainingConfig, open_tokenizer: Callable[[], Any], vocab_size: int) -> Noise:
    """What the objective does to a text; raises `ConfigError` where the tokenizer has no tokens for it.

    The tokenizer is not opened where nothing has to be known of it.
    """
    objective, ratio = config.objective, config.mask_ratio
    mean_span = config.mean_span or _USUAL_SPAN
    if objective in ("reconstruct", "unmasked"):
        return Reconstruct()
    tokenizer = open_tokenizer()
    mask: int | None = tokenizer.mask_token_id
    if objective == "masked":
        if mask is None:
            raise ConfigError("--objective masked: the tokenizer has no mask token; give --objective unmasked")
        words = np.setdiff1d(list(tokenizer.get_vocab().values()), tokenizer.all_special_ids).astype(np.int64)
        return Masking(mask, words, ratio or 0.15, config.scored_positions == "masked")
    if mask is not None:
        ends = sentence_ends(tokenizer.get_vocab(), vocab_size) if config.permute_sentences else None
        return Infilling(mask, ratio or 0.3, mean_span, ends)
    sentinels = _sentinels(tokenizer.get_vocab())
    if len(sentinels) < 2:
        raise ConfigError(
            "--objective denoise: the tokenizer has neither a mask token nor T5's sentinels <extra_id_0>, .. ; "
            "give --objective reconstruct"
        )
    if config.permute_sentences:
        raise ConfigError("--permute-sentences goes with infilling, and T5 has no mask token for it; leave it out")
    return SpanCorruption(sentinels, ratio or 0.15, mean_span)


def _sentinels(vocabulary: Mapping[str, int]) -> tuple[int, ...]:
    names = (f"<extra_id_{number}>" for number in range(len(vocabulary)))
    found = []
    for name in names:
        if name not in vocabulary:
            break
        found.append(vocabulary[name])
    return tuple(found)


def permute_sentences(text: Int64s, ends: Bools, rng: np.random.Generator) -> Int64s:
    """``text`` with its sentences in random order; a sentence ends behind a token of ``ends`` (vocabulary)."""
    sentences = np.split(text, np.flatnonzero(ends[text]) + 1)
    sentences = [sentence for sentence in sentences if len(sentence)]
    order = rng.permutation(len(sentences))
    return np.concatenate([text[:0], *(sentences[index] for index in order)])


def sentence_ends(vocabulary: dict[str, int], size: int) -> Bools:
    """Which of ``size`` token ids end a sentence: those whose text ends with a full stop or its like."""
    found = np.zeros(size, bool)
    marks = (".", "!", "?", "。", "！", "？", "।", "؟", "።", "။")
    ids = [token for text, token in vocabulary.items() if text.endswith(marks) and token < size]
    found[ids] = True
    return found


def _parts(total: int, number: int, rng: np.random.Generator) -> npt.NDArray[Any]:
    """``number`` positive lengths that sum to ``total``, all such equally likely."""
    cuts = np.sort(rng.permutation(total - 1)[: number - 1]) + 1
    return np.diff(np.concatenate([[0], cuts, [total]]))
