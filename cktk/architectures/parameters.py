"""How many parameters a model has, those that grow with vocabulary and positions apart from the others."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import nn
from transformers import PreTrainedModel

from cktk.architectures.families.family import family_of


class ParameterCounts(NamedTuple):
    """Numbers of parameters: ``embedding`` holds tokens, positions and output head, ``body`` all else."""

    embedding: int
    body: int

    @property
    def total(self) -> int:
        return self.embedding + self.body


def count_parameters(model: PreTrainedModel) -> ParameterCounts:
    """The parameters of ``model``, tied ones once; it may be on the meta device."""
    family = family_of(model.config.model_type, "the model")
    embeddings: list[nn.Parameter] = [*family.embeddings(model)]
    anything: Any = model
    output = anything.get_output_embeddings()
    if output is not None:
        embeddings += output.parameters()
    inside = {id(parameter) for parameter in embeddings}
    total = sum(parameter.numel() for parameter in model.parameters())
    embedding = sum(parameter.numel() for parameter in model.parameters() if id(parameter) in inside)
    return ParameterCounts(embedding, total - embedding)
