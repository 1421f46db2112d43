"""Sequence-level distillation (Kim & Rush, 2016): a teacher's own outputs become the targets of a data folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cktk.architectures.fingerprint import model_fingerprint
from cktk.data.preprocessing.rewrite import Rewrite, rewrite
from cktk.data.shards import Ids
from cktk.errors import ConfigError
from cktk.generation.configs import SearchConfig
from cktk.generation.context import ContextualSearch
from cktk.tasks.decoding import SplitGenerator


@dataclass(frozen=True)
class TargetsReport:
    """What was done: rows gone through, how many of them have an empty target, and how many of those were left out."""

    lines: int
    empty: int
    dropped_empty: int


class TeacherTargets:
    """Gives the best output of ``generator`` for rows of ``split``, as the ids that a data folder holds.

    These are the generated ids themselves, never decoded and tokenised again, without special tokens; a row without
    source text gets none. ``done`` is told how many rows are finished.
    """

    def __init__(self, generator: SplitGenerator, split: str, done: Callable[[int], None]) -> None:
        self._translator, self._task, self._done = generator.translator, generator.task, done
        self._rows = self._task.rows(split)
        if self._rows.context is not None and self._rows.context.target == "given":
            raise ConfigError(
                "--dest-dir and --context-target given exclude each other: an interrupted run would go on without the "
                "context that it had; use --context-target none"
            )
        tokenizer: Any = self._translator.tokenizer
        self._search = ContextualSearch(self._rows.target, self._rows.context, tokenizer.all_special_ids)
        # A teacher that does not know what to write says so by the unknown token, which texts of a folder hold, too.
        self._special = np.array(sorted({*tokenizer.all_special_ids} - {tokenizer.unk_token_id}), np.int64)

    def __call__(self, rows: range) -> Sequence[Ids]:
        start = self._task.decoding_start
        found = self._translator.translate_rows(self._rows, rows, self._search, None, start, self._done)
        return [self._text(outputs[0].tokens) for outputs in found]

    def _text(self, tokens: Sequence[int]) -> Ids:
        ids = np.array(tokens, np.int64)
        return ids[~np.isin(ids, self._special)]


def write_targets(
    generator: SplitGenerator,
    dest: Path,
    split: str,
    search: SearchConfig,
    teacher: str,
    done: Callable[[int], None],
    *,
    drop_empty: bool = True,
    part_rows: int = 4096,
) -> TargetsReport | None:
    """Write ``generator``'s data folder with its outputs as the targets of ``split`` into the folder ``dest``.

    An interrupted call is continued (to within ``part_rows`` rows); None where ``dest`` was finished before. The
    manifest names the ``teacher``, its fingerprint, ``search``, and how the teacher sees a row. Raises `DataError`
    where ``dest`` holds anything else.
    """
    task = generator.task
    made_by: Mapping[str, Any] = {
        "fingerprint": model_fingerprint(generator.translator.model),
        "search": asdict(search),
        "rows": task.row_settings(),
    }
    generator.data.verify()
    job = Rewrite(split, task.corpus.target.column, drop_empty, part_rows, made_by, notes={"teacher": teacher})
    counts = rewrite(generator.data, dest, job, TeacherTargets(generator, split, done), done)
    generator.translator.counts.truncated += task.rows(split).truncated()["source"]
    return None if counts is None else TargetsReport(**counts)
