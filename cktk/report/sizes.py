"""How large the model of a run is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from cktk.architectures.families.family import family_of
from cktk.architectures.folders import model_folder
from cktk.architectures.loading import load_config
from cktk.errors import CheckpointError


@dataclass(frozen=True)
class Size:
    """Parameters, tied ones once, and ``shape``: layers of all sides x width, as ``12x384``."""

    parameters: int
    shape: str


def size_of(path: Path | str) -> Size:
    """The size of the model that ``path`` means; of the weights only the file's head is read.

    Raises `CheckpointError` where there is none.
    """
    folder, config = model_folder(path), load_config(path)
    family = family_of(config.model_type, path)
    shape = family.shape(config)
    with torch.device("meta"):
        model = family.build(config)
    # A file also holds buffers, and leaves out what is tied, which a configuration alone does not always say.
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    stored = _stored(Path(folder))
    parameters = sum(size for name, size in stored.items() if name in names)
    return Size(parameters, f"{sum(side.layers for side in shape.sides.values())}x{shape.width}")


def _stored(folder: Path) -> dict[str, int]:
    """The tensors in the safetensors files of ``folder``, and how many numbers each has."""
    found: dict[str, int] = {}
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"{folder}: no model.safetensors in this folder")
    for path in files:
        try:
            with safe_open(path, framework="numpy") as file:
                found |= {name: math.prod(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: damaged ({error}); leave the run out") from error
    return found
