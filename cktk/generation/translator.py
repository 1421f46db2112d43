"""Text in, text out: tokenise with the model's template, search, detokenise."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from cktk.data.context_config import InputConfig
from cktk.data.framing import Context, Frame, check_room
from cktk.data.prompts import names_languages, prompt_ids
from cktk.data.sources.text import read_lines
from cktk.data.tokenization.encoder import PythonEncoder, knows_languages
from cktk.data.tokenization.tokenizers import probe_templates
from cktk.errors import ConfigError, DataError
from cktk.generation.alignment import AlignedHypothesis, Aligner, Alignment
from cktk.generation.beam import BeamSearch, Ids
from cktk.generation.configs import SearchConfig
from cktk.generation.context import Beginning, ContextualSearch, Rows
from cktk.generation.lines import Lines
from cktk.protocols import DecoderLayout, DecodingStart, Hypothesis, Template


class Translation(NamedTuple):
    """A translation, its length-penalised score, and its token ids as generated (specials, too; none without text).

    ``alignment`` are pairs of positions, see `Translator.align`.
    """

    text: str
    score: float
    tokens: tuple[int, ...] = ()
    alignment: Alignment | None = None


@dataclass
class Counts:
    """What a translator has done so far: ``tokens`` are those of the best hypotheses, end of sentence included."""

    sentences: int = 0
    empty: int = 0
    truncated: int = 0
    tokens: int = 0


class _Frame(NamedTuple):
    """How a text becomes model input, and how decoding starts."""

    source: Frame
    target: Frame
    context: Context | None
    start: DecodingStart


class Engine(Protocol):
    """What finds hypotheses; see `cktk.generation.beam.BeamSearch.generate`."""

    def generate(
        self,
        sources: Sequence[Ids],
        *,
        max_tokens: int | None = None,
        batch_size: int | None = None,
        prefixes: Sequence[Ids | None] | None = None,
        forced_bos: int | None = None,
        decoder_start: int | None = None,
        context: Sequence[int] | None = None,
        on_progress: Callable[[int], None] | None = None,
    ) -> list[list[Hypothesis]]: ...


class TextRows(Rows, Protocol):
    """Texts in the order of their documents, by number, and what the encoder gets for them."""

    @property
    def source(self) -> Frame: ...

    def is_blank(self, index: int) -> bool: ...

    def source_ids(self, index: int) -> Ids: ...


def decode_line(tokenizer: Any, ids: Sequence[int], line_break: str = " ") -> str:
    """Token ids as one line of text, without special tokens; ``line_break`` stands for what would end the line."""
    text = tokenizer.decode(list(ids), skip_special_tokens=True)
    # A tokenizer with byte fallback can spell a line break, which would shift all lines behind it.
    return line_break.join(str(text).strip().splitlines())


class Translator:
    """Translates with a Hugging Face encoder-decoder and its tokenizer; `cktk.hub.student` makes one.

    ``decoder_start`` is the token that this kind of model always starts with, None where a target's last token does
    (mBART); what its generation config says goes before the former. ``layout`` is its family's word on its decoder.
    ``source_lang`` and ``target_lang`` are codes of a multilingual tokenizer (mBART); they default to what is saved
    with it. Sources are cut to ``max_source_positions`` tokens (at most, and by default, the model's positions) and
    counted in ``counts``. ``inputs`` say what stands before each source. An ``engine`` searches in the place of cktk's
    own decoder.
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
        inputs: InputConfig | None = None,
        engine: Engine | None = None,
        others: Sequence[tuple[Any, DecoderLayout]] = (),
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.counts = Counts()
        search = search or SearchConfig()
        search.check_vocabulary(int(model.config.vocab_size))
        kept = None if search.target_vocabulary is None else self._tokens_of(search.target_vocabulary)
        if kept is not None:
            search.check_vocabulary(len(kept), f"--target-vocabulary {search.target_vocabulary}")
        self._search: Engine = engine or BeamSearch(model, search, layout, others=others, kept=kept)
        self._layout = layout
        self._aligner: Aligner | None = None
        self._languages = (source_lang, target_lang)
        own = model.generation_config.decoder_start_token_id
        self.decoder_start = own if decoder_start is not None and own is not None else decoder_start
        limits = [found.source_positions for found in (layout, *(other for _, other in others))]
        self.positions = min((limit for limit in limits if limit is not None), default=sys.maxsize)
        self.max_source_positions = min(max_source_positions or self.positions, self.positions)
        self._max_tokens, self._batch_size = max_tokens, batch_size
        self._inputs = inputs or InputConfig()
        #: What stands for a line break inside of an output.
        self.line_break = " "

    def _tokens_of(self, file: str) -> list[int]:
        """The tokens of the texts in ``file``, and all special ones."""
        lines = [line for line in read_lines(Path(file)) if line.strip()]
        if not lines:
            raise DataError(f"--target-vocabulary {file}: holds no words; give text of the target language")
        found = set(self.tokenizer.all_special_ids)
        for start in range(0, len(lines), 4096):
            found.update(*self.tokenizer(lines[start : start + 4096], add_special_tokens=False)["input_ids"])
        return sorted(token for token in found if token < self.model.config.vocab_size)

    def with_engine(self, engine: Engine) -> Translator:
        """The same translator with another ``engine``, and nothing counted yet."""
        other = copy.copy(self)
        other._search, other.counts = engine, Counts()
        return other

    def align(self, layer: int | None = None) -> None:
        """From now on a translation comes with its alignment: each of its tokens with the source token it attends to.

        Special tokens, prompts and context have no part in it, and positions count from 0 without them. ``layer`` is
        one of the decoder's, from 1; see `Aligner`. Of an ensemble the first model is asked. Raises `ConfigError` for a
        layer that the decoder does not have, and a model whose weights are CTranslate2's.
        """
        if self.model.device.type == "meta":
            raise ConfigError(
                "--print-alignment needs the attention of a Hugging Face model: give --path the model that was exported"
            )
        self._aligner = Aligner(self.model, self._layout, layer)

    def translate(self, texts: Sequence[str], prefixes: Sequence[str] | None = None) -> list[str]:
        """The best translation of each text, in order; each begins with its prefix. A blank text gives an empty one."""
        return [found[0].text for found in self.translate_nbest(texts, prefixes)]

    def translate_nbest(
        self,
        texts: Sequence[str],
        prefixes: Sequence[str] | None = None,
        on_progress: Callable[[int], None] | None = None,
    ) -> list[list[Translation]]:
        """The ``nbest`` translations of each text, best first; a blank text gives one empty translation.

        Where sources have context, texts are the sentences of a document, up to the next blank one.
        """
        return self.reader().translate_nbest(texts, prefixes, on_progress)

    def reader(self) -> Reader:
        """What translates lines that come in parts."""
        frame = self._frame
        outputs = ContextualSearch(frame.target, frame.context, self.tokenizer.all_special_ids)
        return Reader(self, Lines(frame.source, frame.context), outputs)

    def translate_rows(
        self,
        rows: TextRows,
        numbers: Sequence[int],
        outputs: ContextualSearch,
        prefixes: Sequence[Ids | None] | None,
        start: DecodingStart,
        on_progress: Callable[[int], None] | None = None,
    ) -> list[list[Translation]]:
        """The same for the ``numbers`` of rows that are tokens already; ``prefixes`` go without template."""
        if prefixes is not None and len(prefixes) != len(numbers):
            raise DataError(
                f"{len(numbers)} texts but {len(prefixes)} prefixes; give one (perhaps empty) prefix per text"
            )
        own = dict(zip(numbers, prefixes, strict=True)) if prefixes is not None else {}
        filled = [number for number in numbers if not rows.is_blank(number)]

        def search(found: Sequence[int], beginnings: Sequence[Beginning]) -> list[list[Hypothesis]]:
            sources = [rows.source_ids(number) for number in found]
            hypotheses = self._search.generate(
                sources,
                max_tokens=self._max_tokens,
                batch_size=self._batch_size,
                prefixes=[beginning.ids for beginning in beginnings],
                forced_bos=start.forced_bos,
                decoder_start=start.token,
                context=[beginning.context for beginning in beginnings],
                on_progress=on_progress,
            )
            if self._aligner is None:
                return hypotheses
            texts = [
                rows.source.place(source, rows.text_length(number))
                for number, source in zip(found, sources, strict=True)
            ]
            return self._aligner(
                sources,
                texts,
                hypotheses,
                decoder_start=start.token,
                max_tokens=self._max_tokens,
                batch_size=self._batch_size,
            )

        found = dict(zip(filled, outputs(rows, filled, [own.get(number) for number in filled], search), strict=True))
        self.counts.sentences += len(numbers)
        self.counts.empty += len(numbers) - len(filled)
        self.counts.tokens += sum(len(hypotheses[0].tokens) for hypotheses in found.values())
        nothing = Hypothesis((), 0.0)
        return [[self._translation(hypothesis) for hypothesis in found.get(number, [nothing])] for number in numbers]

    def _translation(self, hypothesis: Hypothesis) -> Translation:
        pairs: Alignment | None = None if self._aligner is None else ()
        if isinstance(hypothesis, AlignedHypothesis):
            pairs = hypothesis.alignment(self._special)
        text = self.decode(hypothesis.tokens) if hypothesis.tokens else ""
        return Translation(text, hypothesis.score, hypothesis.tokens, pairs)

    @cached_property
    def _special(self) -> frozenset[int]:
        return frozenset(self.tokenizer.all_special_ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Token ids as one line of text, without special tokens."""
        return decode_line(self.tokenizer, ids, self.line_break)

    @cached_property
    def _frame(self) -> _Frame:
        source, target = self._languages
        if not knows_languages(self.tokenizer):
            if (source or target) and not names_languages(self._inputs.source_prompt):
                flag = "--source-lang" if source else "--target-lang"
                raise ConfigError(f"{flag}: this model's tokenizer knows no languages; leave the flag out")
            source, target = source or "", target or ""
        source = source if source is not None else self.tokenizer.src_lang
        target = target if target is not None else self.tokenizer.tgt_lang
        if source is None or target is None:
            flag = "--source-lang" if source is None else "--target-lang"
            raise ConfigError(f"{flag} is required: this model's tokenizer knows several languages")
        templates = probe_templates(self.tokenizer, [source, target])
        self._languages = (source, target)
        prompt = prompt_ids(self.tokenizer, self._inputs.source_prompt, source, target)
        context = Context.of(self._inputs, self.tokenizer)
        before, after = templates["source"][source], templates["target"][target]
        return _Frame(
            self._framing("source", before, self.max_source_positions, prompt, context),
            self._framing("target", after, self.positions, (), context),
            context,
            after.decoding_start(self.decoder_start),
        )

    def _framing(
        self, role: str, template: Template, positions: int, prompt: tuple[int, ...], context: Context | None
    ) -> Frame:
        room = check_room(role, positions, template, prompt)
        separator = context.separator if context else None
        return Frame(template=template, room=room, prompt=prompt, separator=separator)

    @cached_property
    def _encoder(self) -> PythonEncoder:
        _ = self._frame
        source, target = self._languages
        return PythonEncoder(self.tokenizer, {"source": source or "", "target": target or ""})

    def encoded(self, texts: Sequence[str], role: str) -> list[Ids | None]:
        """The tokens of each text, without template; None for a blank one."""
        found = self._encoder(list(texts), role).split() if texts else []
        return [ids if text.strip() else None for text, ids in zip(texts, found, strict=True)]

    @property
    def start(self) -> DecodingStart:
        """How the translation of a line starts."""
        return self._frame.start


class Reader:
    """Translates lines in the order of a text, which may come in parts: context reaches back into earlier ones."""

    def __init__(self, translator: Translator, lines: Lines, outputs: ContextualSearch) -> None:
        self._translator, self._lines, self._outputs = translator, lines, outputs

    def translate_nbest(
        self,
        texts: Sequence[str],
        prefixes: Sequence[str] | None = None,
        on_progress: Callable[[int], None] | None = None,
    ) -> list[list[Translation]]:
        """See `Translator.translate_nbest`."""
        if isinstance(texts, str):
            raise TypeError("translate takes a list of texts; wrap a single one in a list")
        numbers = self._lines.add(self._translator.encoded(texts, "source"))
        begin = None if prefixes is None else self._translator.encoded(prefixes, "target")
        found = self._translator.translate_rows(
            self._lines, numbers, self._outputs, begin, self._translator.start, on_progress
        )
        self._translator.counts.truncated += sum(map(self._lines.is_cut, numbers))
        return found

    def source_lengths(self, texts: Sequence[str]) -> list[int]:
        """The tokens that the encoder gets for each text without context; 0 for a blank one, which it does not get."""
        alone = Lines(self._lines.source, None)
        numbers = alone.add(self._translator.encoded(texts, "source"))
        return [0 if alone.is_blank(number) else len(alone.source_ids(number)) for number in numbers]
