"""Moving averages of moments over updates, kept and saved with the model."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cktk.criteria.cka.moments import ModelMoments, SideMoments
from cktk.criteria.layout import SideLayout


class RunningMoments(nn.Module):
    """Averages V of means, A/n, M/n and Q/n of one side: V_t = sum of (1 - beta) beta^(t - i) V_i / (1 - beta^t).

    They are kept divided already: V <- V + w (V_now - V) with w = (1 - beta) / (1 - beta^t). An update without rows on
    this side is not counted.
    """

    student_mean: Tensor  # (L_s, d), float64
    teacher_mean: Tensor  # (L_t, p), float64
    cross: Tensor  # (P, p, d)
    student: Tensor  # (L_s, d, d)
    teacher: Tensor  # (L_t, p, p)
    updates: Tensor  # (), int64

    def __init__(self, layout: SideLayout, widths: tuple[int, int], beta: float, dtype: torch.dtype) -> None:
        super().__init__()
        (d, p), students, teachers = widths, len(layout.student_layers), len(layout.teacher_layers)
        self._beta = beta
        self.register_buffer("student_mean", torch.zeros(students, d, dtype=torch.float64))
        self.register_buffer("teacher_mean", torch.zeros(teachers, p, dtype=torch.float64))
        self.register_buffer("cross", torch.zeros(len(layout.pairs), p, d, dtype=dtype))
        self.register_buffer("student", torch.zeros(students, d, d, dtype=dtype))
        self.register_buffer("teacher", torch.zeros(teachers, p, p, dtype=dtype))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def advance(self, now: SideMoments) -> None:
        """Take in the moments of all rows of an update."""
        self.updates += now.rows > 0
        age = 1 - self._beta ** self.updates.double()
        weight = torch.where(now.rows > 0, (1 - self._beta) / age, 0.0)
        for mean, new in ((self.student_mean, now.student.mean), (self.teacher_mean, now.teacher.mean)):
            mean.lerp_(new.to(mean), weight.to(mean))
        rows = now.rows.clamp(min=1)
        sums = ((self.cross, now.cross), (self.student, now.student.second), (self.teacher, now.teacher.second))
        for average, new in sums:
            average.lerp_((new / rows.to(new)).to(average), weight.to(average))

    def moments(self, dtype: torch.dtype) -> SideMoments:
        """The averages as moments of one row, in ``dtype``."""
        student, teacher = (
            ModelMoments(mean.double(), second.to(dtype), mean.double().square().sum(-1))
            for mean, second in ((self.student_mean, self.student), (self.teacher_mean, self.teacher))
        )
        one = torch.ones((), dtype=torch.float64, device=self.cross.device)
        return SideMoments(one, student, teacher, self.cross.to(dtype))
