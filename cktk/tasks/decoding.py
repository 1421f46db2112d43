"""Translating a split of a data folder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cktk.data.shards import DataFolder
from cktk.generation.translator import Translation, Translator
from cktk.tasks.configs import TranslationConfig
from cktk.tasks.translation import TranslationTask


class SplitTranslator:
    """Translates splits of ``data`` in one direction (default: as the folder was made).

    Sources are cut to the translator's limit and counted there. Raises `ConfigError` for languages that the folder does
    not hold.
    """

    def __init__(
        self,
        translator: Translator,
        data: DataFolder,
        source_lang: str | None = None,
        target_lang: str | None = None,
    ) -> None:
        self.translator = translator
        self.data = data
        task_config = TranslationConfig(
            source_lang=source_lang,
            target_lang=target_lang,
            max_source_positions=translator.max_source_positions,
            max_target_positions=translator.positions,
        )
        pad = translator.model.config.pad_token_id
        self.task = TranslationTask(task_config, data, pad=pad, decoder_start=translator.decoder_start)

    def translate(
        self,
        split_name: str,
        prefixes: list[str] | None = None,
        on_progress: Callable[[int], None] | None = None,
    ) -> list[list[Translation]]:
        """The n-best translations of each row, in order; an empty row gives one empty translation.

        Raises `DataError` for an unknown split, and unless there is one (perhaps empty) prefix per row.
        """
        split = self.data.split(split_name)
        column = next(role for role, lang in self.data.languages.items() if lang == self.task.source_lang)
        lengths = split.lengths(column, 0, len(split))
        found = self.translator.translate_ids(
            [self.task.source_inputs(split, row) if lengths[row] else None for row in range(len(split))],
            None if prefixes is None else self._prefix_ids(prefixes),
            self.task.decoding_start,
            on_progress=on_progress,
        )
        self.translator.counts.truncated += self.task.truncated(split)["source"]
        return found

    def references(self, split_name: str) -> list[str]:
        """The target side of each row, decoded."""
        split = self.data.split(split_name)
        return [self.translator.decode(self.task.reference_ids(split, row).tolist()) for row in range(len(split))]

    def _prefix_ids(self, prefixes: list[str]) -> list[tuple[int, ...] | None]:
        """What the target template puts in front, then the prefix; None where it is blank."""
        before = self.data.template("target", self.task.target_lang).prefix
        tokenizer: Any = self.translator.tokenizer
        encoded = (
            tokenizer(text_target=prefixes, add_special_tokens=False, verbose=False)["input_ids"] if prefixes else []
        )
        return [(*before, *ids) if text.strip() else None for text, ids in zip(prefixes, encoded, strict=True)]
