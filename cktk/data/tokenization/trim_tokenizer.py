"""A tokenizer with fewer tokens that splits the texts of a corpus exactly as before.

Dropping tokens that a corpus does not use cannot change how its texts are split. Unigram takes the segmentation with
the best sum of scores, and the best remains the best with fewer rivals. WordPiece takes the longest token that fits,
and those it took are there. BPE merges by rank, and the merges that it made are kept with all that led to them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from cktk.data.tokenization.encoder import knows_languages
from cktk.data.tokenization.tokenizer_json import (
    MODELS,
    fixed_ids,
    merge_parts,
    single_characters,
    tokens_of,
    trimmed,
    trimmed_settings,
)
from cktk.data.tokenization.tokenizers import language_codes
from cktk.data.tokenization.vocabulary_map import VocabularyMap
from cktk.errors import ConfigError, DataError
from cktk.utils.files import read_json, write_json
from cktk.utils.words import alternatives

_TOKENIZER, _SETTINGS = "tokenizer.json", "tokenizer_config.json"


class TrimmableTokenizer:
    """The tokenizer saved in ``folder``; raises `DataError` for one whose tokens cannot be dropped."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not (folder / _TOKENIZER).is_file():
            raise DataError(
                f"{folder}: the tokenizer has no {_TOKENIZER} (it is written in Python), and only tokenizers of the "
                "tokenizers package can be trimmed"
            )
        self._raw: dict[str, Any] = read_json(folder / _TOKENIZER)
        kind = self._raw.get("model", {}).get("type")
        if kind not in MODELS:
            raise DataError(
                f"{folder / _TOKENIZER}: a model of type {kind} cannot be trimmed, only {', '.join(MODELS)}"
            )
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.tokens: dict[str, int] = tokens_of(self._raw)
        self.languages = language_codes(self._tokenizer)

    @property
    def size(self) -> int:
        """One more than the highest id."""
        return max(self.tokens.values()) + 1

    def languages_called(self, names: Iterable[str]) -> list[str]:
        """The codes that ``names`` mean: themselves, or those that begin with them (``en`` for ``en_XX``).

        Raises `ConfigError` for a name that means none or several, and for a tokenizer without languages.
        """
        found = []
        for name in names:
            if not self.languages:
                raise ConfigError(
                    f"--keep-languages {name}: the data's tokenizer knows no languages; leave the flag out"
                )
            codes = [code for code in self.languages if name in (code, code.partition("_")[0])]
            if len(codes) != 1:
                raise ConfigError(
                    f"--keep-languages: the data's tokenizer has no language {name!r}; "
                    f"{alternatives(name, codes or self.languages)}"
                )
            found += codes
        return found

    def fixed(self, languages: Iterable[str]) -> set[int]:
        """The ids that are kept whatever the corpus holds; of the language codes, only those of ``languages``.

        The languages that the tokenizer is set to are kept, too.
        """
        set_to = (getattr(self._tokenizer, side, None) for side in ("src_lang", "tgt_lang"))
        kept = {*languages, *set_to}
        return fixed_ids(self._raw, optional=[code for code in self.languages if code not in kept])

    def single_characters(self, ids: Iterable[int]) -> set[int]:
        """The tokens that are one character, for all characters of the tokens ``ids``."""
        return single_characters(self._raw, ids)

    def needed_by(self, ids: Iterable[int]) -> dict[int, set[int]]:
        """For each of ``ids`` the tokens that are made on the way to it, for tokenizers that merge."""
        return merge_parts(self._raw, set(ids))

    def write(self, kept: Iterable[int], folder: Path) -> VocabularyMap:
        """Write the tokenizer with the tokens ``kept`` into ``folder``, and return which ids it has in the end.

        Some classes insist on tokens of their own and add them again whenever they are opened (mBART's all of its
        language codes); these are kept, too, since models need a row for each id of their tokenizer.
        """
        vocabulary = VocabularyMap(sorted(kept), self.size)
        opened = self._write_and_open(vocabulary, folder)
        if insisted := self._insisted(opened, vocabulary):
            vocabulary = VocabularyMap(sorted({*vocabulary.kept.tolist(), *insisted}), self.size)
            opened = self._write_and_open(vocabulary, folder)
        expected = {token: int(vocabulary.to_new(old)) for token, old in self.tokens.items() if old in vocabulary}
        if opened.get_vocab() != expected:
            token, index = min(opened.get_vocab().items() ^ expected.items())
            raise DataError(
                f"{self.folder}: cannot be trimmed: {type(opened).__name__} opens with other tokens than were kept, "
                f"{token!r} (id {index}) among them"
            )
        return vocabulary

    def _insisted(self, opened: Any, vocabulary: VocabularyMap) -> list[int]:
        again = opened.get_vocab().keys() & self.tokens.keys()
        return [old for token in again if (old := self.tokens[token]) not in vocabulary]

    def _write_and_open(self, vocabulary: VocabularyMap, folder: Path) -> PreTrainedTokenizerBase:
        """Write the trimmed files as transformers itself would, so that saving them again changes nothing."""
        dropped = {token for token, old in self.tokens.items() if old not in vocabulary}
        settings = trimmed_settings(read_json(self.folder / _SETTINGS), vocabulary, dropped)
        if not knows_languages(self._tokenizer):
            # Other classes build their tokenizer anew by their own rules; this one takes tokenizer.json as it is.
            settings["tokenizer_class"] = PreTrainedTokenizerFast.__name__
            settings["model_input_names"] = list(self._tokenizer.model_input_names)
        with tempfile.TemporaryDirectory() as scratch:
            write_json(Path(scratch) / _TOKENIZER, trimmed(self._raw, vocabulary))
            write_json(Path(scratch) / _SETTINGS, settings)
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(scratch)
        tokenizer.save_pretrained(folder)
        if not knows_languages(tokenizer):
            # transformers 5 writes its own name for this class, which other versions would not know.
            saved = read_json(folder / _SETTINGS)
            write_json(folder / _SETTINGS, {**saved, "tokenizer_class": "PreTrainedTokenizerFast"})
        opened: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
        return opened
