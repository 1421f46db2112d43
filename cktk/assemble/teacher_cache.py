"""Making a teacher cache."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from cktk.architectures.families.family import Family, family_of
from cktk.architectures.fingerprint import model_fingerprint
from cktk.architectures.loading import load_config
from cktk.architectures.states.layer_map import layer_pairs
from cktk.assemble.heads import check_answers, wanted_head
from cktk.assemble.models import ModelLoader
from cktk.assemble.recorded_teacher import row_settings
from cktk.config.command import Settings
from cktk.criteria.head import targets as sparse
from cktk.data.batch_config import BatchingConfig
from cktk.data.mixtures.corpora import Corpora
from cktk.data.shards import DataFolder
from cktk.data.teacher_cache.cache_config import CachedStatesConfig, TeacherCacheConfig
from cktk.data.teacher_cache.cache_writer import cache_shard, prepare_cache, write_cache_manifest
from cktk.data.teacher_cache.reader import SIDES, TEACHER_FOLDER, CacheKey, finished_cache_shard, shard_fingerprint
from cktk.distributed import world as distributed
from cktk.distributed.world import World
from cktk.engine.teacher import Autocast
from cktk.errors import ConfigError, DataError
from cktk.protocols import Adapter, Batch, ModelOutput, ModelShape, SentenceHead, Side, SparseTargets, StateRequest
from cktk.registry import TASKS
from cktk.tasks.base import FixedRows
from cktk.utils.files import atomic_folder
from cktk.utils.log import logger, setup_logging
from cktk.utils.rng import place_seed

#: Opens a progress bar with a label and a number of rows; what it gives is called with the rows just done.
Bar = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]

_GB = 10**9


@dataclass(frozen=True)
class _Shard:
    """A shard to be cached: shard ``number`` of ``split``, whose first row is row ``first`` of the split."""

    split: str
    number: int
    name: str
    first: int
    rows: int
    data: str


def cache_teacher(settings: Settings, bar: Bar) -> None:
    """Write the teacher cache that ``settings`` ask for, or finish one that was interrupted."""
    world = distributed.start(settings.section(TeacherCacheConfig).device)
    setup_logging(world.rank)
    try:
        _Caching(settings, world).run(bar)
    finally:
        distributed.stop()


class _Caching:
    """One run of cktk-cache-teacher."""

    def __init__(self, settings: Settings, world: World) -> None:
        self._config = config = settings.section(TeacherCacheConfig)
        self._batching = settings.section(BatchingConfig)
        if self._batching.samples_per_epoch is not None:
            raise ConfigError("--samples-per-epoch: a cache is made of whole splits; leave it out")
        if self._batching.train_subset is not None:
            raise ConfigError(
                "--train-subset: a cache is made of whole splits, which cktk-train draws from; leave it out"
            )
        self._world = world
        self._folder = Path(config.cache_dir)
        self._data = DataFolder(config.data)
        self._shards = [shard for split in config.splits for shard in _shards(self._data, split)]
        family = family_of(load_config(config.teacher).model_type, config.teacher)
        head = wanted_head(settings, Corpora.of(self._data))
        load = ModelLoader(family, self._data, config.allow_bin_weights, head)
        self._teacher = load("the teacher", config.teacher).requires_grad_(False)
        _check_head(family, self._teacher, head)
        self._task = _fixed_task(settings, self._data, family, self._teacher)
        states = _states(settings.section(CachedStatesConfig), family.shape(self._teacher.config))
        answers = self._teacher.config.vocab_size if head is None else head.outputs
        self._key = _key(settings, self._task, family, self._teacher, states, answers)
        self._adapter: Adapter = family.adapter(_moved(self._teacher, world))
        self._request = StateRequest(hidden=states, head=True)
        dtype = getattr(torch, config.precision)
        self._autocast = Autocast(world.device.type, None if dtype == torch.float32 else dtype)

    def run(self, bar: Bar) -> None:
        """Write what is missing; the first process finishes the cache when all have written theirs."""
        if self._world.is_main:
            self._begin()
        self._world.barrier()
        started, mine = time.perf_counter(), self._shards[self._world.rank :: self._world.size]
        missing = [shard for shard in mine if self._finished(shard) is None]
        rows = sum(shard.rows for shard in missing)
        with bar("caching", rows) as done:
            for shard in missing:
                self._write(shard, done)
        if self._world.is_main:
            entries = self._wait_for_all()
            write_cache_manifest(self._folder, self._key, entries)
            size = sum(facts["bytes"] for found in entries.values() for e in found for facts in e["files"].values())
            logger.info(
                "%s: %d shards, %.3g GB, in %.1f s; train with --teacher-cache %s",
                self._folder, len(self._shards), size / _GB, time.perf_counter() - started, self._folder,
            )  # fmt: skip

    def _begin(self) -> None:
        """Check and announce everything, and make the folder."""
        if self._config.verify_data:
            self._data.verify()
        missing = [shard for shard in self._shards if self._finished(shard) is None]
        whole = {split: self._split_bytes(split) for split in self._config.splits}
        rows = {split: len(self._data.split(split)) for split in self._config.splits}
        needed = sum(whole[shard.split] * shard.rows // max(rows[shard.split], 1) for shard in missing)
        existing = next(path for path in (self._folder, *self._folder.absolute().parents) if path.exists())
        free = shutil.disk_usage(existing).free
        held = ", ".join(f"{side} states {list(layers)}" for side, layers in self._key.states.items())
        logger.info(
            "teacher cache of %s: %s tokens a position, %s; %.3g GB, %.3g GB of them to be written",
            ", ".join(f"{split} ({rows[split]} rows)" for split in rows),
            f"{self._key.k} {'drawn' if self._key.kind == 'sampled' else 'most probable'}",
            held or "no hidden states",
            sum(whole.values()) / _GB,
            needed / _GB,
        )
        if needed > free:
            raise DataError(
                f"--cache-dir {self._folder}: {needed / _GB:.3g} GB are needed and {free / _GB:.3g} GB free; choose "
                "another disk, a lower --top-k or --samples, or fewer hidden states"
            )
        prepare_cache(self._folder, self._key)
        if not (self._folder / TEACHER_FOLDER).exists():
            with atomic_folder(self._folder / TEACHER_FOLDER) as folder:
                self._teacher.config.save_pretrained(folder)
                generation = getattr(self._teacher, "generation_config", None)
                if generation is not None:
                    generation.save_pretrained(folder)

    def _split_bytes(self, split: str) -> int:
        return self._key.bytes(len(self._data.split(split)), self._task.positions(split))

    def _finished(self, shard: _Shard) -> dict[str, Any] | None:
        return finished_cache_shard(self._folder, shard.name, self._key, shard.data)

    def _write(self, shard: _Shard, done: Callable[[int], None]) -> None:
        with cache_shard(self._folder, shard.name, self._key, shard.data, shard.first, shard.rows) as writer:
            for number, batch in enumerate(self._task.shard_batches(shard.split, shard.number, self._batching)):
                writer.add(batch, self._answer(batch.to(self._world.device), shard, number))
                done(len(batch.ids))

    @torch.no_grad()
    def _answer(self, batch: Batch, shard: _Shard, number: int) -> ModelOutput:
        """What the teacher says about batch ``number`` of ``shard``."""
        with self._autocast():
            states = self._adapter(batch, self._request)
            return replace(states, targets=self._targets(states, (shard.split, shard.number, number)))

    def _targets(self, states: ModelOutput, place: tuple[str, int, int]) -> SparseTargets:
        """The targets of a batch; draws depend on its ``place`` and on nothing that was drawn before."""
        assert states.head_input is not None
        head, memory = self._adapter.head(), self._config.logits_memory << 20
        if self._key.kind == "top_k":
            return sparse.top_k_targets(states.head_input, head, self._key.k, self._key.temperature, memory)
        generator = torch.Generator(self._world.device).manual_seed(place_seed(self._config.seed, *place))
        return sparse.sampled_targets(states.head_input, head, self._key.k, self._key.temperature, memory, generator)

    def _wait_for_all(self) -> dict[str, list[dict[str, Any]]]:
        """The entries of all shards, once they are there.

        Files are looked at instead of meeting at a barrier: shards may differ by hours, and a barrier gives up.
        """
        found: dict[str, list[dict[str, Any]]] = {split: [] for split in self._config.splits}
        for shard in self._shards:
            while (entry := self._finished(shard)) is None:
                time.sleep(0.2)
            found[shard.split].append(entry)
        return found


def _check_head(family: Family, teacher: PreTrainedModel, head: SentenceHead | None) -> None:
    """Raise `ConfigError` unless ``teacher`` gives a distribution over what ``head`` asks for, if it asks at all."""
    if head is None:
        return
    if head.labels is None:
        raise ConfigError(
            "a teacher cache holds distributions, and the data asks for numbers (regression): train with --teacher"
        )
    check_answers(family, teacher.config, head, "the teacher", "; give a teacher that was fine-tuned on this data")


def _moved(model: nn.Module, world: World) -> Any:
    return model.to(world.device)


def _shards(data: DataFolder, split: str) -> Iterator[_Shard]:
    if split not in data.splits:
        raise ConfigError(f"--splits {split}: {data.path} has the splits {', '.join(data.splits)}; choose among them")
    first = 0
    for number, entry in enumerate(data.entries(split)):
        yield _Shard(split, number, entry["name"], first, entry["rows"], shard_fingerprint(data, entry))
        first += entry["rows"]


def _fixed_task(settings: Settings, data: DataFolder, family: Family, teacher: PreTrainedModel) -> FixedRows:
    name, config = settings.component("task")
    task = TASKS.target(name)(
        config,
        Corpora.of(data),
        pad=teacher.config.pad_token_id,
        decoder_start=family.decoder_start(teacher.config),
        max_positions=family.shape(teacher.config).positions,
    )
    row_settings(name, task)
    return task  # type: ignore[no-any-return]


def _states(config: CachedStatesConfig, teacher: ModelShape) -> dict[Side, tuple[int, ...]]:
    """The teacher states that a student of the depth in ``config`` is matched with."""
    if not config.hidden_states:
        return {}
    depths = {"encoder": config.encoder_layers, "decoder": config.decoder_layers}
    for side, depth in depths.items():
        if depth is not None and side not in teacher.sides:
            raise ConfigError(f"--{side}-layers {depth}: the teacher has no {side}; leave it out")
    sides = {side: replace(sizes, layers=depths[side] or sizes.layers) for side, sizes in teacher.sides.items()}
    pairs = layer_pairs(replace(teacher, sides=sides), teacher, config.layer_map, embeddings=config.match_embeddings)
    found = {side: tuple(sorted({pair.teacher for pair in pairs if pair.side == side})) for side in SIDES}
    return {side: layers for side, layers in found.items() if layers}


def _key(
    settings: Settings,
    task: FixedRows,
    family: Family,
    teacher: PreTrainedModel,
    states: dict[Side, tuple[int, ...]],
    answers: int,
) -> CacheKey:
    """What decides the content of the cache; ``answers`` are the teacher's, tokens or classes."""
    config = settings.section(TeacherCacheConfig)
    sampled = config.samples is not None
    if config.top_k is not None and config.top_k > answers:
        raise ConfigError(f"--top-k {config.k}: the teacher has {answers} tokens or labels; give no more")
    return CacheKey(
        teacher=model_fingerprint(teacher),
        vocab_size=answers,
        width=family.shape(teacher.config).width,
        kind="sampled" if sampled else "top_k",
        k=config.k if sampled else min(config.k, answers),
        temperature=config.temperature,
        seed=config.seed if sampled else None,
        precision=config.precision,
        states=states,
        states_dtype=settings.section(CachedStatesConfig).states_dtype,
        rows=row_settings(settings.component("task")[0], task),
    )
