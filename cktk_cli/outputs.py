"""A model opened for lines, or for a split of a data folder: in this process, or in a worker of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Self

from cktk.config.command import Settings
from cktk.generation.configs import GenerateConfig, SearchBatchConfig
from cktk_cli.task import open_split, open_translator


class Output(NamedTuple):
    """A text that a model wrote, its score, and with ``--print-alignment`` pairs of positions, the source's first."""

    text: str
    score: float
    alignment: tuple[tuple[int, int], ...] | None = None


class Window(NamedTuple):
    """Lines, or numbers of rows, that are worked on together.

    ``prefixes`` are what their outputs have to begin with, and ``read`` is when each was read (s, `time.perf_counter`).
    """

    items: Sequence[Any]
    prefixes: Sequence[str] | None
    read: Sequence[float]


class Finished(NamedTuple):
    """The n-best lists of a window, in its order; when work on it ``started``, and what was counted."""

    outputs: list[list[Output]]
    started: float
    read: Sequence[float]
    counts: dict[str, int]


class LineModel:
    """Writes an output for each line; lines are those of one text, which comes in parts."""

    def __init__(self, settings: Settings) -> None:
        config = settings.section(GenerateConfig)
        self._translator = open_translator(settings, config.path)
        _align(config, self._translator)
        self._reader = self._translator.reader()
        self._settings = settings

    def batches(self, lines: Sequence[str]) -> list[list[int]]:
        """The positions of ``lines`` that `translate` would work on together, where they have no context."""
        return _batches(self._settings, self._reader.source_lengths(lines))

    def translate(
        self,
        lines: Sequence[str],
        prefixes: Sequence[str] | None = None,
        on_progress: Callable[[int], None] | None = None,
    ) -> tuple[list[list[Output]], dict[str, int]]:
        """The n-best lists of ``lines``, and what was counted."""
        found = self._reader.translate_nbest(lines, prefixes, on_progress)
        return _plain(found), take_counts(self._translator)


class SplitModel:
    """Writes an output for each row of the split that is asked for."""

    def __init__(self, settings: Settings) -> None:
        config = settings.section(GenerateConfig)
        self._split = open_split(settings, config.path, str(config.data_bin))
        _align(config, self._split.translator)
        self._name = config.gen_subset
        self._settings = settings

    def batches(self, numbers: Sequence[int]) -> list[list[int]]:
        """The positions in ``numbers`` of rows that `translate` would work on together, where they have no context."""
        rows = self._split.task.rows(self._name)
        return _batches(
            self._settings, [0 if rows.is_blank(number) else len(rows.source_ids(number)) for number in numbers]
        )

    def references(self) -> list[str]:
        """The target of each row, decoded."""
        found: list[str] = self._split.references(self._name)
        return found

    def translate(
        self,
        numbers: Sequence[int],
        prefixes: Sequence[str] | None = None,
        on_progress: Callable[[int], None] | None = None,
    ) -> tuple[list[list[Output]], dict[str, int]]:
        """The n-best lists of rows, and what was counted."""
        found = self._split.translate(self._name, prefixes, on_progress, numbers)
        return _plain(found), take_counts(self._split.translator)


def _align(config: GenerateConfig, translator: Any) -> None:
    if config.print_alignment:
        translator.align(config.alignment_layer)


def _batches(settings: Settings, lengths: Sequence[int]) -> list[list[int]]:
    """Positions of texts in batches as a search makes them; blank ones, of length 0, which no search gets, in one."""
    from cktk.generation.beam import length_batches  # imports torch

    config = settings.section(SearchBatchConfig)
    filled = [position for position, length in enumerate(lengths) if length]
    blank = [position for position, length in enumerate(lengths) if not length]
    parts = length_batches([lengths[position] for position in filled], config.max_tokens, config.batch_size)
    return [[filled[at] for at in part] for part in parts] + ([blank] if blank else [])


def _plain(found: Sequence[Sequence[Any]]) -> list[list[Output]]:
    return [[Output(one.text, one.score, one.alignment) for one in outputs] for outputs in found]


def take_counts(translator: Any) -> dict[str, int]:
    """What ``translator`` has counted since it was asked last."""
    counts = translator.counts
    translator.counts = type(counts)()
    return dict(vars(counts))


def open_model(settings: Settings) -> LineModel | SplitModel:
    """What the settings of ``cktk-generate`` ask for."""
    return SplitModel(settings) if settings.section(GenerateConfig).data_bin else LineModel(settings)


class Here:
    """Works on windows in this process; `cktk_cli.workers.Workers` does in several."""

    def __init__(self, settings: Settings) -> None:
        self._model: Any = open_model(settings)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def ask(self, question: str) -> Any:
        """What the model's method of that name returns."""
        return getattr(self._model, question)()

    def work(self, windows: Iterable[Window], on_progress: Callable[[int], None]) -> Iterator[Finished]:
        """Each window with its outputs; ``on_progress`` is told how many sentences were finished."""
        for window in windows:
            started = time.perf_counter()
            outputs, counts = self._model.translate(window.items, window.prefixes, on_progress)
            yield Finished(outputs, started, window.read, counts)
