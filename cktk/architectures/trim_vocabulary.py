"""Models with fewer vocabulary rows, and back.

Every tensor with a row for each token (embeddings, output heads, their biases) loses the rows of dropped tokens; all
else stays. Logits of kept tokens are those of the original, and probabilities the original's, renormalised.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from cktk.architectures.families.encoder_family import EncoderFamily
from cktk.architectures.families.family import family_of
from cktk.data.tokenization.vocabulary_map import VocabularyMap
from cktk.errors import CheckpointError, ConfigError

# Generation settings that hold ids: those never generated, of which dropped ones need no mention, and others.
_SUPPRESSED = ("suppress_tokens", "begin_suppress_tokens")
_BAD_WORDS = "bad_words_ids"
_REFUSED = ("sequence_bias", "force_words_ids")

Ids = int | list[int]


def special_ids(model: PreTrainedModel) -> set[int]:
    """The ids that ``model`` cannot do without: those that configuration and generation settings name.

    Where positions are counted from the id of the pad on (RoBERTa), all ids before it, too.
    """
    found: set[int] = set()
    family = family_of(model.config.model_type, "the model")
    if isinstance(family, EncoderFamily):
        found.update(range(family.reserved_positions(model.config.pad_token_id)))

    def note(ids: Ids) -> Ids:
        found.update([ids] if isinstance(ids, int) else ids)
        return ids

    for settings in filter(None, (model.config, _generation(model))):
        _change_ids(copy.deepcopy(vars(settings)), note)
    return {index for index in found if 0 <= index < model.config.vocab_size}


def trim_model(model: PreTrainedModel, vocabulary: VocabularyMap) -> PreTrainedModel:
    """A new model with the rows of ``model`` that ``vocabulary`` keeps, special ids moved; in eval mode.

    Rows of ids that no token has (padded vocabularies) go, too. Raises `CheckpointError` for a special id that was
    dropped and for generation settings that cannot be carried over.
    """
    made = _resized(model, vocabulary.new_size, lambda ids: _moved(vocabulary, ids))
    settings = _generation(made)
    for name in _SUPPRESSED:
        if ids := getattr(settings, name, None):
            setattr(settings, name, [_moved(vocabulary, index) for index in ids if index in vocabulary])
    if words := getattr(settings, _BAD_WORDS, None):
        spelt = [ids for ids in words if all(index in vocabulary for index in ids)]
        settings.bad_words_ids = [_moved(vocabulary, ids) for ids in spelt] or None
    kept = torch.from_numpy(vocabulary.kept)
    _fill(made, model, lambda name, old, new: old.index_select(_dimension(name, old, new), kept))
    return made


def restore_model(trimmed: PreTrainedModel, original: PreTrainedModel, vocabulary: VocabularyMap) -> PreTrainedModel:
    """``trimmed``, perhaps trained since, with the vocabulary of ``original`` again; in eval mode.

    Rows of dropped tokens come from ``original``, everything else from ``trimmed``. Raises `ConfigError` unless the
    rows of both are equally wide.
    """
    family = family_of(trimmed.config.model_type, "the trimmed model")
    theirs = family.must_agree(original.config) if original.config.model_type == family.model_type else {}
    for name, value in family.must_agree(trimmed.config).items():
        if theirs.get(name) != value:
            raise ConfigError(
                f"--restore: {name} is {value} in the trimmed model but {theirs.get(name)} in the original"
            )
    made = _resized(trimmed, original.config.vocab_size, lambda ids: _restored(vocabulary, ids))
    for name in (*_SUPPRESSED, _BAD_WORDS):
        if hasattr(_generation(original), name):
            setattr(made.generation_config, name, copy.deepcopy(getattr(original.generation_config, name)))
    kept = torch.from_numpy(vocabulary.kept)
    rows = _tensors(original)

    def widened(name: str, old: Tensor, new: Tensor) -> Tensor:
        if name not in rows or rows[name].shape != new.shape:
            other = f"of {tuple(rows[name].shape)}" if name in rows else "none"
            raise ConfigError(
                f"--restore: {name} has to be of {tuple(new.shape)}, and the original has {other}: rows of dropped "
                "tokens can only come from a model of the same family and width"
            )
        return rows[name].index_copy(_dimension(name, old, new), kept, old)

    _fill(made, trimmed, widened)
    return made


def _resized(model: PreTrainedModel, rows: int, change: Callable[[Ids], Ids]) -> PreTrainedModel:
    """A model like ``model`` with ``rows`` vocabulary rows, random weights and special ids after ``change``."""
    for name in _REFUSED:
        if getattr(_generation(model), name, None):
            raise CheckpointError(f"generation_config.json: {name} holds token ids that cannot be moved; take it out")
    size = model.config.vocab_size

    def changed(ids: Ids) -> Ids:
        if isinstance(ids, list):
            return [int(changed(index)) for index in ids]  # type: ignore[arg-type]
        return change(ids) if 0 <= ids < size else ids

    config = copy.deepcopy(model.config)
    _change_ids(vars(config), changed)
    config.vocab_size = rows
    made: Any = family_of(config.model_type, "the model").build(config)
    if _generation(model) is not None:
        made.generation_config = copy.deepcopy(model.generation_config)
        _change_ids(vars(made.generation_config), changed)
    resized: PreTrainedModel = made.eval()
    return resized


def _change_ids(settings: dict[str, Any], change: Callable[[Ids], Ids]) -> None:
    """Replace all ids of special tokens in ``settings`` and the dictionaries in it (task_specific_params)."""
    for name, value in settings.items():
        if isinstance(value, dict):
            _change_ids(value, change)
        elif str(name).endswith("_token_id") and value is not None:
            settings[name] = change(value)


def _generation(model: PreTrainedModel) -> Any:
    """The generation settings of ``model``; None where it generates nothing."""
    return getattr(model, "generation_config", None)


def _moved(vocabulary: VocabularyMap, ids: Any) -> Any:
    return vocabulary.to_new(ids).tolist()


def _restored(vocabulary: VocabularyMap, ids: Any) -> Any:
    return np.asarray(vocabulary.to_old(ids)).tolist()


def _tensors(model: PreTrainedModel) -> dict[str, Tensor]:
    """The parameters, tied ones once, and the buffers that are saved, by name."""
    saved = model.state_dict().keys()
    buffers: Iterator[tuple[str, Tensor]] = ((name, buffer) for name, buffer in model.named_buffers() if name in saved)
    return dict(chain(model.named_parameters(), buffers))


@torch.no_grad()
def _fill(model: PreTrainedModel, source: PreTrainedModel, resize: Callable[[str, Tensor, Tensor], Tensor]) -> None:
    """Give ``model`` the tensors of ``source``; ``resize`` fits those of another shape (name, source's, model's)."""
    tensors = _tensors(source)
    for name, target in _tensors(model).items():
        old = tensors[name]
        target.copy_(old if old.shape == target.shape else resize(name, old, target))


def _dimension(name: str, old: Tensor, new: Tensor) -> int:
    """The one dimension in which ``old`` and ``new`` differ: that of the vocabulary."""
    differ = [at for at, sizes in enumerate(zip(old.shape, new.shape, strict=True)) if len(set(sizes)) > 1]
    if len(differ) != 1:
        raise CheckpointError(
            f"{name} of shape {tuple(old.shape)} would become {tuple(new.shape)}: unknown to trimming"
        )
    return differ[0]
