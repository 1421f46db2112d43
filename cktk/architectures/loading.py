"""Opening teachers and students, and writing students that plain transformers opens.

Weights are read from safetensors; pickled ``.bin`` files only on request, and then with torch's restricted unpickler.
Code that lies in a model folder is never run.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from cktk.architectures.families.family import Family, family_of
from cktk.architectures.folders import model_folder
from cktk.architectures.int8 import WEIGHTS as INT8_WEIGHTS
from cktk.architectures.int8 import read_int8, write_int8
from cktk.errors import CheckpointError
from cktk.utils.files import atomic_folder

_SAFE = ("model.safetensors", "model.safetensors.index.json")
_PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")


def load_config(path: str | Path) -> PreTrainedConfig:
    """The configuration of the model that ``path`` means (see `model_folder`).

    Raises `CheckpointError` when there is none or its model type is not supported.
    """
    return _open_config(path, model_folder(path))[1]


def load_model(
    path: str | Path, *, allow_bin_weights: bool = False, device: torch.device | str = "cpu"
) -> PreTrainedModel:
    """The model with its output head that ``path`` means (see `model_folder`), in fp32 and eval mode on ``device``.

    A folder with int8 weights (`cktk.architectures.int8`) is opened as the fp32 that these stand for.

    Raises `CheckpointError` when files are missing or damaged, the model type is not supported, tensors are missing, or
    the weights are pickled and ``allow_bin_weights`` is not set.
    """
    source = model_folder(path)
    family, config = _open_config(path, source)
    if isinstance(source, Path) and (source / INT8_WEIGHTS).is_file():
        with _one_line(source, "weights"):
            return _on(read_int8(source, config, family), device)
    with _one_line(source, "weights"), _no_progress_bar():
        model, report = family.read_model(
            source,
            config,
            dtype=torch.float32,
            use_safetensors=_use_safetensors(source, allow_bin_weights),
            weights_only=True,
        )
    if missing := sorted(set(report["missing_keys"]) - family.unused(model)):
        raise CheckpointError(f"{path}: {len(missing)} tensors are missing from the weights, {missing[0]} among them")
    return _on(model, device)


def _on(model: Any, device: torch.device | str) -> PreTrainedModel:
    moved: PreTrainedModel = model.to(device).eval()
    return moved


def _open_config(path: str | Path, source: Path | str) -> tuple[Family, PreTrainedConfig]:
    """The family and the configuration of the model ``source``, which the user calls ``path``."""
    with _one_line(source, "configuration"):
        raw, _ = PreTrainedConfig.get_config_dict(source)
    family = family_of(raw.get("model_type"), path)
    with _one_line(source, "configuration"):
        config = family.read_config(source, raw)
    return family, config


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of the model that ``path`` means, or in a folder; `CheckpointError` when there is none."""
    source = model_folder(path, "tokenizer_config.json", "tokenizer.json")
    with _one_line(source, "tokenizer"):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    return tokenizer


def write_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    folder: Path,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write configuration, generation settings, safetensors in ``dtype`` and tokenizer into ``folder``.

    ``model`` itself is not changed. For files that appear whole or not at all, use `save_student`.
    """
    converted: Any = model
    if model.dtype != dtype:
        converted = copy.deepcopy(converted).to(dtype)
    try:
        with _no_progress_bar():
            converted.save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
    except SafetensorError as error:
        raise CheckpointError(f"cannot write the weights into {folder}: {_first_line(error)}") from error
    make_readable(folder)


def write_int8_student(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, folder: Path) -> None:
    """Write ``model`` with int8 matrices (see `cktk.architectures.int8`) and tokenizer into ``folder``."""
    write_int8(model, folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    make_readable(folder)


def make_readable(folder: Path) -> None:
    """Give files in ``folder`` the permissions that the user's umask says; safetensors writes for the owner alone."""
    umask = os.umask(0)
    os.umask(umask)
    for file in folder.iterdir():
        file.chmod(0o666 & ~umask)


def save_student(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    folder: str | Path,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write a model folder that transformers' Auto classes open; it appears whole or not at all.

    Raises `CktkError` when ``folder`` already holds something or cannot be written.
    """
    with atomic_folder(Path(folder)) as temporary:
        write_model(model, tokenizer, temporary, dtype)


def _use_safetensors(folder: Path | str, allow_bin_weights: bool) -> bool | None:
    """Whether to read safetensors (None: prefer them); refuses a folder without weights, and pickles not allowed."""
    if isinstance(folder, str):
        return None if allow_bin_weights else True
    if any((folder / name).is_file() for name in _SAFE):
        return True
    if not any((folder / name).is_file() for name in _PICKLED):
        raise CheckpointError(f"{folder}: no {_SAFE[0]} in this folder")
    if not allow_bin_weights:
        raise CheckpointError(
            f"{folder}: holds its weights as pickled {_PICKLED[0]} only: convert them to safetensors, or pass "
            "--allow-bin-weights if you trust their origin"
        )
    return False


@contextmanager
def _one_line(source: str | Path, what: str) -> Iterator[None]:
    """Turn whatever transformers raises about the files of ``source`` into one line that names them."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:  # a damaged file makes transformers raise nearly anything
        where = f"{source}: the {what}" if isinstance(source, Path) else f"{source}: no folder here, and its {what}"
        raise CheckpointError(f"{where} cannot be loaded: {_first_line(error)}") from error


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    logging: Any = transformers_logging
    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            logging.enable_progress_bar()


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
