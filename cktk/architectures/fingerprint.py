"""Is this the same model?"""

from __future__ import annotations

import hashlib
import json

import torch
from transformers import PreTrainedModel

# Of a configuration: where the model was found and how its file was written, which changes no answer.
_CIRCUMSTANCES = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures")


def model_fingerprint(model: PreTrainedModel) -> str:
    """A SHA-256 of what decides the answers of ``model``: its tensors, as loaded, and its configuration.

    It does not depend on how the weights lie in files; tied tensors enter once.
    """
    config = {name: value for name, value in model.config.to_diff_dict().items() if name not in _CIRCUMSTANCES}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    saved = model.state_dict().keys()
    tensors = dict(model.named_parameters()) | {name: t for name, t in model.named_buffers() if name in saved}
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
