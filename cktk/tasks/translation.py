"""Translation: pairs of a data folder become the batches of an encoder-decoder, in either direction."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cktk.data.batch_config import BatchingConfig
from cktk.data.batching import Int64s, Lengths
from cktk.data.iterators import MicroBatches
from cktk.data.shards import DataFolder, Role, Split
from cktk.distributed.world import World
from cktk.errors import ConfigError, DataError
from cktk.protocols import IGNORED, Batch, DecodingStart, Side, Template
from cktk.tasks.configs import TranslationConfig
from cktk.tasks.scoring import TranslationScorer

_CHUNK_ROWS = 1 << 20


@dataclass(frozen=True)
class _Side:
    """Where one side of a pair comes from, what goes around it, and how many tokens of the text itself may stay."""

    column: str
    template: Template
    room: int

    def ids(self, row: Mapping[str, npt.NDArray[Any]]) -> Int64s:
        """The side of ``row`` as the model sees it: the text, cut at its end if too long, between prefix and suffix."""
        text = row[self.column][: self.room]
        # An empty prefix is an array of floats to numpy, hence the cast.
        return np.concatenate([self.template.prefix, text, self.template.suffix], dtype=np.int64, casting="unsafe")

    def lengths(self, split: Split, start: int, stop: int) -> Int64s:
        """The lengths of what `ids` gives for rows ``start`` .. ``stop - 1``."""
        special = len(self.template.prefix) + len(self.template.suffix)
        return np.minimum(split.lengths(self.column, start, stop), self.room) + special


class TranslationTask:
    """Batches for sequence-to-sequence models from a data folder with the columns ``source`` and ``target``.

    ``pad`` and ``decoder_start`` are the model's token ids; ``decoder_start=None`` is mBART's rule: the decoder starts
    with the last token of the label sequence. Texts are cut so that, with the special tokens around them, they keep to
    the maximum positions of ``config`` and to ``max_positions``, the most that the model takes. Raises `ConfigError`
    for languages that the folder does not hold and positions that leave no room for text, `DataError` for a folder of
    another kind.

    ``source_lang`` and ``target_lang`` are the direction in force.
    """

    sides: tuple[Side, ...] = ("encoder", "decoder")

    def __init__(
        self,
        config: TranslationConfig,
        data: DataFolder,
        *,
        pad: int,
        decoder_start: int | None,
        max_positions: int | None = None,
    ) -> None:
        self.data = data
        self._config = config
        self.pad = pad
        columns = _direction(config, data)
        self.source_lang, self.target_lang = (data.languages[column] for column in columns)
        self._decoder_start = decoder_start
        limits = (config.max_source_positions, config.max_target_positions)
        source, target = (min(limit, max_positions or limit) for limit in limits)
        self._source = self._side("source", columns[0], source)
        self._target = self._side("target", columns[1], target)

    @property
    def target_template(self) -> Template:
        """What goes around a target text."""
        return self._target.template

    @property
    def decoding_start(self) -> DecodingStart:
        """How a translation starts: with the model's own token, or by mBART's rule as the target template says."""
        return self._target.template.decoding_start(self._decoder_start)

    def lengths(self, split: Split) -> Lengths:
        """A function (start, stop) -> (stop - start, 2) of source and target lengths with template, after cutting."""

        def sides(start: int, stop: int) -> Int64s:
            return np.stack([side.lengths(split, start, stop) for side in (self._source, self._target)], axis=1)

        return sides

    def truncated(self, split: Split) -> dict[str, int]:
        """How many sources and how many targets of ``split`` are cut; reads the offsets of the whole split."""
        counts = {"source": 0, "target": 0}
        for start in range(0, len(split), _CHUNK_ROWS):
            stop = min(start + _CHUNK_ROWS, len(split))
            for role, side in (("source", self._source), ("target", self._target)):
                counts[role] += int((split.lengths(side.column, start, stop) > side.room).sum())
        return counts

    def positions(self, split_name: str) -> dict[Side, int]:
        """See `FixedRows.positions`; reads the offsets of the whole split."""
        split = self.data.split(split_name)
        lengths = self.lengths(split)
        chunks = (range(start, min(start + _CHUNK_ROWS, len(split))) for start in range(0, len(split), _CHUNK_ROWS))
        totals = sum((lengths(chunk.start, chunk.stop).sum(axis=0) for chunk in chunks), start=np.zeros(2, np.int64))
        dropped = len(split) if self._config.drop_first_position else 0
        return {"encoder": int(totals[0]), "decoder": int(totals[1]) - dropped}

    def row_settings(self) -> dict[str, Any]:
        """See `FixedRows.row_settings`."""
        found: dict[str, Any] = {
            "source_lang": self.source_lang,
            "target_lang": self.target_lang,
            "decoder_start": self._decoder_start,
            "drop_first_position": self._config.drop_first_position,
        }
        for role, side in (("source", self._source), ("target", self._target)):
            template = side.template
            special = len(template.prefix) + len(template.suffix)
            found[f"max_{role}_positions"] = side.room + special
            found[f"{role}_template"] = [list(template.prefix), list(template.suffix)]
        return found

    def source_inputs(self, split: Split, index: int) -> Int64s:
        """The encoder's input ids for row ``index``, with template, cut."""
        return self._source.ids(split[index])

    def reference_ids(self, split: Split, index: int) -> Int64s:
        """The whole target text of row ``index`` as token ids, without template, never cut."""
        return split[index][self._target.column].astype(np.int64)

    def is_blank(self, split: Split, index: int) -> bool:
        """Whether row ``index`` has no source text."""
        return not len(split[index][self._source.column])

    def describe(self) -> list[str]:
        """See `Task.describe`."""
        split = self.data.split("train")
        cut = self.truncated(split)
        direction = f"{self.source_lang}-{self.target_lang}"
        cuts = f"{cut['source']} sources and {cut['target']} targets are cut to the maximum positions"
        return [f"train: {len(split)} pairs {direction}, {cuts}"]

    def scorer(
        self, model: Any, tokenizer: Any, split_name: str, world: World, max_tokens: int | None
    ) -> TranslationScorer | None:
        """What a validation calls for BLEU and chrF of ``split_name``; None where they are not wanted."""
        if not self._config.eval_bleu:
            return None
        return TranslationScorer(self, self.data.split(split_name), model, tokenizer, self._config, world, max_tokens)

    def collate(self, rows: Sequence[Mapping[str, npt.NDArray[Any]]], ids: Sequence[int]) -> Batch:
        """The batch of ``rows`` as read from a `Split`; ``ids`` are their positions in it.

        The decoder's input is transformers' ``shift_tokens_right`` of the padded labels: for BART the start token and
        the labels but their last column, for mBART with each row's last label as its start token. A first position
        that is dropped stays in the decoder's input: it is not scored, no more.
        """
        sources, attended = _padded([self._source.ids(row) for row in rows], self.pad)
        targets, scored = _padded([self._target.ids(row) for row in rows], self.pad)
        decoder = np.roll(targets, 1, axis=1)
        if self._decoder_start is None:
            decoder[:, 0] = targets[np.arange(len(rows)), scored.sum(axis=1) - 1]
        else:
            decoder[:, 0] = self._decoder_start
        if self._config.drop_first_position:
            scored[:, 0] = False
        inputs = {"input_ids": sources, "attention_mask": attended.astype(np.int64), "decoder_input_ids": decoder}
        return Batch(
            inputs={name: torch.from_numpy(array) for name, array in inputs.items()},
            labels=torch.from_numpy(np.where(scored, targets, IGNORED)),
            ids=list(ids),
        )

    def iterator(
        self, split_name: str, batching: BatchingConfig, shuffle: bool, seed: int, rank: int = 0, world: int = 1
    ) -> MicroBatches:
        """The micro-batches of a split; without ``shuffle`` (validation) an epoch is always the whole split."""
        split = self.data.split(split_name)
        if not len(split):
            raise DataError(f"{self.data.path}: split {split_name} is empty; preprocess it again with text in it")
        return MicroBatches(
            split.shard_rows,
            self.lengths(split),
            partial(self._load, split),
            max_tokens=batching.token_budget,
            batch_size=batching.batch_size,
            shuffle=shuffle,
            seed=seed,
            rank=rank,
            world=world,
            # Workers start anew with each pass, which a short validation does not pay back.
            num_workers=batching.num_workers if shuffle else 0,
            samples_per_epoch=batching.samples_per_epoch if shuffle else None,
        )

    def shard_batches(self, split_name: str, shard: int, batching: BatchingConfig) -> Iterator[Batch]:
        """See `FixedRows.shard_batches`; within 65,536 neighbours batches run from short to long."""
        split = self.data.split(split_name)
        first, lengths = sum(split.shard_rows[:shard]), self.lengths(split)
        batches = MicroBatches(
            split.shard_rows[shard : shard + 1],
            lambda start, stop: lengths(first + start, first + stop),
            partial(self._load, split, first=first),
            max_tokens=batching.token_budget,
            batch_size=batching.batch_size,
            shuffle=False,
            seed=0,
            num_workers=batching.num_workers,
        )
        while found := batches.next_update(1):
            yield from found

    def _load(self, split: Split, ids: Sequence[int], first: int = 0) -> Batch:
        rows = [first + index for index in ids]
        return self.collate([split[row] for row in rows], rows)

    def _side(self, role: Role, column: Role, positions: int) -> _Side:
        if column not in self.data.columns:
            raise DataError(
                f"{self.data.path}: has no column {column} (but {', '.join(self.data.columns)}); "
                "translation needs pairs: preprocess parallel text"
            )
        template = self.data.template(role, self.data.languages[column])
        special = len(template.prefix) + len(template.suffix)
        if not template.suffix:
            raise DataError(
                f"{self.data.path}: its tokenizer puts no end token behind a {role}; "
                "preprocess with a tokenizer that does"
            )
        if positions <= special:
            raise ConfigError(
                f"--max-{role}-positions {positions} leaves no room for text beside {special} special tokens; raise it"
            )
        return _Side(column, template, positions - special)


def _direction(config: TranslationConfig, data: DataFolder) -> tuple[Role, Role]:
    """The columns to translate from and into: the languages asked for, and otherwise as the folder was made."""
    made: tuple[Role, Role] = ("source", "target")
    for source, target in (made, (made[1], made[0])):
        asked = ((config.source_lang, source), (config.target_lang, target))
        if all(lang in (None, data.languages[column]) for lang, column in asked):
            return source, target
    flags = {"--source-lang": config.source_lang, "--target-lang": config.target_lang}
    given = " ".join(f"{flag} {lang}" for flag, lang in flags.items() if lang)
    raise ConfigError(
        f"{given}: {data.path} holds {' and '.join(data.languages.values())}; translate from one of them into the other"
    )


def _padded(rows: Sequence[Int64s], pad: int) -> tuple[Int64s, npt.NDArray[np.bool_]]:
    """``rows`` below one another, filled up with ``pad``, and the mask of what is not filling: both (B, longest)."""
    lengths = np.array([len(row) for row in rows])
    mask = np.arange(lengths.max()) < lengths[:, None]
    ids = np.full(mask.shape, pad, np.int64)
    ids[mask] = np.concatenate(rows)
    return ids, mask
