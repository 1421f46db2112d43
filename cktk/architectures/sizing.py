"""Sizes of students that were never built: parameters, and what a forward pass computes with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedConfig

from cktk.architectures.families.family import Family
from cktk.architectures.parameters import ParameterCounts, count_parameters
from cktk.architectures.spec import StudentSpec
from cktk.protocols import ModelShape, Side


@dataclass(frozen=True)
class ModelSize:
    """What a model of ``shape`` consists of.

    ``ffn_matrices`` is how many matrices of width x feed-forward width a layer has: 2, or 3 where it is gated.
    ``output_rows`` is how many logits there are of each position; 0 for a model without an output vocabulary.
    """

    shape: ModelShape
    parameters: ParameterCounts
    ffn_matrices: int
    output_rows: int


@dataclass(frozen=True)
class _Shallow:
    """A model with one layer a side, and the parameters that one more layer of a side adds."""

    size: ModelSize
    layer: Mapping[Side, int]


class StudentSizes:
    """Sizes of the students that ``family`` makes of a teacher's configuration.

    Models of one layer a side, and of two on one of them, are built on the meta device, where they take no memory; all
    depths follow from these.
    """

    def __init__(self, family: Family, teacher: PreTrainedConfig) -> None:
        self._family = family
        self._config = teacher
        self._known: dict[int, _Shallow] = {}
        shape = family.shape(teacher)
        self.teacher = self.of(shape.width, {side: sizes.layers for side, sizes in shape.sides.items()})

    def of(self, width: int, layers: Mapping[Side, int]) -> ModelSize:
        """The size of a student of ``width`` with ``layers`` on each side, all else by default."""
        if width not in self._known:
            self._known[width] = self._shallow(width)
        known = self._known[width]
        one = known.size
        body = one.parameters.body + sum((layers[side] - 1) * known.layer[side] for side in layers)
        sides = {side: replace(sizes, layers=layers[side]) for side, sizes in one.shape.sides.items()}
        shape = ModelShape(width, sides, one.shape.positions)
        return replace(one, shape=shape, parameters=ParameterCounts(one.parameters.embedding, body))

    def config(self, width: int, layers: Mapping[Side, int]) -> PreTrainedConfig:
        """The configuration of that student."""
        spec = StudentSpec(width, layers.get("encoder"), layers.get("decoder"))
        return self._family.student_config(self._config, spec)

    def _shallow(self, width: int) -> _Shallow:
        ones: dict[Side, int] = dict.fromkeys(self._family.shape(self._config).sides, 1)
        model = self._built(width, ones)
        counts, shape = count_parameters(model), self._family.shape(model.config)
        more = {
            side: count_parameters(self._built(width, {**ones, side: 2})).body - counts.body for side in shape.sides
        }
        head = model.get_output_embeddings()
        rows = 0 if head is None else int(head.weight.shape[0])
        return _Shallow(ModelSize(shape, counts, self._ffn_matrices(model, shape), rows), more)

    def _built(self, width: int, layers: Mapping[Side, int]) -> Any:
        with torch.device("meta"):
            return self._family.build(self.config(width, layers))

    def _ffn_matrices(self, model: Any, shape: ModelShape) -> int:
        sizes = sorted((shape.width, shape.sides["encoder"].ffn_width))
        first = self._family.layer_prefix("encoder") + "0."
        found = [p for name, p in model.base_model.named_parameters() if name.startswith(first)]
        alike = sum(sorted(parameter.shape) == sizes for parameter in found)
        # The four matrices of attention are as large where the feed-forward layer is no wider than the heads together.
        return alike - (4 if shape.attention_width("encoder") == shape.sides["encoder"].ffn_width else 0)
