"""Which encoder a tokenizer gets, in a form that worker processes can be sent."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from cktk.data.tokenization.encoder import ROLES, Encoder, PythonEncoder, Role, RustEncoder

# Texts with which two ways to the same ids are compared: spaces, accents, scripts, symbols, lengths.
_PROBES = ["a", "Hello world.", "  two  spaces ", "Ça et là, l'été", "汉字 と かな", "👍🏽 <s> x²", "word " * 600]


class EncoderSpec(NamedTuple):
    """What a process needs to open an encoder: the tokenizer's folder, its languages, whether Rust code suffices."""

    folder: Path
    languages: dict[Role, str]
    rust: bool

    def open(self) -> Encoder:
        """The encoder, ready to use."""
        if self.rust:
            return RustEncoder(self.folder)
        # Imports transformers, which takes seconds, and which a worker with Rust code does without.
        from cktk.data.tokenization.tokenizers import open_tokenizer

        return PythonEncoder(open_tokenizer(self.folder), self.languages)


def choose_encoder(tokenizer: Any, folder: Path, languages: dict[Role, str]) -> EncoderSpec:
    """How to encode with ``tokenizer``, saved in ``folder``: by Rust code alone where that gives its own ids."""
    if not (folder / "tokenizer.json").is_file():
        return EncoderSpec(folder, languages, rust=False)
    rust = RustEncoder(folder)
    python = PythonEncoder(tokenizer, languages)
    same = all(
        [ids.tolist() for ids in rust(_PROBES, role).split()] == [ids.tolist() for ids in python(_PROBES, role).split()]
        for role in ROLES
    )
    return EncoderSpec(folder, languages, rust=same)
