"""Do teacher, student and data mean the same token by the same id?

A loss between models of different vocabularies can be computed without any error and is silently wrong; this is where
it is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedConfig

from cktk.architectures.folders import model_folder
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
    """The vocabulary of the tokenizer in ``folder`` (see `model_folder`), if one is there; nothing is loaded yet."""
    if fingerprint is None:
        fingerprint = _fingerprint(folder)

    def tokens() -> Mapping[str, int] | None:
        try:
            return dict(load_tokenizer(folder).get_vocab())
        except CheckpointError:
            return None  # a model folder need not hold a tokenizer

    return Vocabulary(name, size, fingerprint, tokens)


def _fingerprint(folder: str | Path) -> str | None:
    try:
        file = Path(model_folder(folder, "tokenizer.json")) / "tokenizer.json"
    except CheckpointError:
        return None  # no tokenizer, or one in another format
    return sha256_file(file) if file.is_file() else None


def check_vocabularies(model: Vocabulary, data: Vocabulary) -> None:
    """Raise `ConfigError` naming both unless ids mean the same in ``model`` and ``data``.

    Equal fingerprints settle it; tokenizers that were only saved differently are compared token by token; where one
    is not known, the sizes have to be equal. A model may know more tokens than the data, never fewer.
    """
    if data.size > model.size:
        raise ConfigError(_sizes(model, data))
    if model.fingerprint is not None and model.fingerprint == data.fingerprint:
        return
    ours = data.tokens() if data.tokens else None
    theirs = model.tokens() if model.tokens else None
    if ours is not None and theirs is not None:
        _compare(model, theirs, data, ours)
    elif data.size != model.size:
        raise ConfigError(_sizes(model, data))
    elif model.fingerprint is not None and data.fingerprint is not None:
        raise ConfigError(
            f"{model.name} and {data.name} were made with different tokenizers of the same size ({data.size}): "
            "preprocess the data with the model's tokenizer"
        )


def check_student(student: PreTrainedConfig, teacher: PreTrainedConfig) -> None:
    """Raise `ConfigError` unless student and teacher have the same number of output rows."""
    if student.vocab_size != teacher.vocab_size:
        raise ConfigError(
            f"the student has a vocabulary of {student.vocab_size} ids, the teacher one of {teacher.vocab_size}: "
            "distillation compares them id by id; use a student made from this teacher"
        )


def _compare(model: Vocabulary, theirs: Mapping[str, int], data: Vocabulary, ours: Mapping[str, int]) -> None:
    token = next((token for token, index in ours.items() if theirs.get(token) != index), None)
    if token is None:
        return
    other = f"id {theirs[token]}" if token in theirs else "unknown"
    raise ConfigError(
        f"token {token!r} is id {ours[token]} in {data.name} but {other} in {model.name}: preprocess the data with "
        "the model's tokenizer"
    )


def _sizes(model: Vocabulary, data: Vocabulary) -> str:
    return (
        f"{data.name} has a vocabulary of {data.size} ids, {model.name} one of {model.size}: preprocess the data "
        "with the model's tokenizer"
    )
