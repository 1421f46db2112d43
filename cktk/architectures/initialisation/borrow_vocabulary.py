"""A model seen through another vocabulary: the rows of its tokens, in the order of another tokenizer."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.initialization import no_init_weights

from cktk.architectures.families.family import family_of
from cktk.architectures.vocabulary import Vocabulary
from cktk.errors import ConfigError

_PAD = "pad_token_id"


def shared_rows(theirs: Vocabulary, ours: Vocabulary, size: int) -> Tensor:
    """For each of ``size`` ids of our vocabulary the id of the same token in theirs, -1 where there is none.

    Raises `ConfigError` unless both know their tokens.
    """
    known, wanted = _tokens(theirs), _tokens(ours)
    rows = torch.full((size,), -1)
    for token, index in wanted.items():
        rows[index] = known.get(token, -1)
    return rows


def _tokens(vocabulary: Vocabulary) -> Mapping[str, int]:
    found = vocabulary.tokens() if vocabulary.tokens else None
    if found is None:
        raise ConfigError(
            f"{vocabulary.name}: its tokens are not known, and other vocabularies are matched by them; save its "
            "tokenizer beside it"
        )
    return found


@torch.no_grad()
def with_rows(model: PreTrainedModel, rows: Tensor, name: str = "the model") -> PreTrainedModel:
    """A copy of ``model`` whose vocabulary row i is its row ``rows[i]``, and the mean of all its rows where that is -1.

    All tensors with a row for each token are changed so: embeddings, output head and its bias. Special ids of the
    configuration follow their tokens; where the new vocabulary lacks one the id is None, and `ConfigError` is raised
    for those that a model cannot be without. ``name`` is what messages call the model.
    """
    new = {int(old): index for index, old in reversed(list(enumerate(rows.tolist()))) if old >= 0}
    config: Any = copy.deepcopy(model.config)
    config.vocab_size = len(rows)
    for key, value in vars(model.config).items():
        if key.endswith("_token_id") and isinstance(value, int):
            if value not in new and key in _needed(config):
                raise ConfigError(
                    f"{name}: the data's vocabulary lacks its {key} {value}; preprocess with a tokenizer that has it"
                )
            setattr(config, key, new.get(value))
    with no_init_weights():  # all tensors come from the model
        made: PreTrainedModel = family_of(config.model_type, name).build(config)
    made.tie_weights()
    dimensions = _vocabulary_dimensions(model)
    old = model.state_dict()
    for key, target in made.state_dict().items():
        source = old[key]
        if key in dimensions:
            source = _taken(source, dimensions[key], rows)
        target.copy_(source)
    made.train(False)
    return made


def _needed(config: Any) -> tuple[str, ...]:
    """The special ids that no model of this kind can do without: of padding, and of where decoding starts and ends."""
    return (_PAD, "decoder_start_token_id", "eos_token_id") if config.is_encoder_decoder else (_PAD,)


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
