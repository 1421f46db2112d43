"""Opening a model for CTranslate2: a folder that was exported, or any other, exported for as long as it runs."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import GenerationConfig

from cktk.architectures.families.family import family_of
from cktk.architectures.folders import model_folder
from cktk.architectures.loading import load_config, load_model, load_tokenizer
from cktk.export.ctranslate2_format import is_ctranslate2, write_ctranslate2
from cktk.export.ctranslate2_search import CTranslate2Search
from cktk.generation.configs import SearchConfig


class Opened(NamedTuple):
    """A Hugging Face model, without weights where the folder has none, and what searches in its place."""

    model: Any
    engine: CTranslate2Search


def open_ctranslate2(
    path: str | Path, search: SearchConfig, *, device: str = "cpu", allow_bin_weights: bool = False
) -> Opened:
    """The model that ``path`` means, for CTranslate2.

    Raises `CheckpointError` for a missing or damaged one, `ConfigError` for one that CTranslate2 does not take.
    """
    folder = model_folder(path)
    if is_ctranslate2(folder):
        model = _without_weights(Path(folder))
        return Opened(model, _engine(Path(folder), model, search, device))
    model = load_model(path, allow_bin_weights=allow_bin_weights)
    with tempfile.TemporaryDirectory(prefix="cktk-ctranslate2-") as written:
        kind = "int8" if search.quantization == "int8" else "float32"
        write_ctranslate2(model, load_tokenizer(path), Path(written), kind)
        return Opened(model, _engine(Path(written), model, search, device))


def _engine(folder: Path, model: Any, search: SearchConfig, device: str) -> CTranslate2Search:
    layout = family_of(model.config.model_type, folder).decoder_layout(model.config)
    return CTranslate2Search(folder, model, search, layout, device)


def _without_weights(folder: Path) -> Any:
    """A model on the meta device, which knows configuration, generation settings and its number of parameters."""
    config = load_config(folder)
    with torch.device("meta"):
        model: Any = family_of(config.model_type, folder).build(config)
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model
