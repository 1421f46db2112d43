"""The sweeps of the fused head loss over tiles of logits: losses per row, and gradients."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from cktk.criteria.head.head_options import HeadLossOptions, Teacher
from cktk.criteria.head.logits import Logits, hide, locate, shaped
from cktk.criteria.head.soft_targets import SampledTarget, SoftTarget, TopKTarget, WholeTarget
from cktk.protocols import SparseTargets

#: Chunks have a multiple of this many rows where the budget allows: products of even sizes are faster.
_ROWS = 32

#: Most rows of a chunk on a CPU: more make the products no faster, and tiles too large for its caches.
_CPU_ROWS = 192


class HeadSweep:
    """Losses per row and gradients, chunk by chunk of rows. The gradients stand for (hidden, weight, bias)."""

    def __init__(
        self,
        head: Logits,
        labels: Tensor,
        teacher: Teacher | SparseTargets | None,
        products: torch.dtype | None,
        options: HeadLossOptions,
        wanted: list[bool],
    ) -> None:
        self.head, self.labels, self.options = head, labels, options
        self.values = labels.new_zeros((3, len(labels)), dtype=head.working)  # nll, mean of -log p over labels, D
        shapes = (head.states.shape, head.weight.shape, (head.size,))
        self.gradients = [
            self.values.new_zeros(shape) if want else None for shape, want in zip(shapes, wanted, strict=True)
        ]
        self.chunk = self._chunk_rows(2 if isinstance(teacher, tuple) else 1)
        self.buffer = self._rows_of(head.size)
        self.scratch = self._rows_of(head.width)
        self.soft = self._target(teacher, products)

    def _target(self, teacher: Teacher | SparseTargets | None, products: torch.dtype | None) -> SoftTarget | None:
        if teacher is None:
            return None
        if isinstance(teacher, SparseTargets):
            return (SampledTarget if teacher.sampled else TopKTarget)(teacher, self.head, self.options)
        return WholeTarget(Logits(*teacher, products), self.options, self._rows_of(self.head.size))

    def _rows_of(self, width: int) -> Tensor:
        return self.values.new_empty(self.chunk * width)

    def _chunk_rows(self, buffers: int) -> int:
        bytes_per_row = (buffers * self.head.size + self.head.width) * self.values.element_size()
        most = max(1, self.options.memory // bytes_per_row)
        most = most // _ROWS * _ROWS or most
        if self.labels.device.type == "cpu":
            most = min(most, _CPU_ROWS)
        return math.ceil(len(self.labels) / max(1, math.ceil(len(self.labels) / most)))

    def chunks(self) -> Iterator[slice]:
        """Slices of rows whose logits fit the budget."""
        for start in range(0, len(self.labels), max(1, self.chunk)):
            yield slice(start, min(start + self.chunk, len(self.labels)))

    def sums(self) -> Tensor:
        """ce, nll and temperature^2 D, summed over rows."""
        nll, uniform, divergence = self.values.sum(1, dtype=torch.float64)
        ce = (1 - self.options.label_smoothing) * nll + self.options.label_smoothing * uniform
        return torch.stack([ce, nll, self.options.temperature**2 * divergence]).to(self.values.dtype)

    def add(self, rows: slice) -> None:
        """Takes one chunk of rows through all sweeps."""
        self._fill(rows)
        differentiate = any(gradient is not None for gradient in self.gradients)
        one_sweep = self.soft is None or self.soft.one_sweep
        for i in range(len(self.tiles)):
            log_q = self._score(rows, i)
            if differentiate and one_sweep:
                self._differentiate(rows, i, log_q)
        if differentiate and not one_sweep:
            for i in range(len(self.tiles)):
                self._differentiate(rows, i, self._tempered(i))
        if differentiate:
            self._propagate(rows)

    def _fill(self, rows: slice) -> None:
        """The chunk's logits and their log sums; the soft target's as well."""
        t = self.options.temperature
        if self.soft is not None:
            self.soft.take(rows)
        hidden = None if self.soft is None else self.soft.hidden
        temperatures = (1.0,) if self.soft is None or (t == 1 and hidden is None) else (1.0, t)
        self.tiles, sums = self.head.fill(rows, self.buffer, self.scratch, temperatures, hidden)
        self.log_sum, log_sum = (parts.logsumexp(1, keepdim=True) for parts in (sums[0], sums[-1]))
        if self.soft is not None:
            self.values[2, rows] = self.soft.begin(self.tiles, log_sum, self.scratch)
            # Tiles become log probabilities at temperature 1 before they are tempered.
            self.shift = self.soft.log_sum - self.log_sum / t

    def _score(self, rows: slice, i: int) -> Tensor:
        """Makes tile i log probabilities and adds its losses. Returns it tempered (the same tensor where it is)."""
        log_p = self.tiles[i].sub_(self.log_sum)
        place, here = locate(self.labels[rows, None], self.head.columns[i])
        self.values[0, rows] -= torch.where(here, log_p.gather(1, place), 0.0)[:, 0]
        if self.options.label_smoothing > 0:
            self.values[1, rows] -= log_p.sum(1) / self.head.size
        log_q = self._tempered(i)
        values = None if self.soft is None else self.soft.compare(i, log_q)
        if values is not None:
            self.values[2, rows] += values
        return log_q

    def _tempered(self, i: int) -> Tensor:
        """Tile i of tempered logits less the soft target's log sum; the tile itself where they are the same."""
        log_p, t = self.tiles[i], self.options.temperature
        if self.soft is None or (t == 1 and self.soft.hidden is None):
            return log_p
        part = self.head.columns[i]
        tempered = torch.div(log_p, t, out=shaped(self.scratch, *log_p.shape)).sub_(self.shift)
        return tempered if self.soft.hidden is None else hide(tempered, self.soft.hidden, part)

    def _differentiate(self, rows: slice, i: int, log_q: Tensor) -> None:
        """Puts the loss's gradient in tile i of logits in the tile's place."""
        log_p, soft, columns = self.tiles[i], self.soft, self.head.columns[i]
        ce, kl = self.options.ce_weight, self.options.kl_weight * self.options.temperature
        gradient = log_p.exp_()
        if log_q is not log_p and soft is not None:
            gradient.mul_(ce).add_(log_q.exp_().mul_(kl * soft.factor))
        elif soft is not None:
            gradient.mul_(ce + kl * soft.factor)
        elif ce != 1:
            gradient.mul_(ce)
        if soft is not None:
            soft.subtract(gradient, i, kl)
        smoothing = self.options.label_smoothing
        if smoothing > 0:
            gradient.sub_(ce * smoothing / self.head.size)
        place, here = locate(self.labels[rows, None], columns)
        gradient.scatter_add_(1, place, here.to(gradient) * (-ce * (1 - smoothing)))
        if self.gradients[2] is not None:
            self.gradients[2][columns] += gradient.sum(0)

    def _propagate(self, rows: slice) -> None:
        """Takes the gradient of the chunk's logits on to states and weight."""
        of_hidden, of_weight, _ = self.gradients
        states = self.head.states[rows]
        gradients = shaped(self.buffer, len(states), self.head.size)
        # Probabilities over a large vocabulary are below what float16 resolves; bfloat16 has the range.
        dtype = torch.float32 if states.dtype == torch.float16 else states.dtype
        for part in self.head.blocks(gradients.dtype):
            gradient = gradients[:, part].to(dtype)
            if of_hidden is not None:
                _add_product(of_hidden[rows], gradient, self.head.weight[part].to(dtype), self.head.scale)
            if of_weight is not None:
                _add_product(of_weight[part], gradient.T, states.to(dtype), self.head.scale)


def _add_product(out: Tensor, first: Tensor, second: Tensor, scale: float) -> None:
    if first.dtype == out.dtype:
        out.addmm_(first, second, alpha=scale)
    else:
        out.add_(first @ second, alpha=scale)
