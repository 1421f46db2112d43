"""Text in, text out: tokenise with the model's template, search, detokenise."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from cktk.data.encoder import PythonEncoder, knows_languages
from cktk.data.tokenizers import probe_templates
from cktk.errors import ConfigError, DataError
from cktk.generation.beam import BeamSearch, Ids
from cktk.generation.configs import SearchConfig
from cktk.protocols import DecoderLayout, DecodingStart, Template


class Translation(NamedTuple):
    """A translation and its length-penalised score."""

    text: str
    score: float


@dataclass
class Counts:
    """What a translator has done so far: ``tokens`` are those of the best hypotheses, end of sentence included."""

    sentences: int = 0
    empty: int = 0
    truncated: int = 0
    tokens: int = 0


class _Frame(NamedTuple):
    """How a text becomes model input, and how decoding starts."""

    source: Template
    target: Template
    start: DecodingStart


def decode_line(tokenizer: Any, ids: Sequence[int]) -> str:
    """Token ids as one line of text, without special tokens."""
    text = tokenizer.decode(list(ids), skip_special_tokens=True)
    # A tokenizer with byte fallback can spell a line break, which would shift all lines behind it.
    return " ".join(str(text).splitlines()).strip()


class Translator:
    """Translates with a Hugging Face encoder-decoder and its tokenizer; `cktk.hub.student` makes one.

    ``decoder_start`` is the token that this kind of model always starts with, None where a target's last token does
    (mBART); what its generation config says goes before the former. ``layout`` is its family's word on its decoder.
    ``source_lang`` and ``target_lang`` are codes of a multilingual tokenizer (mBART); they default to what is saved
    with it. Sources are cut to ``max_source_positions`` tokens (at most, and by default, the model's positions) and
    counted in ``counts``.
    Raises `ConfigError` for languages that the tokenizer does not have or need, and a beam larger than the vocabulary.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        search: SearchConfig | None = None,
        *,
        layout: DecoderLayout,
        decoder_start: int | None,
        source_lang: str | None = None,
        target_lang: str | None = None,
        max_source_positions: int | None = None,
        max_tokens: int | None = None,
        batch_size: int | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.counts = Counts()
        search = search or SearchConfig()
        search.check_vocabulary(int(model.config.vocab_size))
        self._search = BeamSearch(model, search, layout)
        self._languages = (source_lang, target_lang)
        own = model.generation_config.decoder_start_token_id
        self.decoder_start = own if decoder_start is not None and own is not None else decoder_start
        self.positions = sys.maxsize if layout.source_positions is None else layout.source_positions
        self.max_source_positions = min(max_source_positions or self.positions, self.positions)
        self._max_tokens, self._batch_size = max_tokens, batch_size

    def translate(self, texts: Sequence[str], prefixes: Sequence[str] | None = None) -> list[str]:
        """The best translation of each text, in order; each begins with its prefix. A blank text gives an empty one."""
        return [found[0].text for found in self.translate_nbest(texts, prefixes)]

    def translate_nbest(
        self,
        texts: Sequence[str],
        prefixes: Sequence[str] | None = None,
        on_progress: Callable[[int], None] | None = None,
    ) -> list[list[Translation]]:
        """The ``nbest`` translations of each text, best first; a blank text gives one empty translation."""
        if isinstance(texts, str):
            raise TypeError("translate takes a list of texts; wrap a single one in a list")
        sources = [self._framed(ids) if text.strip() else None for text, ids in self._encoded(texts, "source")]
        starts = (
            None if prefixes is None else [self._prefix(text, ids) for text, ids in self._encoded(prefixes, "target")]
        )
        return self.translate_ids(sources, starts, self._frame.start, on_progress=on_progress)

    def translate_ids(
        self,
        sources: Sequence[Ids | None],
        prefixes: Sequence[Ids | None] | None,
        start: DecodingStart,
        on_progress: Callable[[int], None] | None = None,
    ) -> list[list[Translation]]:
        """The same for token ids with their template; None stands for a blank text."""
        if prefixes is not None and len(prefixes) != len(sources):
            raise DataError(
                f"{len(sources)} texts but {len(prefixes)} prefixes; give one (perhaps empty) prefix per text"
            )
        filled = [row for row, source in enumerate(sources) if source is not None]
        found = self._search.generate(
            [source for source in sources if source is not None],
            max_tokens=self._max_tokens,
            batch_size=self._batch_size,
            prefixes=None if prefixes is None else [prefixes[row] for row in filled],
            forced_bos=start.forced_bos,
            decoder_start=start.token,
            on_progress=on_progress,
        )
        translations = [[Translation("", 0.0)] for _ in sources]
        for row, hypotheses in zip(filled, found, strict=True):
            translations[row] = [Translation(self.decode(h.tokens), h.score) for h in hypotheses]
        self.counts.sentences += len(sources)
        self.counts.empty += len(sources) - len(filled)
        self.counts.tokens += sum(len(hypotheses[0].tokens) for hypotheses in found)
        return translations

    def decode(self, ids: Sequence[int]) -> str:
        """Token ids as one line of text, without special tokens."""
        return decode_line(self.tokenizer, ids)

    @cached_property
    def _frame(self) -> _Frame:
        source, target = self._languages
        if not knows_languages(self.tokenizer):
            if source or target:
                flag = "--source-lang" if source else "--target-lang"
                raise ConfigError(f"{flag}: this model's tokenizer knows no languages; leave the flag out")
            source = target = ""
        source = source if source is not None else self.tokenizer.src_lang
        target = target if target is not None else self.tokenizer.tgt_lang
        if source is None or target is None:
            flag = "--source-lang" if source is None else "--target-lang"
            raise ConfigError(f"{flag} is required: this model's tokenizer knows several languages")
        templates = probe_templates(self.tokenizer, [source, target])
        self._languages = (source, target)
        before, after = templates["source"][source], templates["target"][target]
        return _Frame(before, after, after.decoding_start(self.decoder_start))

    @cached_property
    def _encoder(self) -> PythonEncoder:
        _ = self._frame
        source, target = self._languages
        return PythonEncoder(self.tokenizer, {"source": source or "", "target": target or ""})

    def _encoded(self, texts: Sequence[str], role: str) -> list[tuple[str, Ids]]:
        return list(zip(texts, self._encoder(list(texts), role).split(), strict=True)) if texts else []

    def _framed(self, ids: Ids) -> Ids:
        template = self._frame.source
        room = self.max_source_positions - len(template.prefix) - len(template.suffix)
        self.counts.truncated += len(ids) > room
        return np.concatenate([template.prefix, ids[:room], template.suffix], dtype=np.int64, casting="unsafe")

    def _prefix(self, text: str, ids: Ids) -> Ids | None:
        return (*self._frame.target.prefix, *map(int, ids)) if text.strip() else None
