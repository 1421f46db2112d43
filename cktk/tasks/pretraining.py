"""Pretraining: running text of one or many corpora, for encoder-decoders and for encoders."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch

from cktk.data.batch_config import BatchingConfig
from cktk.data.batching import Int64s
from cktk.data.iterators import PlannedBatches
from cktk.data.mixtures.background import Background
from cktk.data.mixtures.corpora import Corpora
from cktk.data.mixtures.mixture import Corpus, Place, StoredCorpus, mixed_batches
from cktk.data.mixtures.streaming import SampleStream, StreamCorpus, TextStream, open_streams
from cktk.data.sources.stream_sources import StreamSpec
from cktk.data.subset import RowSubset, SubsetCorpus
from cktk.data.texts import Ids, Texts, check_column
from cktk.data.tokenization.encoder import ROLES, Encoder, knows_languages
from cktk.data.tokenization.encoder_spec import choose_encoder
from cktk.data.tokenization.tokenizers import check_languages, open_tokenizer, probe_templates
from cktk.distributed.world import World
from cktk.errors import ConfigError, DataError
from cktk.protocols import IGNORED, Batch, Side, Template
from cktk.tasks.batches import padded, refuse_subset, shard_batches, shift_right, split_batches
from cktk.tasks.noise import Noise, make_noise
from cktk.tasks.pretraining_config import ENCODER_OBJECTIVES, PretrainingConfig

_USUAL_TOKENS = 512
#: Rows of a window with streams: twice as many are in memory, these and the next ones.
_STREAM_WINDOW = 8_192
# What a random number generator is for: its last seed.
_TRAINING, _VALIDATION = 3, 4


@dataclass(frozen=True)
class _Framed:
    """The samples of a corpus as models see them: with the templates of its language around source and target."""

    name: str
    source: Template
    target: Template
    noise: Noise
    encoder_only: bool
    only_hidden: bool

    def lengths(self, texts: Int64s) -> Int64s:
        """(n, 2): the most positions that texts of these lengths (n,) take on either side."""
        special = [len(template.prefix) + len(template.suffix) for template in (self.source, self.target)]
        return np.add(self.noise.lengths(texts), special)

    def show(self, text: Ids, rng: np.random.Generator) -> tuple[Int64s, Int64s]:
        """Source and target of a sample."""
        source, target = self.noise(text.astype(np.int64), rng)
        if not self.encoder_only:
            return _around(source, self.source), _around(target, self.target)
        around = self.source
        if self.only_hidden:
            around = Template((IGNORED,) * len(around.prefix), (IGNORED,) * len(around.suffix))
        return _around(source, self.source), _around(target, around)


@dataclass(frozen=True)
class _Rows:
    """The samples of a stored split with their lengths as models see them."""

    texts: Texts
    framed: _Framed

    @property
    def shard_rows(self) -> Sequence[int]:
        return self.texts.shard_rows

    def lengths(self, start: int, stop: int) -> Int64s:
        return self.framed.lengths(self.texts.lengths(start, stop))


class PretrainingTask:
    """Batches of running text; see `PretrainingConfig`.

    Noise follows from (seed, corpus, pass, row): each pass over a corpus has its own, a run that is continued has the
    same as one that was not interrupted, and in validation it never changes. Raises `ConfigError` for samples longer
    than ``max_positions`` and for what the tokenizer has no tokens for, `DataError` for folders without text.
    """

    def __init__(
        self,
        config: PretrainingConfig,
        data: Corpora,
        *,
        pad: int,
        decoder_start: int | None = None,
        max_positions: int | None = None,
    ) -> None:
        self.data = data
        self._config, self._pad, self._decoder_start = config, pad, decoder_start
        self._encoder_only = config.objective in ENCODER_OBJECTIVES
        self._streams = _specs(config.stream)
        self._separator = data.eos if config.sample_break_mode == "none" else None
        self._noise = make_noise(config, lambda: self._tokenizer, data.vocab_size)
        self._tokens = _tokens(config, max_positions)
        self._framed = {name: self._frame(name) for name in dict.fromkeys([*data, *self._streams])}
        templates = [template for framed in self._framed.values() for template in (framed.source, framed.target)]
        special = max(len(template.prefix) + len(template.suffix) for template in templates)
        self._room = self._tokens - special
        if self._room < 1:
            raise ConfigError(
                f"--tokens-per-sample {self._tokens} leaves no room for text beside {special} special tokens; raise it"
            )

    @cached_property
    def _tokenizer(self) -> Any:
        # A large one takes seconds to open.
        return open_tokenizer(self.data.tokenizer_path)

    @staticmethod
    def check_models(config: PretrainingConfig, sides: Collection[Side], scores_labels: bool) -> None:
        """See `cktk.tasks.base.ChecksModels`."""
        encoder_only = config.objective in ENCODER_OBJECTIVES
        if encoder_only == ("decoder" in sides):
            kind = "an encoder-decoder" if "decoder" in sides else "an encoder"
            others = "reconstruct or denoise" if encoder_only else "unmasked or masked"
            raise ConfigError(f"--objective {config.objective}: the student is {kind}; give {others}")
        if encoder_only and scores_labels and config.scored_positions == "all":
            more = ", or --scored-positions masked" if config.objective == "masked" else ""
            raise ConfigError(
                f"--objective {config.objective} shows the tokens that cross entropy would ask for: give --ce-weight 0 "
                f"with a criterion that has a teacher{more}"
            )

    @property
    def target_template(self) -> Template | None:
        """What goes around a target text of the first corpus; None for encoders."""
        return None if self._encoder_only else next(iter(self._framed.values())).target

    @property
    def validation_sums(self) -> dict[str, tuple[str, ...]]:
        """Figures of a validation that are sums of others: ``clm_kl`` is language modelling plus divergence."""
        return {} if self._encoder_only else {"clm_kl": ("ce", "kl")}

    def corpora(self, split_name: str) -> list[str]:
        """See `SeveralCorpora.corpora`."""
        return list(self.data.having(split_name))

    def describe(self) -> list[str]:
        """See `Task.describe`."""
        stored = self._stored()
        sizes = {**{name: len(texts) for name, texts in stored.items()}, **dict.fromkeys(self._streams)}
        shares = self._config.shares(sizes)
        what = "texts" if self._separator is None else "blocks"
        lines = [f"objective {self._config.objective}, samples of at most {self._tokens} tokens"]
        for name, texts in stored.items():
            lines.append(f"train: {name} {shares[name]:.4g}, {len(texts)} {what}, {texts.truncated()} are cut")
        return lines + [f"train: {name} {shares[name]:.4g}, streamed: {spec}" for name, spec in self._streams.items()]

    def iterator(
        self, split_name: str, batching: BatchingConfig, shuffle: bool, seed: int, rank: int = 0, world: int = 1
    ) -> PlannedBatches:
        """The mixture to train on; without ``shuffle`` (validation) all of the first corpus that has the split."""
        if not shuffle:
            names = self.corpora(split_name) or [next(iter(self.data))]
            return self.corpus_pass(names[0], split_name, batching, rank, world)
        texts = self._stored()
        refuse_subset(batching, [*texts, *self._streams], list(self._streams))
        corpora: list[Corpus] = [self._corpus(name, found, batching, seed) for name, found in texts.items()]
        corpora += self._streamed()
        window = {"window_rows": _STREAM_WINDOW} if self._streams else {}
        load = partial(self._load, texts, (seed, _TRAINING))
        return mixed_batches(corpora, load, self._config, batching, seed=seed, rank=rank, world=world, **window)

    def corpus_pass(
        self, corpus: str, split_name: str, batching: BatchingConfig, rank: int, world: int
    ) -> PlannedBatches:
        """See `SeveralCorpora.corpus_pass`."""
        rows = self._rows(corpus, split_name)
        return split_batches(
            rows, partial(self._load_rows, rows), batching, shuffle=False, seed=0, rank=rank, world=world
        )

    def scorer(self, model: Any, tokenizer: Any, split_name: str, world: World, max_tokens: int | None) -> None:
        """None: the loss's own figures are what counts."""

    def row_settings(self) -> dict[str, Any]:
        """See `FixedRows.row_settings`; raises `ConfigError` where a row of the data is not always shown the same."""
        config, mend = self._config, "a teacher cache needs rows that never change; train with --teacher"
        if self._streams:
            raise ConfigError(f"--stream reads text that nobody has numbered: {mend}")
        if config.objective in ("denoise", "masked"):
            raise ConfigError(f"--objective {config.objective} hides other tokens in each pass: {mend}")
        if self._separator is not None:
            raise ConfigError(f"--sample-break-mode none makes samples that are no rows of the data: {mend}")
        name = next(iter(self.data.folders))
        self.data.single("a teacher cache")
        framed = self._framed[name]
        return {
            "objective": config.objective,
            "text_column": config.text_column,
            "tokens_per_sample": self._tokens,
            "decoder_start": self._decoder_start,
            "templates": [[list(t.prefix), list(t.suffix)] for t in (framed.source, framed.target)],
        }

    def positions(self, split_name: str) -> dict[Side, int]:
        """See `FixedRows.positions`; reads the offsets of the whole split."""
        rows = self._rows(next(iter(self.data)), split_name)
        source, target = rows.lengths(0, len(rows.texts)).sum(axis=0).tolist()
        return {"encoder": source, "decoder": target}

    def shard_batches(self, split_name: str, shard: int, batching: BatchingConfig) -> Iterator[Batch]:
        """See `FixedRows.shard_batches`; within 65,536 neighbours batches run from short to long."""
        rows = self._rows(next(iter(self.data)), split_name)
        return shard_batches(rows, partial(self._load_rows, rows), shard, batching)

    def _rows(self, corpus: str, split_name: str) -> _Rows:
        texts = self._texts(corpus, split_name)
        if not len(texts):
            raise DataError(f"{self.data.folders[corpus].path}: split {split_name} is empty; preprocess text for it")
        return _Rows(texts, self._framed[corpus])

    def _texts(self, corpus: str, split_name: str) -> Texts:
        return Texts(self.data.folders[corpus], split_name, self._config.text_column, self._room, self._separator)

    def _stored(self) -> dict[str, Texts]:
        """What the data folders give to train on; a stream goes before the folder of its name."""
        found = {name: self._texts(name, "train") for name in self.data.having("train") if name not in self._streams}
        if not found and not self._streams:
            raise DataError(f"{self.data.path}: there is no train split; preprocess one, or give --stream")
        return found

    def _corpus(self, name: str, texts: Texts, batching: BatchingConfig, seed: int) -> StoredCorpus:
        rows = _Rows(texts, self._framed[name])
        if batching.train_subset is None:
            return StoredCorpus(name, rows.shard_rows, rows.lengths, seed)
        return SubsetCorpus(name, RowSubset(rows.shard_rows, rows.lengths, batching.train_subset, seed), seed)

    def _streamed(self) -> list[StreamCorpus]:
        encoders, column = self._encoders(), self._config.stream_column

        def make(stream: TextStream, background: Background) -> StreamCorpus:
            name = stream.spec.corpus
            encode = partial(_encode, encoders[name])
            samples = SampleStream(stream, encode, self._room, self._separator)
            return StreamCorpus(samples, self._framed[name].lengths, background)

        return open_streams([TextStream(spec, column) for spec in self._streams.values()], make)

    def _encoders(self) -> dict[str, Encoder]:
        """What makes token ids of each stream's texts."""
        found: dict[str, Encoder] = {}
        for name in self._streams:
            languages = dict.fromkeys(ROLES, self._language(name))
            spec = choose_encoder(self._tokenizer, self.data.tokenizer_path, languages)
            if spec.rust:  # language codes are not its business, and with a large vocabulary it takes 0.3 GB
                return dict.fromkeys(self._streams, spec.open())
            found[name] = spec.open()
        return found

    def _frame(self, corpus: str) -> _Framed:
        language = self._language(corpus)
        if corpus in self.data.folders:
            folder = self.data.folders[corpus]
            check_column(folder, self._config.text_column)
            source, target = folder.template("source", language), folder.template("target", language)
        else:
            check_languages(self._tokenizer, [language], "--stream")
            found = probe_templates(self._tokenizer, [language])
            source, target = found["source"][language], found["target"][language]
        if self._encoder_only:
            target = source
        return _Framed(
            corpus, source, target, self._noise, self._encoder_only, self._config.scored_positions == "masked"
        )

    def _language(self, corpus: str) -> str:
        """The language of a data folder's text; a stream of its own is named for its language."""
        if corpus in self.data.folders:
            return self.data.folders[corpus].languages.get(self._config.text_column, "")
        return corpus if knows_languages(self._tokenizer) else ""

    def _load(self, texts: Mapping[str, Texts], seeds: tuple[int, int], places: Sequence[Place]) -> Batch:
        """The batch of ``places``; rows that no stream brought are those of ``texts``."""
        shown = []
        for place in places:
            ids = texts[place.corpus][place.row] if place.ids is None else place.ids
            rng = np.random.default_rng([seeds[0], zlib.crc32(place.corpus.encode()), place.pass_, place.row, seeds[1]])
            shown.append(self._framed[place.corpus].show(ids, rng))
        sources, attended = padded([source for source, _ in shown], self._pad)
        inputs = {"input_ids": sources, "attention_mask": attended.astype(np.int64)}
        labels, written = padded([target for _, target in shown], self._pad)
        if not self._encoder_only:
            inputs["decoder_input_ids"] = shift_right(labels, written, self._decoder_start)
        return Batch(
            inputs={name: torch.from_numpy(array) for name, array in inputs.items()},
            labels=torch.from_numpy(np.where(written, labels, IGNORED)),
            ids=[place.row for place in places],
        )

    def _load_rows(self, rows: _Rows, numbers: Sequence[int]) -> Batch:
        name = rows.framed.name
        return self._load({name: rows.texts}, (0, _VALIDATION), [Place(name, 0, number) for number in numbers])


def _tokens(config: PretrainingConfig, max_positions: int | None) -> int:
    """Tokens of a sample at most."""
    tokens = config.tokens_per_sample
    if tokens is None:
        return min(_USUAL_TOKENS, max_positions or _USUAL_TOKENS)
    if max_positions is not None and tokens > max_positions:
        raise ConfigError(f"--tokens-per-sample {tokens}: the models take {max_positions} positions; give no more")
    return tokens


def _specs(streams: Sequence[str]) -> dict[str, StreamSpec]:
    found: dict[str, StreamSpec] = {}
    for spec in map(StreamSpec.parse, streams):
        if spec.corpus in found:
            raise ConfigError(f"--stream {spec}: {spec.corpus} is given twice; give each corpus once")
        found[spec.corpus] = spec
    return found


def _encode(encoder: Encoder, texts: list[str]) -> list[Ids]:
    return list(encoder(texts, "source").split())


def _around(text: Int64s, template: Template) -> Int64s:
    # An empty prefix is an array of floats to numpy, hence the cast.
    return np.concatenate([template.prefix, text, template.suffix], dtype=np.int64, casting="unsafe")
