"""Which columns the data of a task has, under which names a source finds them, and what they hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from cktk.data.glue import GLUE_TASKS, MISMATCHED, GlueDataset
from cktk.data.manifest import Kind
from cktk.data.preprocessing.layout_configs import (
    GlueDataConfig,
    PretrainingDataConfig,
    SummarizationDataConfig,
    TranslationDataConfig,
)
from cktk.data.sources.values import Classes, Documents, Labels, Numbers, UndeclaredLabels, Values
from cktk.data.tokenization.encoder import Role
from cktk.errors import DataError

#: The splits that every task may have.
SPLITS = ("train", "valid", "test")

#: One row: a text, or a value as `Values` reads it, for each column of the layout.
Row = tuple[Any, ...]


@dataclass(frozen=True)
class Column:
    """A column of a data folder and where it comes from.

    The user names it with ``flag``; where ``given`` is None, ``candidates`` are tried in turn, and in tables ``nested``
    ones, whose dots go deeper. Without ``values`` it holds texts of language ``lang`` ("": not known), which the
    tokenizer takes for ``role``. ``bare`` texts may stand in a file without ending; test splits may lack what is
    ``optional``.
    """

    name: str
    flag: str
    given: str | None = None
    candidates: tuple[str, ...] = ()
    nested: tuple[str, ...] = ()
    lang: str = ""
    role: Role = "source"
    values: Values | None = None
    bare: bool = False
    optional: bool = False

    @property
    def kind(self) -> Kind:
        """What the data folder holds."""
        return "tokens" if self.values is None else self.values.kind

    @property
    def absent(self) -> Any:
        """The value of all rows where there is no such column."""
        return "" if self.values is None else self.values.absent

    @property
    def names(self) -> tuple[str, ...]:
        """The names to look for."""
        return self.candidates if self.given is None else (self.given,)

    def may_lack(self, split: str) -> bool:
        """Whether ``split`` need not have the column."""
        return self.optional and split.startswith("test")

    def read(self, cell: object, where: str, path: Sequence[str] = ()) -> Any:
        """What ``cell`` says; raises `DataError` beginning with ``where`` for one that does not belong at ``path``."""
        if self.values is not None:
            return self.values.read(cell, where)
        if isinstance(cell, str):
            return cell
        if cell is None:
            return ""
        raise DataError(f"{where}: column {'.'.join(path)!r} holds {type(cell).__name__}, not text; choose another")


@dataclass(frozen=True)
class Layout:
    """The columns of a task's data, in order.

    ``joined`` are layouts whose texts a model reads together. ``keep_empty`` keeps rows without text in every split.
    ``published`` says which benchmark it is; ``files`` are those of splits beyond train, valid and test.
    ``language_flags`` is how messages call what names the languages.
    """

    task: str
    columns: tuple[Column, ...]
    language_flags: str = "--lang"
    joined: bool = False
    keep_empty: bool = False
    published: GlueDataset | None = None
    files: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def texts(self) -> tuple[Column, ...]:
        """The columns of texts."""
        return tuple(column for column in self.columns if column.values is None)

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that there may be, in order."""
        return SPLITS if self.published is None else self.published.splits

    @property
    def languages(self) -> dict[str, str]:
        """Language by column of texts."""
        return {column.name: column.lang for column in self.texts}

    @property
    def roles(self) -> dict[Role, str]:
        """The languages of sources and of targets."""
        languages = {column.role: column.lang for column in self.texts}
        return {"source": languages["source"], "target": languages.get("target", languages["source"])}

    @property
    def label(self) -> Column | None:
        """The column of classes, if there is one."""
        return next((column for column in self.columns if isinstance(column.values, Classes)), None)

    @property
    def labels(self) -> tuple[str, ...] | None:
        """The names of the classes; None without classes, and where they are not declared yet."""
        return self.label.values.names if self.label and isinstance(self.label.values, Labels) else None

    def with_labels(self, names: tuple[str, ...]) -> Layout:
        """The same with the classes ``names``."""
        changed = (replace(column, values=Labels(names)) if column is self.label else column for column in self.columns)
        return replace(self, columns=tuple(changed))

    def stored(self, rows: Iterator[Row]) -> Iterator[Row]:
        """``rows`` as they are stored: with numbers in the place of documents' names."""
        places = [place for place, column in enumerate(self.columns) if isinstance(column.values, Documents)]
        if not places:
            yield from rows
            return
        (place,) = places
        number, before = -1, None
        for row in rows:
            if row[place] != before or not row[place]:
                number, before = number + 1, row[place]
            yield *row[:place], number, *row[place + 1 :]


def language_names(lang: str) -> tuple[str, ...]:
    """Names that text of language ``lang`` may have in files and tables: ``en_XX``, then ``en``."""
    return tuple(dict.fromkeys(name for name in (lang, lang.partition("_")[0]) if name))


def translation(config: TranslationDataConfig) -> Layout:
    """Columns ``source`` and ``target``, and with ``--document-column`` the integer ``document``."""

    def side(role: Role, given: str | None, lang: str) -> Column:
        names = language_names(lang)
        nested = tuple(f"translation.{name}" for name in names)
        return Column(role, f"--{role}-column", given, names, nested, lang, role)

    columns = [
        side("source", config.source_column, config.source_lang),
        side("target", config.target_column, config.target_lang),
    ]
    if config.document_column is not None:
        columns.append(Column("document", "--document-column", config.document_column, values=Documents()))
    return Layout("translation", tuple(columns), "--source-lang/--target-lang")


def summarization(config: SummarizationDataConfig) -> Layout:
    """Columns ``source`` and ``target``, both in one language."""
    sources = ("source", "document", "article", "text", "dialogue")
    targets = ("target", "summary", "highlights", "abstract")
    return Layout(
        "summarization",
        (
            Column("source", "--source-column", config.source_column, sources, lang=config.lang),
            Column("target", "--target-column", config.target_column, targets, lang=config.lang, role="target"),
        ),
    )


def glue(config: GlueDataConfig) -> Layout:
    """Columns ``text_a``, perhaps ``text_b``, and ``label``: an integer, or a number for regression."""
    task = GLUE_TASKS[config.glue_task] if config.glue_task is not None else None
    given = config.text_columns
    candidates = [names for names in (task.text_a, task.text_b) if names] if task else [()] * len(given)
    texts = [
        Column(f"text_{letter}", "--text-columns", given[place] if given else None, names, lang=config.lang)
        for place, (letter, names) in enumerate(zip("ab", candidates, strict=False))
    ]
    values: Values
    if task is not None:
        # The hub's STS-B has -1 for the scores of its test split; they run from 0 to 5.
        scores = Numbers(-1.0, published=True, bounds=(0.0, 5.0))
        values = Labels(task.labels, published=True) if task.labels is not None else scores
    else:
        declared = tuple(map(str.strip, config.label_names))
        values = Numbers() if config.regression else Labels(declared) if declared else UndeclaredLabels()
    names = task.label if task else ("label",)
    label = Column("label", "--label-column", config.label_column, names, values=values, optional=True)
    extra = {split: getattr(config, f"{split}_file") for split in MISMATCHED.values()}
    return Layout(
        "glue",
        (*texts, label),
        joined=len(texts) > 1,
        keep_empty=True,
        published=task,
        files={split: file for split, file in extra.items() if file is not None},
    )


def pretraining(config: PretrainingDataConfig) -> Layout:
    """The column ``text``."""
    names = ("text", *language_names(config.lang))
    return Layout(
        "pretraining", (Column("text", "--text-column", config.text_column, names, lang=config.lang, bare=True),)
    )
