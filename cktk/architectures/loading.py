"""Opening teachers and students, and writing students that plain transformers opens.

Weights are read from safetensors; pickled ``.bin`` files only on request, and then with torch's restricted unpickler.
Code that lies in a model folder is never run.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from cktk.architectures.bart import BartFamily
from cktk.architectures.mbart import MBartFamily
from cktk.errors import CheckpointError
from cktk.utils.files import atomic_folder

FAMILIES: dict[str, type[BartFamily]] = {family.model_type: family for family in (BartFamily, MBartFamily)}

_SAFE = ("model.safetensors", "model.safetensors.index.json")
_PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def load_config(path: str | Path) -> PreTrainedConfig:
    """The configuration of a model folder or hub name.

    Raises `CheckpointError` when there is none or its model type is not supported.
    """
    source = _locate(path, "config.json")
    with _one_line(source, "configuration"):
        raw, _ = PreTrainedConfig.get_config_dict(source)
    if (model_type := raw.get("model_type")) not in FAMILIES:
        raise CheckpointError(
            f"{path}: model type {model_type!r} is not supported; supported: {', '.join(sorted(FAMILIES))}"
        )
    with _one_line(source, "configuration"):
        config: PreTrainedConfig = AutoConfig.from_pretrained(source, trust_remote_code=False)
    return config


def load_model(
    path: str | Path, *, allow_bin_weights: bool = False, device: torch.device | str = "cpu"
) -> PreTrainedModel:
    """The model with its output head in a folder (or of a hub name), in fp32 and eval mode on ``device``.

    A checkpoint folder of a training run is read through its ``student`` folder. Raises `CheckpointError` when files
    are missing or damaged, the model type is not supported, tensors are missing, or the weights are pickled and
    ``allow_bin_weights`` is not set.
    """
    config = load_config(path)
    source = _locate(path, "config.json")
    loader: Any = AutoModelForSeq2SeqLM
    with _one_line(source, "weights"), _no_progress_bar():
        model, report = loader.from_pretrained(
            source,
            config=config,
            dtype=torch.float32,
            use_safetensors=_use_safetensors(source, allow_bin_weights),
            weights_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    if missing := sorted(report["missing_keys"]):
        raise CheckpointError(f"{path}: {len(missing)} tensors are missing from the weights, {missing[0]} among them")
    loaded: PreTrainedModel = model.to(device).eval()
    return loaded


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder or of a hub name; raises `CheckpointError` when there is none."""
    source = _locate(path, "tokenizer_config.json", "tokenizer.json")
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
    _make_readable(folder)


def _make_readable(folder: Path) -> None:
    """Give files the permissions that the user's umask says; safetensors writes for the owner alone."""
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


def _locate(path: str | Path, *files: str) -> Path | str:
    """The folder holding one of ``files`` that ``path`` means, or ``path`` itself when it is a hub name."""
    folder = Path(path)
    if folder.is_dir():
        for candidate in (folder, folder / "student"):
            if any((candidate / file).is_file() for file in files):
                return candidate
        raise CheckpointError(f"{folder}: no {files[0]} in this folder: give the folder of a Hugging Face model")
    if folder.exists():
        raise CheckpointError(f"{folder}: is a file: give the folder of a Hugging Face model")
    if str(path).startswith(".") or not _HUB_NAME.fullmatch(str(path)):
        raise CheckpointError(f"{folder}: no such folder")
    return str(path)


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
