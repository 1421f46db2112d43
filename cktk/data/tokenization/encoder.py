"""Text to token ids: through the `tokenizers` package, or as transformers does it, which is not imported here."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from cktk.utils.files import read_json

Role = str  # one of ROLES
ROLES: tuple[Role, ...] = ("source", "target")


class Rows(NamedTuple):
    """Token ids of several rows: ``ids`` end to end, and the number of them in each row."""

    ids: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]

    def split(self) -> list[npt.NDArray[np.int64]]:
        """One array a row."""
        return np.split(self.ids, np.cumsum(self.lengths)[:-1]) if len(self.lengths) else []

    @classmethod
    def join(cls, rows: Sequence[Sequence[int]]) -> Rows:
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        return cls(np.fromiter(chain.from_iterable(rows), np.int64, int(lengths.sum())), lengths)


class Encoder(Protocol):
    """Token ids of texts, without special tokens and never cut."""

    def __call__(self, texts: list[str], role: Role) -> Rows: ...


class RustEncoder:
    """``tokenizer.json`` through the `tokenizers` package, several times faster than through transformers."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer: Any = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        # Not part of tokenizer.json: transformers keeps it beside it.
        settings = read_json(folder / "tokenizer_config.json")
        self._tokenizer.encode_special_tokens = bool(settings.get("split_special_tokens", False))

    def __call__(self, texts: list[str], role: Role) -> Rows:  # noqa: ARG002 - one vocabulary serves both roles
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return Rows.join([encoding.ids for encoding in encodings])


class PythonEncoder:
    """A tokenizer as transformers runs it; targets are encoded as such, for those with a vocabulary for each side."""

    def __init__(self, tokenizer: Any, languages: dict[Role, str]) -> None:
        self._tokenizer = tokenizer
        if knows_languages(tokenizer):
            tokenizer.src_lang, tokenizer.tgt_lang = languages["source"], languages["target"]

    def __call__(self, texts: list[str], role: Role) -> Rows:
        text = {"text": texts} if role == "source" else {"text_target": texts}
        return Rows.join(self._tokenizer(**text, add_special_tokens=False, verbose=False)["input_ids"])


def knows_languages(tokenizer: Any) -> bool:
    """Whether the tokenizer marks the language of a text (mBART, NLLB, M2M-100)."""
    return hasattr(tokenizer, "src_lang")
