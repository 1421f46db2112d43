"""What all tasks with a source and a target have in common: pairs of texts become batches of an encoder-decoder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from cktk.data.batch_config import BatchingConfig
from cktk.data.iterators import PlannedBatches
from cktk.data.mixtures.mixture import MixturePlanner, Place, StoredCorpus
from cktk.errors import ConfigError
from cktk.protocols import IGNORED, Batch, DecodingStart, Side, Template
from cktk.tasks.batches import check_filled, padded, refuse_subset, shard_batches, shift_right, split_batches
from cktk.tasks.configs import SequenceConfig
from cktk.tasks.pairs import Pair, PairCorpus, PairRows


class SequenceTask:
    """Batches for sequence-to-sequence models from pairs of texts (`cktk.tasks.pairs.text_side` makes their sides).

    ``pad`` and ``decoder_start`` are the model's token ids; ``decoder_start=None`` is mBART's rule: the decoder starts
    with the last token of the label sequence. With several ``corpora`` training takes from each what `shares` gives
    it. A task of this kind adds what it knows besides: its description and its scorer.
    """

    sides: tuple[Side, ...] = ("encoder", "decoder")
    #: What stands for a line break inside of an output.
    line_break = " "

    def __init__(self, config: SequenceConfig, *corpora: PairCorpus, pad: int, decoder_start: int | None) -> None:
        self.corpus, self.data = corpora[0], corpora[0].data
        self.pad = pad
        self._corpora = {corpus.name: corpus for corpus in corpora}
        self._decoder_start = decoder_start
        self._drop_first = config.drop_first_position

    @property
    def target_template(self) -> Template:
        """What goes around a target text (of the first corpus)."""
        return self.corpus.target.template

    @property
    def decoding_start(self) -> DecodingStart:
        """How an output for the first corpus starts."""
        return self.start_of(self.corpus)

    def start_of(self, corpus: PairCorpus) -> DecodingStart:
        """How an output starts: with the model's own token, or by mBART's rule as the target template says."""
        return corpus.target.template.decoding_start(self._decoder_start)

    def rows(self, split_name: str) -> PairRows:
        """The first corpus' rows of a split; raises `DataError` for a split that is not there."""
        return self.corpus.rows(split_name)

    def corpora(self, split_name: str) -> list[str]:
        """See `SeveralCorpora.corpora`."""
        return [name for name, corpus in self._corpora.items() if split_name in corpus.data.splits]

    def shares(self, rows: Mapping[str, int]) -> dict[str, float]:
        """The share of each corpus in training, given its ``rows``; together 1."""
        total = sum(rows.values())
        return {name: number / total for name, number in rows.items()}

    def positions(self, split_name: str) -> dict[Side, int]:
        """See `FixedRows.positions`; reads the offsets of the whole split."""
        rows = self.rows(split_name)
        source, target = rows.positions()
        return {"encoder": source, "decoder": target - self._drop_first * len(rows)}

    def row_settings(self) -> dict[str, Any]:
        """See `FixedRows.row_settings`; raises `ConfigError` where a row of the data is more than one."""
        if len(self._corpora) > 1:
            raise ConfigError(
                "a teacher cache is of one data folder in one direction; leave --bidirectional and other folders out, "
                "or train with --teacher"
            )
        return {
            "decoder_start": self._decoder_start,
            "drop_first_position": self._drop_first,
            **self.corpus.settings(),
        }

    def describe_split(self, split_name: str, what: str, corpus: PairCorpus | None = None) -> str:
        """A line about a split: how many rows it has (called ``what``), and how many of their texts are cut."""
        rows = (corpus or self.corpus).rows(split_name)
        cut = rows.truncated()
        contexts = f"; {cut['context']} have less context than there is" if rows.context else ""
        return (
            f"{split_name}: {len(rows)} {what}, {cut['source']} sources and {cut['target']} targets are cut to the "
            f"maximum positions{contexts}"
        )

    def collate(self, pairs: Sequence[Pair], ids: Sequence[int]) -> Batch:
        """The batch of ``pairs``; ``ids`` are their positions in their split.

        A first position that is dropped, and context that is given, stay in the decoder's input: they are not scored,
        no more.
        """
        sources, attended = padded([pair.source for pair in pairs], self.pad)
        targets, scored = padded([pair.target for pair in pairs], self.pad)
        decoder = shift_right(targets, scored, self._decoder_start)
        if self._drop_first:
            scored[:, 0] = False
        for row, pair in enumerate(pairs):
            scored[row, pair.unscored] = False
        inputs = {"input_ids": sources, "attention_mask": attended.astype(np.int64), "decoder_input_ids": decoder}
        return Batch(
            inputs={name: torch.from_numpy(array) for name, array in inputs.items()},
            labels=torch.from_numpy(np.where(scored, targets, IGNORED)),
            ids=list(ids),
        )

    def iterator(
        self, split_name: str, batching: BatchingConfig, shuffle: bool, seed: int, rank: int = 0, world: int = 1
    ) -> PlannedBatches:
        """The micro-batches of a split, of all corpora that have it; without ``shuffle`` (validation) an epoch is all
        that the first of these has of it.
        """
        having = self.corpora(split_name)
        if shuffle and len(having) > 1:
            return self._mixed(split_name, batching, seed, rank, world)
        corpus = self._corpora[having[0]] if having else self.corpus
        return self._batches(corpus, split_name, batching, shuffle, seed, rank, world)

    def corpus_pass(
        self, corpus: str, split_name: str, batching: BatchingConfig, rank: int, world: int
    ) -> PlannedBatches:
        """See `SeveralCorpora.corpus_pass`."""
        return self._batches(self._corpora[corpus], split_name, batching, False, 0, rank, world)

    def _batches(
        self,
        corpus: PairCorpus,
        split_name: str,
        batching: BatchingConfig,
        shuffle: bool,
        seed: int,
        rank: int,
        world: int,
    ) -> PlannedBatches:
        """Micro-batches of one corpus."""
        rows = corpus.rows(split_name)
        check_filled(rows, corpus.data, split_name)
        load = partial(self._load, rows)
        return split_batches(rows, load, batching, shuffle=shuffle, seed=seed, rank=rank, world=world)

    def _mixed(self, split_name: str, batching: BatchingConfig, seed: int, rank: int, world: int) -> PlannedBatches:
        """Micro-batches of all corpora; by default an epoch has as many samples as these have rows."""
        refuse_subset(batching, self.corpora(split_name))
        rows = {name: self._corpora[name].rows(split_name) for name in self.corpora(split_name)}
        sizes = {name: len(found) for name, found in rows.items()}
        planner = MixturePlanner(
            [StoredCorpus(name, found.shard_rows, found.lengths, seed) for name, found in rows.items()],
            self.shares(sizes),
            samples_per_epoch=batching.samples_per_epoch or sum(sizes.values()),
            max_tokens=batching.token_budget,
            batch_size=batching.batch_size,
            seed=seed,
        )
        load = partial(self._load_places, rows)
        return PlannedBatches(planner, load, rank=rank, world=world, num_workers=batching.num_workers)

    def shard_batches(self, split_name: str, shard: int, batching: BatchingConfig) -> Iterator[Batch]:
        """See `FixedRows.shard_batches`."""
        rows = self.rows(split_name)
        return shard_batches(rows, partial(self._load, rows), shard, batching)

    def _load(self, rows: PairRows, numbers: Sequence[int]) -> Batch:
        return self.collate([rows.pair(number) for number in numbers], list(numbers))

    def _load_places(self, rows: Mapping[str, PairRows], places: Sequence[Place]) -> Batch:
        """The batch of ``places``; a row's id is its number in all corpora, one after the other."""
        first = dict(zip(rows, np.cumsum([0, *map(len, rows.values())]).tolist(), strict=False))
        pairs = [rows[place.corpus].pair(place.row) for place in places]
        return self.collate(pairs, [first[place.corpus] + place.row for place in places])
