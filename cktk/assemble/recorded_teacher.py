"""A teacher of which only a teacher cache is there: what training asks of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PreTrainedConfig

from cktk.architectures.families.family import Family
from cktk.architectures.loading import load_config
from cktk.config.command import Settings
from cktk.criteria.configs import KlKdConfig
from cktk.data.shards import DataFolder
from cktk.data.teacher_cache.cached_split import CachedSplit
from cktk.data.teacher_cache.reader import TeacherCache
from cktk.engine.cached_teacher import CachedTeacher
from cktk.engine.configs import ModelsConfig
from cktk.errors import ConfigError
from cktk.protocols import Needs
from cktk.tasks.base import FixedRows


@dataclass(frozen=True)
class RecordedTeacher:
    """A teacher cache, with the configuration of the teacher that it was made from."""

    cache: TeacherCache
    config: PreTrainedConfig
    generation_config: GenerationConfig | None

    @classmethod
    def open(cls, path: str, family: Family) -> RecordedTeacher:
        """The cache ``path``; raises `ConfigError` if its teacher is not of ``family``."""
        cache = TeacherCache(path)
        config = load_config(cache.teacher_path)
        family.check_type(config, f"the teacher of the cache {path}")
        generation = None
        if (cache.teacher_path / "generation_config.json").is_file():
            generation = GenerationConfig.from_pretrained(cache.teacher_path)
        return cls(cache, config, generation)

    def check(self, settings: Settings, data: DataFolder, task: object, splits: Sequence[str]) -> None:
        """Raise unless the cache is of ``splits`` as ``task`` shows them, and has what the criterion asks for."""
        self.cache.check(data, splits, row_settings(settings.component("task")[0], task))
        if settings.section(ModelsConfig).teacher_states_dtype != "auto":
            raise ConfigError(
                "--teacher-states-dtype: the states of a cache are as --states-dtype of cktk-cache-teacher made them; "
                "leave it out"
            )
        criterion, key = settings.component("criterion")[1], self.cache.key
        if not isinstance(criterion, KlKdConfig) or not criterion.kl_weight:
            return
        if criterion.temperature != key.temperature:
            raise ConfigError(
                f"--temperature {criterion.temperature:g}: the teacher cache {self.cache.path} was made with "
                f"{key.temperature:g}; give that, or make another with cktk-cache-teacher --temperature "
                f"{criterion.temperature:g}"
            )
        if criterion.teacher_top_k not in (0, key.k if key.kind == "top_k" else 0):
            kept = f"the {key.k} most probable tokens" if key.kind == "top_k" else f"{key.k} drawn tokens"
            raise ConfigError(
                f"--teacher-top-k {criterion.teacher_top_k}: the teacher cache {self.cache.path} holds {kept} of each "
                "position; leave it out"
            )

    def on_split(self, name: str, needs: Needs) -> CachedTeacher:
        """The teacher for the rows of split ``name``."""
        return CachedTeacher(CachedSplit(self.cache, name), needs)

    def describe(self) -> str:
        """Where it is, and what it gives."""
        key = self.cache.key
        kind = "most probable" if key.kind == "top_k" else "drawn"
        held = "".join(f", {side} states {', '.join(map(str, found))}" for side, found in key.states.items())
        return f"recorded in {Path(self.cache.path)}: {key.k} {kind} tokens a position{held}"


def row_settings(task_name: str, task: object) -> dict[str, Any]:
    """What decides how ``task`` shows a data row; `ConfigError` for a task that may show it anew each time."""
    if not isinstance(task, FixedRows):
        raise ConfigError(
            f"--task {task_name} works with no teacher cache: it does not offer what cktk.tasks.base.FixedRows asks "
            "for; train with --teacher"
        )
    return {"task": task_name, **task.row_settings()}
