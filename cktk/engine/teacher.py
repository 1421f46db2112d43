"""The teacher in training: how its states are made, and how they are kept between the two passes of an update."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from cktk.protocols import Adapter, Batch, HeadParams, ModelOutput, Needs


@dataclass
class Autocast:
    """Mixed precision: None computes in float32."""

    device_type: str
    dtype: torch.dtype | None

    def __call__(self) -> torch.autocast:
        return torch.autocast(self.device_type, dtype=self.dtype or torch.bfloat16, enabled=self.dtype is not None)


class Teacher(Protocol):
    """What the engine asks of a teacher, a model or its recorded answers."""

    @property
    def head(self) -> HeadParams | None:
        """The output head; None where the criterion does not look at it, or gets sparse targets instead."""

    def states(self, batch: Batch) -> ModelOutput:
        """What the criterion needs of ``batch``, packed."""

    def weight_bytes(self) -> int:
        """The memory that its weights take."""


class FrozenTeacher:
    """A model as teacher: eval mode, no gradients, outside any wrapper.

    Its states are computed under ``no_grad`` and not as inference tensors, which autograd could not save for backward.
    With ``dtype`` they are rounded at once, so that statistics, losses and logits see the same values. Where ``needs``
    is a function, it is asked for each batch anew.
    """

    def __init__(
        self,
        model: nn.Module,
        adapter: Adapter,
        needs: Needs | Callable[[], Needs],
        autocast: Autocast,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self._adapter = adapter
        self._needs = needs
        self._autocast = autocast
        self._dtype = dtype
        if self.needs.teacher_head:
            adapter.head()  # raises `ConfigError` now, not in the first update, where the model has none

    @property
    def needs(self) -> Needs:
        """What the criterion wants now."""
        return self._needs() if callable(self._needs) else self._needs

    @property
    def head(self) -> HeadParams | None:
        """See `Teacher`."""
        return self._adapter.head() if self.needs.teacher_head else None

    @torch.no_grad()
    def states(self, batch: Batch) -> ModelOutput:
        """See `Teacher`."""
        needs = self.needs
        with self._autocast():
            states = self._adapter(batch, needs.request("teacher", head=needs.teacher_head))
        return states if self._dtype is None else states.map(self._rounded)

    def weight_bytes(self) -> int:
        """See `Teacher`."""
        return sum(weight.numel() * weight.element_size() for weight in self.model.parameters())

    def _rounded(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._dtype) if tensor.is_floating_point() else tensor


class StateStore:
    """A teacher's states of the micro-batches of one update, from the first pass to the second.

    "device" keeps them where they are computed, "host" in main memory (pinned, copied back when needed), "recompute"
    not at all: the teacher runs again.
    """

    def __init__(self, teacher: Teacher, place: Literal["device", "host", "recompute"] = "device") -> None:
        self._teacher = teacher
        self._place = place
        self._kept: dict[int, ModelOutput] = {}

    def first(self, index: int, batch: Batch) -> ModelOutput:
        """The states of micro-batch ``index``, seen for the first time and kept for `again`."""
        states = self._teacher.states(batch)
        if self._place == "device":
            self._kept[index] = states
        elif self._place == "host":
            self._kept[index] = states.map(_to_host)
        return states

    def again(self, index: int, batch: Batch) -> ModelOutput:
        """The same states, and no longer kept; of a micro-batch that was not seen before, its states."""
        kept = self._kept.pop(index, None)
        if kept is None:
            return self._teacher.states(batch)
        device = batch.labels.device
        return kept.map(lambda tensor: tensor.to(device, non_blocking=True))

    def forget(self) -> None:
        """Keep nothing any more."""
        self._kept.clear()


def _to_host(tensor: Tensor) -> Tensor:
    if not tensor.is_cuda:
        return tensor.cpu()
    # Pinned, and not waited for: the copy back is queued behind it.
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
