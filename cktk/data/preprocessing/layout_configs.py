"""Settings of cktk-preprocess that depend on the task: which columns the data has, and in which languages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cktk.config.options import option
from cktk.data.glue import GLUE_TASKS, MISMATCHED
from cktk.errors import ConfigError

_COLUMN = "its name in tables (dots go deeper), its number in TSV and CSV, the ending of its text file"


def _column(what: str, default: str, metavar: str = "NAME") -> Any:
    return option(None, help=f"column of {what}: {_COLUMN} (default: {default})", metavar=metavar)


def _lang() -> Any:
    return option(
        "", help="language of the texts; needed for tokenizers that mark languages (en_XX for mBART)", metavar="LANG"
    )


@dataclass(frozen=True)
class TranslationDataConfig:
    """translation: pairs of texts in two languages"""

    source_lang: str = option(help="source language; also the ending or column of its text (en, en_XX)", metavar="LANG")
    target_lang: str = option(help="target language; also the ending or column of its text (fr, fr_XX)", metavar="LANG")
    source_column: str | None = _column("the source text", "LANG or translation.LANG")
    target_column: str | None = _column("the target text", "LANG or translation.LANG")
    document_column: str | None = _column("the document's name: neighbours that share it are in context", "none")


@dataclass(frozen=True)
class SummarizationDataConfig:
    """summarization: texts and their summaries"""

    source_column: str | None = _column("the text", "source, document, article, text or dialogue")
    target_column: str | None = _column("the summary", "target, summary, highlights or abstract")
    lang: str = _lang()


@dataclass(frozen=True)
class GlueDataConfig:
    """glue: classification of, or regression on, one text or two"""

    glue_task: str | None = option(
        None, help="a task of GLUE: its columns, labels and splits are known", choices=tuple(GLUE_TASKS)
    )
    text_columns: tuple[str, ...] = option((), help=f"column of the text, or of both texts: {_COLUMN}", metavar="A[,B]")
    label_column: str | None = _column("the label", "label, or the task's own")
    label_names: tuple[str, ...] = option(
        (),
        help="the labels' names in the order of their numbers 0, 1, .. (default: those that a dataset declares, or of "
        "the train split, sorted)",
    )
    regression: bool = option(False, help="labels are numbers, not classes")
    lang: str = _lang()
    valid_mm_file: str | None = option(None, help="MNLI's mismatched valid split (file or pattern)", metavar="FILE")
    test_mm_file: str | None = option(None, help="MNLI's mismatched test split (file or pattern)", metavar="FILE")

    def __post_init__(self) -> None:
        if self.glue_task is None and not self.text_columns:
            raise ConfigError("give --glue-task NAME, or --text-columns A[,B] and --label-column NAME")
        if len(self.text_columns) > 2:
            raise ConfigError(f"--text-columns {','.join(self.text_columns)}: takes one column or two")
        if self.regression and self.label_names:
            raise ConfigError("--regression has no --label-names: leave out one of them")
        if len({name.strip() for name in self.label_names}) != len(self.label_names):
            raise ConfigError(f"--label-names {','.join(self.label_names)}: holds a name twice")
        if self.glue_task is not None:
            self._check_published(self.glue_task)
        for split in MISMATCHED.values():
            known = self.glue_task is not None and split in GLUE_TASKS[self.glue_task].splits
            if getattr(self, f"{split}_file") is not None and not known:
                raise ConfigError(f"--{split.replace('_', '-')}-file: only --glue-task mnli has such a split")

    def _check_published(self, name: str) -> None:
        if self.regression or self.label_names:
            given = "--regression" if self.regression else "--label-names"
            raise ConfigError(f"--glue-task {name} brings its own labels; leave out {given}")
        texts = 1 + bool(GLUE_TASKS[name].text_b)
        if self.text_columns and len(self.text_columns) != texts:
            raise ConfigError(f"--text-columns: --glue-task {name} has {texts} of them, not {len(self.text_columns)}")


@dataclass(frozen=True)
class PretrainingDataConfig:
    """pretraining: texts alone"""

    text_column: str | None = _column("the text", "text, LANG, or for text files none at all")
    lang: str = _lang()
