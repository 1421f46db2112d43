"""Output for a split of a data folder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cktk.data.context_config import InputConfig
from cktk.data.shards import DataFolder
from cktk.generation.context import ContextualSearch
from cktk.generation.translator import Translation, Translator
from cktk.tasks.configs import TranslationConfig
from cktk.tasks.sequence import SequenceTask
from cktk.tasks.translation import TranslationTask


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
    ) -> list[list[Translation]]:
        """The n-best outputs of each row, in order; an empty row gives one empty output.

        Raises `DataError` for an unknown split, and unless there is one (perhaps empty) prefix per row.
        """
        rows = self.task.rows(split_name)
        found = self.translator.translate_rows(
            rows,
            range(len(rows)),
            ContextualSearch(rows.target, rows.context, self.translator.tokenizer.all_special_ids),
            None if prefixes is None else self._prefix_ids(prefixes),
            self.task.decoding_start,
            on_progress=on_progress,
        )
        self.translator.counts.truncated += rows.truncated()["source"]
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


class SplitTranslator(SplitGenerator):
    """Translates splits of ``data`` in one direction (default: as the folder was made).

    Raises `ConfigError` for languages that the folder does not hold.
    """

    def __init__(
        self,
        translator: Translator,
        data: DataFolder,
        source_lang: str | None = None,
        target_lang: str | None = None,
        inputs: InputConfig | None = None,
    ) -> None:
        task_config = TranslationConfig(
            source_lang=source_lang,
            target_lang=target_lang,
            **vars(inputs or InputConfig()),
            max_source_positions=translator.max_source_positions,
            max_target_positions=translator.positions,
        )
        pad = translator.model.config.pad_token_id
        super().__init__(
            translator, TranslationTask(task_config, data, pad=pad, decoder_start=translator.decoder_start)
        )
