"""Do teacher, student and data mean the same token by the same id?

A loss between models of different vocabularies can be computed without any error and is silently wrong; this is where
it is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedConfig

from cktk.architectures.loading import load_tokenizer
from cktk.errors import CheckpointError, ConfigError
from cktk.utils.files import sha256_file


@dataclass(frozen=True)
class Vocabulary:
    """The vocabulary of a model or of a data folder.

    ``name`` is what messages call it, ``size`` the number of ids; ``fingerprint`` is the SHA-256 of its
    ``tokenizer.json``, and ``tokens`` reads its mapping of tokens to ids (None where that cannot be known).
    """

    name: str
    size: int
    fingerprint: str | None = None
    tokens: Callable[[], Mapping[str, int] | None] | None = None


def folder_vocabulary(name: str, folder: str | Path, size: int, fingerprint: str | None = None) -> Vocabulary:
    """The vocabulary of the tokenizer in ``folder`` (or of a hub name), if one is there; nothing is loaded yet."""
    file = Path(folder) / "tokenizer.json"
    if fingerprint is None and file.is_file():
        fingerprint = sha256_file(file)

    def tokens() -> Mapping[str, int] | None:
        try:
            return dict(load_tokenizer(folder).get_vocab())
        except CheckpointError:
            return None  # a model folder need not hold a tokenizer

    return Vocabulary(name, size, fingerprint, tokens)


def check_vocabularies(teacher: Vocabulary, data: Vocabulary) -> None:
    """Raise `ConfigError` naming both unless ids mean the same in ``teacher`` and ``data``.

    Equal fingerprints settle it; tokenizers that were only saved differently are compared token by token; where one
    is not known, the sizes have to be equal. A teacher may know more tokens than the data, never fewer.
    """
    if data.size > teacher.size:
        raise ConfigError(_sizes(teacher, data))
    if teacher.fingerprint is not None and teacher.fingerprint == data.fingerprint:
        return
    ours = data.tokens() if data.tokens else None
    theirs = teacher.tokens() if teacher.tokens else None
    if ours is not None and theirs is not None:
        _compare(teacher, theirs, data, ours)
    elif data.size != teacher.size:
        raise ConfigError(_sizes(teacher, data))
    elif teacher.fingerprint is not None and data.fingerprint is not None:
        raise ConfigError(
            f"{teacher.name} and {data.name} were made with different tokenizers of the same size ({data.size}): "
            "preprocess the data with the teacher's tokenizer"
        )


def check_student(student: PreTrainedConfig, teacher: PreTrainedConfig) -> None:
    """Raise `ConfigError` unless student and teacher have the same number of output rows."""
    if student.vocab_size != teacher.vocab_size:
        raise ConfigError(
            f"the student has a vocabulary of {student.vocab_size} ids, the teacher one of {teacher.vocab_size}: "
            "distillation compares them id by id; use a student made from this teacher"
        )


def _compare(teacher: Vocabulary, theirs: Mapping[str, int], data: Vocabulary, ours: Mapping[str, int]) -> None:
    token = next((token for token, index in ours.items() if theirs.get(token) != index), None)
    if token is None:
        return
    other = f"id {theirs[token]}" if token in theirs else "unknown"
    raise ConfigError(
        f"token {token!r} is id {ours[token]} in {data.name} but {other} in {teacher.name}: preprocess the data with "
        "the teacher's tokenizer"
    )


def _sizes(teacher: Vocabulary, data: Vocabulary) -> str:
    return (
        f"{data.name} has a vocabulary of {data.size} ids, {teacher.name} one of {teacher.size}: preprocess the data "
        "with the teacher's tokenizer"
    )
