"""What the commands that generate and score share: the flag ``--task``, opening models, and scoring."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cktk.config.command import Component, Settings
from cktk.config.options import Raw
from cktk.data.context_config import InputConfig
from cktk.errors import CktkError, ConfigError
from cktk.evaluation.configs import TextMetricsConfig
from cktk.generation.configs import ModelConfig, SearchBatchConfig, SearchConfig
from cktk.registry import EVALUATIONS, Registry
from cktk.utils.files import read_json

#: The settings of a model that answers or writes, and those of one that writes texts.
MODEL_SECTIONS = (SearchBatchConfig, ModelConfig)
TEXT_SECTIONS = (SearchConfig, InputConfig)

#: What a data folder is known by; `cktk.data.shards` knows more of it, and takes numpy to load.
_MANIFEST = "manifest.json"


def task_component(
    argv: Sequence[str] | None, registry: Registry = EVALUATIONS, of_texts: Sequence[type] = ()
) -> Component:
    """``--task``; by default what the data folder says that is named by run file or command line ``argv``.

    The sections ``of_texts`` come with tasks whose models write texts.
    """

    def of_data(given: Mapping[str, Raw]) -> str | None:
        written = [given.get(name) for name in ("data_bin", "data")]
        named = [path for value in written for path in (value if isinstance(value, list) else [value]) if path]
        for argument in (*named, *(sys.argv[1:] if argv is None else argv)):
            path = Path(argument.partition(",")[0])  # several folders are of one kind
            if (path / _MANIFEST).is_file():
                return _task_of(path, registry)
        return None

    return Component(
        "task",
        registry,
        default="translation",
        help="what to do with the data folder (default: what it was preprocessed for)",
        infer=of_data,
        further=lambda config: of_texts if issubclass(config, TextMetricsConfig) else (),
    )


def _task_of(folder: Path, registry: Registry) -> str | None:
    try:
        found = read_json(folder / _MANIFEST).get("task")
    except (CktkError, AttributeError):
        return None  # opening the folder will say what is wrong with it
    return found if found in registry.names() else None


def open_split(settings: Settings, path: str, data_bin: str) -> Any:
    """The model ``path`` with what it makes of the splits of the data folder, as the settings say."""
    # transformers takes seconds to import: only after the flags and files have been looked at.
    from cktk import hub

    return hub.open_split(
        path,
        data_bin,
        settings.section(ModelConfig),
        settings.section(SearchConfig),
        settings.section(SearchBatchConfig),
        settings.section(InputConfig),
        settings.component("task")[0],
    )


def open_translator(settings: Settings, path: str) -> Any:
    """The model ``path`` for lines, as the settings say."""
    from cktk import hub

    return hub.open_translator(
        path,
        settings.section(ModelConfig),
        settings.section(SearchConfig),
        settings.section(SearchBatchConfig),
        settings.section(InputConfig),
        settings.component("task")[0],
    )


def score_texts(settings: Settings, hypotheses: Sequence[str], references: Sequence[str]) -> Any:
    """The `Scores` of texts by the metrics of the task that was chosen."""
    name, config = settings.component("task")
    return EVALUATIONS.target(name)(config)(hypotheses, references)


def writes_texts(settings: Settings) -> bool:
    """Whether models of the task that was chosen write texts."""
    return isinstance(settings.component("task")[1], TextMetricsConfig)


def check_scoring(settings: Settings, scoring: str | None) -> None:
    """Raise `ConfigError` where ``--scoring`` names metrics of another task."""
    name, config = settings.component("task")
    if scoring is not None and config.scoring not in (None, scoring):
        raise ConfigError(f"--scoring {scoring} does not fit --task {name}: give --scoring {config.scoring}")


def refuse(what: str, given: Mapping[str, bool]) -> None:
    """Raise `ConfigError` for the first flag that is ``given`` and says nothing to ``what``."""
    for flag, is_given in given.items():
        if is_given:
            raise ConfigError(f"{flag} has no meaning with {what}; leave it out")
