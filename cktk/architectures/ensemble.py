"""Several models that write one output together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig

from cktk.architectures.families.family import Family, family_of
from cktk.architectures.loading import load_config, load_model
from cktk.architectures.vocabulary import check_vocabularies, folder_vocabulary
from cktk.errors import CheckpointError, ConfigError
from cktk.protocols import DecoderLayout


def member_paths(path: str | Path) -> list[str]:
    """The models that ``path`` names: one, or several with colons between, as in fairseq."""
    if Path(path).exists() or ":" not in str(path):
        return [str(path)]
    paths = str(path).split(":")
    if not all(paths):
        raise ConfigError(f"--path {path}: a name between colons is empty; give each model's folder")
    return paths


def writing_family(path: str, config: PreTrainedConfig) -> Family:
    """The family of the model ``path``; raises `CheckpointError` for one that writes no texts."""
    family = family_of(config.model_type, path)
    if "decoder" not in family.shape(config).sides:
        raise CheckpointError(
            f"{path}: a {config.model_type} has no decoder, so it writes no texts; open a classifier with "
            "transformers' pipeline('text-classification')"
        )
    return family


def open_members(
    first: str, others: Sequence[str], *, device: torch.device, allow_bin_weights: bool
) -> list[tuple[Any, DecoderLayout]]:
    """The models ``others`` with what their families say of their decoders.

    Raises `CheckpointError` for one that writes no texts, and `ConfigError` for one whose tokens have other ids than
    those of the model ``first``.
    """
    size = load_config(first).vocab_size
    found = []
    for path in others:
        config = load_config(path)
        family = writing_family(path, config)
        if config.vocab_size != size:
            raise ConfigError(
                f"--path: {first} has a vocabulary of {size} ids, {path} one of {config.vocab_size}; models that "
                "write together have the same"
            )
        check_vocabularies(folder_vocabulary(path, path, size), folder_vocabulary(first, first, size))
        model = load_model(path, allow_bin_weights=allow_bin_weights, device=device)
        found.append((model, family.decoder_layout(model.config)))
    return found
