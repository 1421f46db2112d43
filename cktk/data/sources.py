"""Where parallel text comes from: the contract of a source, and plain parallel files."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Protocol

from cktk.data.configs import TextSourceConfig
from cktk.data.text import count_lines, read_lines
from cktk.errors import ConfigError, DataError

#: A source text and its translation.
Pair = tuple[str, str]

SPLITS = ("train", "valid", "test")


class Source(Protocol):
    """Parallel text in splits. Constructed as ``Source(config, source_lang, target_lang)``."""

    def splits(self) -> list[str]:
        """The splits that there are, some of train, valid and test, in this order."""
        ...

    def count(self, split: str) -> int | None:
        """Check that ``split`` can be read, and return its number of pairs if that is cheap to know."""
        ...

    def rows(self, split: str) -> Iterator[Pair]:
        """The pairs of ``split`` from the first to the last, holding only a few at a time in memory."""
        ...


def language_names(lang: str) -> list[str]:
    """Names that text of language ``lang`` may have in files and tables: ``en_XX``, then ``en``."""
    return list(dict.fromkeys([lang, lang.partition("_")[0]]))


class ParallelTextSource:
    """Two files a split, ``PREFIX.LANG`` or ``PREFIX.LANG.gz``; line i of one translates line i of the other.

    For a language code such as ``en_XX`` the files may also end in ``.en``.
    """

    def __init__(self, config: TextSourceConfig, source_lang: str, target_lang: str) -> None:
        prefixes = {split: getattr(config, f"{split}_prefix") for split in SPLITS}
        self._files = {
            split: (_find(split, prefix, source_lang), _find(split, prefix, target_lang))
            for split, prefix in prefixes.items()
            if prefix is not None
        }
        if not self._files:
            raise ConfigError("no text to prepare: give --train-prefix, --valid-prefix or --test-prefix (or --source)")

    def splits(self) -> list[str]:
        return list(self._files)

    def count(self, split: str) -> int:
        """Lines of ``split``; raises `DataError` if its two files have different numbers of lines, or none."""
        source, target = self._files[split]
        lines = {path: count_lines(path) for path in (source, target)}
        for path, number in lines.items():
            if not number:
                raise DataError(f"{path}: the file is empty; give a file with text")
        if lines[source] != lines[target]:
            raise DataError(
                f"{source} has {lines[source]} lines but {target} has {lines[target]}; "
                "line i of one file must be the translation of line i of the other"
            )
        return lines[source]

    def rows(self, split: str) -> Iterator[Pair]:
        source, target = self._files[split]
        for one, other in zip_longest(read_lines(source), read_lines(target)):
            if one is None or other is None:
                raise DataError(f"{source} and {target}: changed while they were read; run the command again")
            yield one, other


def _find(split: str, prefix: str, lang: str) -> Path:
    tried = [Path(f"{prefix}.{name}{suffix}") for name in language_names(lang) for suffix in ("", ".gz")]
    for path in tried:
        if path.is_file():
            return path
    raise DataError(f"--{split}-prefix {prefix}: no such file: {' or '.join(map(str, tried))}")
