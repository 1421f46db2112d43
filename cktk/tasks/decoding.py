"""Output for a split of a data folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

from cktk.data.context_config import InputConfig
from cktk.data.mixtures.corpora import Corpora
from cktk.data.shards import DataFolder
from cktk.generation.context import ContextualSearch
from cktk.generation.translator import Translation, Translator
from cktk.tasks.configs import SequenceConfig
from cktk.tasks.sequence import SequenceTask


@runtime_checkable
class WritesTexts(Protocol):
    """What a row of `TASKS` is if the models of its task write texts (`cktk-generate`, `cktk.hub.student`)."""

    #: What stands for a line break inside of an output.
    line_break: str

    def output_config(
        self,
        data: DataFolder,
        inputs: InputConfig,
        languages: tuple[str | None, str | None],
        *,
        max_source_positions: int,
        max_target_positions: int,
    ) -> SequenceConfig:
        """The task's options for output; raises `ConfigError` for ``inputs`` or ``languages`` that it does not take."""

    def __call__(
        self,
        config: Any,
        data: Corpora | DataFolder,
        *,
        pad: int,
        decoder_start: int | None,
        max_positions: int | None = None,
    ) -> SequenceTask:
        """See `TaskBuilder`."""


class SplitGenerator:
    """Generates output for splits of ``task``'s data folder with ``translator``.

    Sources are cut to the task's limit and counted in the translator's counts.
    """

    def __init__(self, translator: Translator, task: SequenceTask) -> None:
        self.translator, self.task, self.data = translator, task, task.data

    def translate(
        self,
        split_name: str,
        prefixes: list[str] | None = None,
        on_progress: Callable[[int], None] | None = None,
        numbers: Sequence[int] | None = None,
    ) -> list[list[Translation]]:
        """The n-best outputs of each row, or of the rows ``numbers``, in order; an empty row gives one empty output.

        Raises `DataError` for an unknown split, and unless there is one (perhaps empty) prefix per row.
        """
        rows = self.task.rows(split_name)
        numbers = range(len(rows)) if numbers is None else numbers
        found = self.translator.translate_rows(
            rows,
            numbers,
            ContextualSearch(rows.target, rows.context, self.translator.tokenizer.all_special_ids),
            None if prefixes is None else self._prefix_ids(prefixes),
            self.task.decoding_start,
            on_progress=on_progress,
        )
        self.translator.counts.truncated += sum(map(rows.is_cut, numbers))
        return found

    def references(self, split_name: str) -> list[str]:
        """The target side of each row, decoded."""
        rows = self.task.rows(split_name)
        return [self.translator.decode(rows.reference_ids(row).tolist()) for row in range(len(rows))]

    def _prefix_ids(self, prefixes: list[str]) -> list[list[int] | None]:
        """The tokens of each prefix; None where it is blank."""
        tokenizer: Any = self.translator.tokenizer
        encoded = (
            tokenizer(text_target=prefixes, add_special_tokens=False, verbose=False)["input_ids"] if prefixes else []
        )
        return [ids if text.strip() else None for text, ids in zip(prefixes, encoded, strict=True)]


def split_generator(
    kind: WritesTexts,
    translator: Translator,
    data: DataFolder,
    *,
    inputs: InputConfig | None = None,
    source_lang: str | None = None,
    target_lang: str | None = None,
) -> SplitGenerator:
    """What ``translator`` makes of the splits of ``data``, as the task ``kind`` shows their rows to its model.

    ``inputs`` are what stands before a source, the languages those to translate from and into (default: as the folder
    was made). Raises `ConfigError` for what the task or the folder does not have.
    """
    config = kind.output_config(
        data,
        inputs or InputConfig(),
        (source_lang, target_lang),
        max_source_positions=translator.max_source_positions,
        max_target_positions=translator.positions,
    )
    pad = translator.model.config.pad_token_id
    return SplitGenerator(
        translator, kind(config, Corpora.of(data), pad=pad, decoder_start=translator.decoder_start, max_positions=None)
    )
