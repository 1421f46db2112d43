"""Text to token ids, as worker processes do it. Imports neither torch nor transformers for Rust-backed tokenizers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from cktk.utils.files import read_json

Role = str  # "source" or "target"


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


class EncoderSpec(NamedTuple):
    """What a process needs to open an encoder: the tokenizer's folder, its languages, whether Rust code suffices."""

    folder: Path
    languages: dict[Role, str]
    rust: bool

    def open(self) -> Encoder:
        """The encoder, ready to use."""
        if self.rust:
            return RustEncoder(self.folder)
        from cktk.data.tokenizers import PythonEncoder, open_tokenizer  # imports transformers, which takes seconds

        return PythonEncoder(open_tokenizer(self.folder), self.languages)


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
