"""A model seen through another vocabulary: the rows of its tokens, in the order of another tokenizer."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cktk.architectures.family import family_of
from cktk.architectures.vocabulary import Vocabulary


def shared_rows(theirs: Vocabulary, ours: Vocabulary, size: int) -> Tensor:
    """For each of ``size`` ids of our vocabulary the id of the same token in theirs, -1 where there is none.

    Both have to know their tokens.
    """
    assert theirs.tokens and ours.tokens
    known, wanted = theirs.tokens(), ours.tokens()
    assert known is not None and wanted is not None
    rows = torch.full((size,), -1)
    for token, index in wanted.items():
        rows[index] = known.get(token, -1)
    return rows


@torch.no_grad()
def with_rows(model: PreTrainedModel, rows: Tensor) -> PreTrainedModel:
    """A copy of ``model`` whose vocabulary row i is its row ``rows[i]``, and the mean of all its rows where that is -1.

    All tensors with a row for each token are changed so: embeddings, output head and its bias. Special ids of the
    configuration follow their tokens.
    """
    new = {int(old): index for index, old in reversed(list(enumerate(rows.tolist()))) if old >= 0}
    config: Any = copy.deepcopy(model.config)
    config.vocab_size = len(rows)
    for name, value in vars(model.config).items():
        if name.endswith("_token_id") and isinstance(value, int):
            setattr(config, name, new.get(value, 0))
    made: PreTrainedModel = family_of(config.model_type, "the model").build(config)
    dimensions = _vocabulary_dimensions(model)
    old = model.state_dict()
    for name, target in made.state_dict().items():
        source = old[name]
        if name in dimensions:
            source = _taken(source, dimensions[name], rows)
        target.copy_(source)
    made.train(False)
    return made


def _taken(tensor: Tensor, dimension: int, rows: Tensor) -> Tensor:
    known = tensor.index_select(dimension, rows.clamp(min=0))
    mean = tensor.float().mean(dimension, keepdim=True).to(tensor.dtype)
    shape = [1] * tensor.dim()
    shape[dimension] = -1
    return torch.where((rows >= 0).view(shape), known, mean)


def _vocabulary_dimensions(model: PreTrainedModel) -> dict[str, int]:
    """The tensors of ``model`` that have a row for each token, and in which dimension."""
    config: Any = copy.deepcopy(model.config)
    config.vocab_size += 1
    with torch.device("meta"):
        larger = family_of(config.model_type, "the model").build(config).state_dict()
    return {
        name: at
        for name, tensor in model.state_dict().items()
        for at, (ours, theirs) in enumerate(zip(tensor.shape, larger[name].shape, strict=True))
        if ours != theirs
    }
