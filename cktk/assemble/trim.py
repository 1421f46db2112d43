"""Trimming the vocabulary of a teacher, of its student and of their data, all or nothing; and undoing it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel

from cktk.architectures.loading import load_config, load_model, load_tokenizer, save_student, write_model
from cktk.architectures.parameters import ParameterCounts, count_parameters
from cktk.architectures.trim_vocabulary import restore_model, special_ids, trim_model
from cktk.architectures.vocabulary import check_student, check_vocabularies, folder_vocabulary
from cktk.data.preprocessing.trim_config import TrimConfig
from cktk.data.preprocessing.trim_shards import count_tokens, rows_of, template_ids, write_trimmed_data
from cktk.data.shards import DataFolder
from cktk.data.tokenization.trim_tokenizer import TrimmableTokenizer
from cktk.data.tokenization.vocabulary_map import VocabularyMap
from cktk.errors import ConfigError, DataError
from cktk.utils.files import atomic_folder

#: Opens a bar: called with a label and a number of rows; the bar is called with the rows just done.
OpenBar = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]


@dataclass(frozen=True)
class TrimmedModel:
    """A model before and after."""

    name: str
    folder: str
    before: ParameterCounts
    after: ParameterCounts


@dataclass(frozen=True)
class TrimReport:
    """What was done: rows of the vocabulary before and after, how much of the data they are, and the models.

    ``left_out`` of the ``used`` tokens were too rare; ``covered`` is the share of the data's running tokens that the
    kept ones make up. ``languages`` are the codes that the tokenizer still knows.
    """

    old_rows: int
    new_rows: int
    used: int
    left_out: int
    covered: float
    languages: tuple[str, ...]
    models: tuple[TrimmedModel, ...]


@dataclass(frozen=True)
class _Model:
    """A model to trim: what it is called, where it lies and where it goes."""

    name: str
    path: str
    dest: str
    model: PreTrainedModel


def trim(config: TrimConfig, open_bar: OpenBar) -> TrimReport:
    """Write what ``config`` asks for; every folder appears whole, after all of them could be written.

    Raises `CktkError` before anything is written where models, data and tokenizer do not belong together, where a
    destination exists, or where tokens of the data would be missing from the data that is to be written.
    """
    _check_free(config.dest_dir, config.dest_data, config.dest_student)
    data = DataFolder(str(config.data_bin))
    _check_models(config, data)
    data.verify()
    tokenizer = TrimmableTokenizer(data.tokenizer_path)
    languages = {*tokenizer.languages_called(config.keep_languages), *data.languages.values()}
    with open_bar("counting tokens", rows_of(data)) as bar:
        counts = count_tokens(data, bar)
    models = _load(config)
    fixed = tokenizer.fixed(languages) | template_ids(data) | _special_ids(models, tokenizer)
    kept = select(tokenizer, counts, fixed, config.min_count, config.size)
    used = np.flatnonzero(counts)
    left_out = np.setdiff1d(used, sorted(kept))
    if config.dest_data and len(left_out):
        raise ConfigError(
            f"--dest-data: {len(left_out):,} tokens of the data are left out by --min-count or --size; leave out "
            f"--dest-data, and preprocess the text again with --tokenizer {config.dest_dir}"
        )
    vocabulary, trimmed = _write(config, data, tokenizer, kept, models, open_bar)
    return TrimReport(
        old_rows=vocabulary.old_size,
        new_rows=vocabulary.new_size,
        used=len(used),
        left_out=len(left_out),
        covered=1 - float(counts[left_out].sum() / max(counts.sum(), 1)),
        languages=tuple(code for code in tokenizer.languages if tokenizer.tokens[code] in vocabulary),
        models=trimmed,
    )


def _load(config: TrimConfig) -> list[_Model]:
    wanted = [("teacher", config.model, config.dest_dir)]
    if config.student and config.dest_student:
        wanted.append(("student", config.student, config.dest_student))
    return [
        _Model(name, path, dest, load_model(path, allow_bin_weights=config.allow_bin_weights))
        for name, path, dest in wanted
    ]


def _special_ids(models: Sequence[_Model], tokenizer: TrimmableTokenizer) -> set[int]:
    """The special tokens of all ``models``; raises `ConfigError` for one that the tokenizer does not have."""
    found: set[int] = set()
    for item in models:
        ids = special_ids(item.model)
        if max(ids, default=0) >= tokenizer.size:
            raise ConfigError(
                f"the {item.name} {item.path}: its configuration names id {max(ids)} as a special token, but the "
                f"tokenizer in {tokenizer.folder} has {tokenizer.size} tokens"
            )
        found |= ids
    return found


def _write(
    config: TrimConfig,
    data: DataFolder,
    tokenizer: TrimmableTokenizer,
    kept: set[int],
    models: Sequence[_Model],
    open_bar: OpenBar,
) -> tuple[VocabularyMap, tuple[TrimmedModel, ...]]:
    """Write all folders; returns the map from the models' rows, and what became of the models."""
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as folders:
        files = Path(scratch) / "tokenizer"
        vocabulary = VocabularyMap(tokenizer.write(kept, files).kept, models[0].model.config.vocab_size)
        if config.dest_data:
            folder = folders.enter_context(atomic_folder(Path(config.dest_data)))
            with open_bar("writing data", rows_of(data)) as bar:
                write_trimmed_data(data, vocabulary, files, folder, bar)
            vocabulary.write(folder)
        trimmed = []
        for item in models:
            folder = folders.enter_context(atomic_folder(Path(item.dest)))
            small = trim_model(item.model, vocabulary)
            write_model(small, None, folder, _stored_dtype(item.path))
            shutil.copytree(files, folder, dirs_exist_ok=True)
            vocabulary.write(folder)
            trimmed.append(TrimmedModel(item.name, item.dest, count_parameters(item.model), count_parameters(small)))
    return vocabulary, tuple(trimmed)


def select(
    tokenizer: TrimmableTokenizer, counts: npt.NDArray[np.int64], fixed: Iterable[int], min_count: int, size: int | None
) -> set[int]:
    """The ids to keep: ``fixed``, all single characters seen, and by ``counts`` (V) those used, most frequent first.

    Tokens seen less than ``min_count`` times are left out, and those for which ``size`` leaves no room; a token that
    takes others to make it counts with these. Raises `ConfigError` where ``size`` is not enough for what has to stay.
    """
    used = np.flatnonzero(counts)
    kept = set(fixed)
    kept |= tokenizer.single_characters({*kept, *used.tolist()})
    needed = tokenizer.needed_by({*kept, *used.tolist()})
    kept |= set().union(*(needed.get(index, ()) for index in kept))
    if size is not None and len(kept) > size:
        raise ConfigError(
            f"--size {size}: too small: special tokens, bytes and single characters of this data alone are {len(kept)}"
        )
    ranked = used[np.argsort(-counts[used], kind="stable")]
    for index in ranked[counts[ranked] >= min_count].tolist():
        new = {index, *needed.get(index, ())} - kept
        if size is not None and len(kept) + len(new) > size:
            break
        kept |= new
    return kept


def restore(config: TrimConfig) -> TrimmedModel:
    """Give the trimmed model ``config.restore`` the vocabulary of ``config.model`` again, and write it.

    The map between the two follows from their tokenizers, so that any model trained from a trimmed one will do.
    """
    _check_free(config.dest_dir)
    path = str(config.restore)
    original_tokenizer = load_tokenizer(config.model)
    trimmed = load_model(path, allow_bin_weights=config.allow_bin_weights)
    original = load_model(config.model, allow_bin_weights=config.allow_bin_weights)
    try:
        vocabulary = VocabularyMap.between(
            original_tokenizer.get_vocab(), load_tokenizer(path).get_vocab(), original.config.vocab_size
        )
    except DataError as error:
        raise ConfigError(f"--restore {path}: was not trimmed from {config.model}: {error}") from error
    if vocabulary.new_size != trimmed.config.vocab_size:
        raise ConfigError(
            f"--restore {path}: its model has {trimmed.config.vocab_size} rows, its tokenizer {vocabulary.new_size} "
            "tokens"
        )
    restored = restore_model(trimmed, original, vocabulary)
    save_student(restored, original_tokenizer, config.dest_dir, _stored_dtype(path))
    return TrimmedModel("restored", config.dest_dir, count_parameters(trimmed), count_parameters(restored))


def _check_free(*folders: str | None) -> None:
    for folder in filter(None, folders):
        if Path(folder).exists():
            raise ConfigError(f"{folder}: exists already; choose a new folder")


def _check_models(config: TrimConfig, data: DataFolder) -> None:
    """Raise `ConfigError` unless data, teacher and student share a vocabulary; reads no weights."""
    teacher = load_config(config.model)
    of_data = folder_vocabulary(f"the data {data.path}", data.tokenizer_path, data.vocab_size, data.fingerprint)
    check_vocabularies(folder_vocabulary(f"the model {config.model}", config.model, teacher.vocab_size), of_data)
    if config.student:
        student = load_config(config.student)
        check_student(student, teacher)
        check_vocabularies(
            folder_vocabulary(f"the student {config.student}", config.student, student.vocab_size), of_data
        )


def _stored_dtype(path: str) -> torch.dtype:
    """The type in which the weights of the model at ``path`` are stored."""
    dtype = load_config(path).dtype
    return dtype if isinstance(dtype, torch.dtype) else torch.float32
