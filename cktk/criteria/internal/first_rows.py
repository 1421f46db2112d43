"""States matched at the first position of each sentence: ``[CLS]`` of an encoder, the first scored one of a decoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from cktk.criteria.base import HiddenLoss
from cktk.criteria.cka.cka import Cka
from cktk.criteria.cosine import cosine_distance
from cktk.protocols import LayerPair, ModelOutput, Side, Term


class FirstCosine(HiddenLoss):
    """1 - cos(s, t) of each sentence's first row ("Knowledge Distillation from Internal Representations", AAAI 2020).

    Widths have to be equal.
    """

    name = "cls_cosine"

    def __init__(self, pairs: tuple[LayerPair, ...]) -> None:
        super().__init__(first=pairs)

    def terms(self, student: ModelOutput, teacher: ModelOutput) -> list[Term]:
        """One term: the sum over pairs and sentences. Logged are the mean over pairs, and each pair."""
        values = torch.stack(
            [
                cosine_distance(student.first[pair.side, pair.student], teacher.first[pair.side, pair.teacher])
                for pair in self.first
            ]
        )
        parts = {f"{self.name}/{pair}": value for pair, value in zip(self.first, values.detach(), strict=True)}
        return [Term(self.name, values.sum(), "sentence", parts={self.name: values.detach().mean(), **parts})]


class FirstCka(Cka):
    """1 - CKA over the first rows of all sentences of an update, for any widths: an extension of cktk.

    ``widths`` are student's and teacher's.
    """

    name = "cls_cka"

    def __init__(self, pairs: tuple[LayerPair, ...], widths: Mapping[Side, tuple[int, int]]) -> None:
        super().__init__(pairs, widths)
        self.pairs, self.first = (), pairs

    def statistics(self, student: ModelOutput, teacher: ModelOutput, prior: Any = None) -> Any:
        """See `PooledLoss`."""
        return super().statistics(_first_as_hidden(student), _first_as_hidden(teacher), prior)

    def terms(self, student: ModelOutput, teacher: ModelOutput, coefficients: Any = None) -> list[Term]:
        """See `PooledLoss`."""
        return super().terms(_first_as_hidden(student), _first_as_hidden(teacher), coefficients)


def _first_as_hidden(output: ModelOutput) -> ModelOutput:
    return ModelOutput(hidden=output.first)
