"""Which layers of a side are matched, each once, and where each pair finds its two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cktk.protocols import LayerPair, ModelOutput, Side


@dataclass(frozen=True)
class SideLayout:
    """The P pairs of one side, its L_s student and L_t teacher layers in order of appearance, and each pair's places.

    Where no layer is shared between pairs, pair i has place i in both, and nothing is ever copied for it.
    """

    side: Side
    pairs: tuple[LayerPair, ...]
    student_layers: tuple[int, ...]
    teacher_layers: tuple[int, ...]
    student_places: tuple[int, ...]
    teacher_places: tuple[int, ...]

    @classmethod
    def of(cls, side: Side, pairs: Sequence[LayerPair]) -> SideLayout:
        own = tuple(pair for pair in pairs if pair.side == side)
        student = tuple(dict.fromkeys(pair.student for pair in own))
        teacher = tuple(dict.fromkeys(pair.teacher for pair in own))
        student_places = tuple(student.index(pair.student) for pair in own)
        teacher_places = tuple(teacher.index(pair.teacher) for pair in own)
        return cls(side, own, student, teacher, student_places, teacher_places)

    @classmethod
    def all(cls, pairs: Sequence[LayerPair]) -> list[SideLayout]:
        """One for each side that has pairs, the encoder first."""
        sides: tuple[Side, ...] = ("encoder", "decoder")
        return [cls.of(side, pairs) for side in sides if any(pair.side == side for pair in pairs)]

    def student_states(self, output: ModelOutput) -> list[Tensor]:
        return [output.hidden[self.side, layer] for layer in self.student_layers]

    def teacher_states(self, output: ModelOutput) -> list[Tensor]:
        return [output.hidden[self.side, layer] for layer in self.teacher_layers]

    def student_of_pairs(self, layers: Tensor) -> Tensor:
        """(L_s, ...) to (P, ...)."""
        return _picked(layers, self.student_places)

    def teacher_of_pairs(self, layers: Tensor) -> Tensor:
        """(L_t, ...) to (P, ...)."""
        return _picked(layers, self.teacher_places)

    def sum_by_student(self, pairs: Tensor) -> Tensor:
        """(P, ...) to (L_s, ...), adding up the pairs of a student layer."""
        if self.student_places == tuple(range(len(pairs))):
            return pairs
        places = torch.tensor(self.student_places, device=pairs.device)
        return pairs.new_zeros(len(self.student_layers), *pairs.shape[1:]).index_add_(0, places, pairs)


def _picked(layers: Tensor, places: tuple[int, ...]) -> Tensor:
    return layers if places == tuple(range(len(layers))) else layers[list(places)]
