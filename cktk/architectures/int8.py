"""Model folders whose matrices are int8: a quarter of the size, and fp32 again once they are open.

``model.int8.safetensors`` holds every tensor of the model once. Those that tokens or states are multiplied with, the
linear layers and the token embedding, are int8, and the fp32 scale of each of their rows (an output of a layer, or a
token) is beside them as ``<name>.scale``: weight = int8 * scale, and the largest of a row is 127. All else is fp32.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel

from cktk.architectures.families.family import Family
from cktk.errors import CheckpointError

WEIGHTS = "model.int8.safetensors"

_SCALE = ".scale"


def quantised(weight: Tensor) -> tuple[Tensor, Tensor]:
    """``weight`` (rows, columns) as int8 and the scale (rows) of each row in fp32; a row of zeros has scale 1."""
    weight = weight.detach().float()
    scale = weight.abs().amax(dim=1) / 127
    scale = torch.where(scale > 0, scale, 1.0)
    return (weight / scale[:, None]).round().clamp(-127, 127).to(torch.int8), scale


def dequantised(weight: Tensor, scale: Tensor) -> Tensor:
    """The fp32 matrix that int8 ``weight`` (rows, columns) and ``scale`` (rows) stand for."""
    return weight.float() * scale[:, None]


def write_int8(model: PreTrainedModel, folder: Path) -> None:
    """Write configuration, generation settings and int8 weights into the existing ``folder``."""
    matrices = {
        id(module.weight)
        for module in model.modules()
        if isinstance(module, nn.Linear) or module is model.get_input_embeddings()
    }
    tensors: dict[str, Tensor] = {}
    for name, tensor in _stored(model).items():
        if id(tensor) in matrices:
            tensors[name], tensors[name + _SCALE] = quantised(tensor)
        else:
            tensors[name] = tensor.detach().float().contiguous()
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    model.config.save_pretrained(folder)
    settings: Any = model.generation_config
    if settings is not None:
        settings.save_pretrained(folder)


def read_int8(folder: Path, config: PreTrainedConfig, family: Family) -> PreTrainedModel:
    """The model of ``config`` in ``folder``, in fp32; raises `CheckpointError` where tensors are missing or no fit."""
    found = load_file(folder / WEIGHTS)
    tensors = {
        name: dequantised(tensor, found[name + _SCALE]) if tensor.dtype == torch.int8 else tensor
        for name, tensor in found.items()
        if not name.endswith(_SCALE)
    }
    model = family.build(config)
    if missing := sorted(_stored(model).keys() - tensors.keys()):
        raise CheckpointError(f"{folder / WEIGHTS}: {len(missing)} tensors are missing, {missing[0]} among them")
    model.load_state_dict(tensors, strict=False)
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model


def _stored(model: PreTrainedModel) -> dict[str, Tensor]:
    """Parameters and saved buffers, each once, under the first of its names."""
    saved = model.state_dict().keys()
    return dict(model.named_parameters()) | {name: buffer for name, buffer in model.named_buffers() if name in saved}
