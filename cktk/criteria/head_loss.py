"""Cross entropy and KL divergence from hidden states and head weights, without ever holding the logits in full.

Rows are taken in chunks whose logits (student's and teacher's) fit a byte budget, and each chunk in tiles of columns
that stay in the processor's cache: a first sweep over the tiles makes logits and their normalisers, a second one the
losses and, while a tile is at hand, its share of the gradients. These are made in forward and only scaled in backward.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cktk.criteria.base import working_dtype
from cktk.errors import ConfigError, DataError
from cktk.protocols import HeadParams

#: The teacher's packed head input (N, p) and its head.
Teacher = tuple[Tensor, HeadParams]

#: Columns of logits handled at one time. On a CPU small enough for its caches; elsewhere fewer launches count for more.
_CPU_TILE, _DEVICE_TILE = 8192, 65536


@dataclass(frozen=True)
class HeadLossOptions:
    """loss = ce_weight CE + kl_weight temperature^2 KL(teacher || student), summed over rows.

    CE is smoothed as in PyTorch: the target is (1 - label_smoothing) on the gold label plus label_smoothing / V on
    every label. ``memory`` is the budget in bytes for the logits that exist at one time.
    """

    ce_weight: float = 1.0
    kl_weight: float = 0.0
    temperature: float = 1.0
    label_smoothing: float = 0.0
    memory: int = 256 << 20


def head_loss(
    hidden: Tensor, labels: Tensor, head: HeadParams, teacher: Teacher | None, options: HeadLossOptions
) -> tuple[Tensor, dict[str, Tensor]]:
    """The summed loss of ``hidden`` (N, d) with ``labels`` (N,), and its unweighted parts, detached, for the log.

    Parts: ``ce``; ``nll``, the cross entropy without smoothing, where there is smoothing; ``kl`` (times temperature^2)
    where there is a teacher, to which no gradient flows. Matrix products follow autocast; sums and probabilities are
    float32, float64 for float64 states. Raises `ConfigError` where the two vocabularies differ in size, `DataError` for
    a label that is outside of them.
    """
    _check_labels(labels, len(head.weight))
    if teacher is not None and len(teacher[1].weight) != len(head.weight):
        raise ConfigError(
            f"the student's head has {len(head.weight)} rows and the teacher's {len(teacher[1].weight)}: a KL needs "
            "one vocabulary; give the student the teacher's tokenizer and vocabulary size"
        )
    inputs = (hidden, head.weight, head.bias)
    wanted = [torch.is_grad_enabled() and tensor is not None and tensor.requires_grad for tensor in inputs]
    total, sums = _HeadLoss.apply(*inputs, labels, head.scale, teacher, options, wanted)  # type: ignore[no-untyped-call]
    parts = {"ce": sums[0]}
    if options.label_smoothing > 0:
        parts["nll"] = sums[1]
    if teacher is not None:
        parts["kl"] = sums[2]
    return total, parts


def _check_labels(labels: Tensor, size: int) -> None:
    if len(labels) == 0:
        return
    low, high = (int(bound) for bound in labels.aminmax())
    if low < 0 or high >= size:
        raise DataError(
            f"the labels reach from {low} to {high}, but the head has {size} rows; "
            "use the data and the model of one tokenizer"
        )


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        scale: float,
        teacher: Teacher | None,
        options: HeadLossOptions,
        wanted: list[bool],
    ) -> tuple[Tensor, Tensor]:
        device = hidden.device.type
        products = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        with torch.autocast(device, enabled=False):
            head = _Logits(hidden, HeadParams(weight, bias, scale), products)
            target = None if teacher is None else _Logits(*teacher, products)
            sweep = _Sweep(head, target, labels, options, wanted)
            for rows in sweep.chunks():
                sweep.add(rows)
        ctx.gradients = sweep.gradients
        ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in (hidden, weight, bias)]
        sums = sweep.sums()
        ctx.mark_non_differentiable(sums)
        return options.ce_weight * sums[0] + options.kl_weight * sums[2], sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        # Scaled in place and let go, so that the gradient of a large vocabulary exists once.
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("the head loss gives its gradients once: backward was called a second time")
        scaled = [
            None if gradient is None else gradient.mul_(grad_total).to(dtype)
            for gradient, dtype in zip(gradients, ctx.dtypes, strict=True)
        ]
        del gradients
        return (*scaled, None, None, None, None, None)


class _Logits:
    """One model's rows and head, in the dtype of its matrix products; makes tiles of logits in the working dtype."""

    def __init__(self, states: Tensor, head: HeadParams, autocast: torch.dtype | None) -> None:
        self.working = working_dtype(states, head.weight)
        dtype = torch.promote_types(states.dtype, head.weight.dtype)
        if autocast is not None and dtype != torch.float64:
            dtype = autocast
        self.states = states.detach().to(dtype)
        self.weight = head.weight.detach().to(dtype)
        self.bias = None if head.bias is None else head.bias.detach().to(self.working)
        self.scale = head.scale

    def fill(
        self, rows: slice, columns: list[slice], buffer: Tensor, temperatures: tuple[float, ...]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Tiles (n, columns) of logits in ``buffer``; for each temperature t the (n, 1) log sums of exp(logits / t)."""
        states = self.states[rows]
        tiles: list[Tensor] = []
        norms: list[list[Tensor]] = [[] for _ in temperatures]
        for part in columns:
            tile = buffer[len(states) * part.start : len(states) * part.stop].view(len(states), -1)
            self._multiply(states, part, tile)
            for t, norm in zip(temperatures, norms, strict=True):
                norm.append(torch.logsumexp(tile if t == 1 else tile / t, 1, keepdim=True))
            tiles.append(tile)
        return tiles, [torch.cat(norm, 1).logsumexp(1, keepdim=True) for norm in norms]

    def _multiply(self, states: Tensor, part: slice, tile: Tensor) -> None:
        if states.dtype == tile.dtype:
            torch.mm(states, self.weight[part].T, out=tile)
        else:
            tile.copy_(states @ self.weight[part].T)
        if self.scale != 1:
            tile.mul_(self.scale)
        if self.bias is not None:
            tile.add_(self.bias[part])


class _Sweep:
    """Losses per row and gradients, chunk by chunk of rows. The gradients stand for (hidden, weight, bias)."""

    def __init__(
        self, head: _Logits, teacher: _Logits | None, labels: Tensor, options: HeadLossOptions, wanted: list[bool]
    ) -> None:
        self.head, self.teacher, self.labels, self.options = head, teacher, labels, options
        self.size = len(head.weight)
        self.values = labels.new_zeros((3, len(labels)), dtype=head.working)  # nll, mean of -log p over labels, kl
        shapes = (head.states.shape, head.weight.shape, (self.size,))
        self.gradients = [
            self.values.new_zeros(shape) if want else None for shape, want in zip(shapes, wanted, strict=True)
        ]
        tile = _CPU_TILE if labels.device.type == "cpu" else _DEVICE_TILE
        self.columns = [slice(i, min(i + tile, self.size)) for i in range(0, self.size, tile)]
        self.chunk = self._chunk_rows()
        self.buffers = [self.values.new_empty(self.chunk * self.size) for side in (head, teacher) if side is not None]

    def _chunk_rows(self) -> int:
        bytes_per_row = self.size * self.values.element_size() * (1 if self.teacher is None else 2)
        most = max(1, self.options.memory // bytes_per_row)
        return math.ceil(len(self.labels) / max(1, math.ceil(len(self.labels) / most)))

    def chunks(self) -> Iterator[slice]:
        """Slices of rows whose logits fit the budget."""
        for start in range(0, len(self.labels), max(1, self.chunk)):
            yield slice(start, min(start + self.chunk, len(self.labels)))

    def sums(self) -> Tensor:
        """ce, nll and temperature^2 KL, summed over rows."""
        nll, uniform, kl = self.values.sum(1, dtype=torch.float64)
        ce = (1 - self.options.label_smoothing) * nll + self.options.label_smoothing * uniform
        return torch.stack([ce, nll, self.options.temperature**2 * kl]).to(self.values.dtype)

    def add(self, rows: slice) -> None:
        """Takes one chunk of rows through both sweeps."""
        t = self.options.temperature
        temperatures = (1.0,) if self.teacher is None or t == 1 else (1.0, t)
        tiles, norms = self.head.fill(rows, self.columns, self.buffers[0], temperatures)
        targets: list[Tensor] = []
        if self.teacher is not None:
            targets, target_norms = self.teacher.fill(rows, self.columns, self.buffers[1], (t,))
        for i, columns in enumerate(self.columns):
            tempered = tiles[i] if t == 1 else (tiles[i] / t).sub_(norms[-1])
            log_p = tiles[i].sub_(norms[0])  # in place: at temperature 1 it is ``tempered`` too
            self._add_cross_entropy(rows, columns, log_p)
            soft = None
            if targets:
                log_soft = targets[i].div_(t).sub_(target_norms[0])
                soft = log_soft.exp()
                self.values[2, rows] += log_soft.sub_(tempered).mul_(soft).sum(1)
            if any(gradient is not None for gradient in self.gradients):
                self._add_gradients(rows, columns, self._logit_gradient(rows, columns, log_p, tempered, soft))

    def _gold(self, rows: slice, columns: slice) -> tuple[Tensor, Tensor]:
        """Where in a tile each row's label is (n, 1), and whether it is there at all."""
        place = self.labels[rows, None] - columns.start
        width = columns.stop - columns.start
        return place.clamp(0, width - 1), (place >= 0) & (place < width)

    def _add_cross_entropy(self, rows: slice, columns: slice, log_p: Tensor) -> None:
        place, here = self._gold(rows, columns)
        self.values[0, rows] -= torch.where(here, log_p.gather(1, place), 0.0)[:, 0]
        if self.options.label_smoothing > 0:
            self.values[1, rows] -= log_p.sum(1) / self.size

    def _logit_gradient(
        self, rows: slice, columns: slice, log_p: Tensor, tempered: Tensor, soft: Tensor | None
    ) -> Tensor:
        """The loss's gradient in a tile of logits, made in the place of ``log_p``."""
        ce, kl = self.options.ce_weight, self.options.kl_weight * self.options.temperature
        if soft is None:
            gradient = log_p.exp_().mul_(ce)
        elif tempered is log_p:
            gradient = log_p.exp_().mul_(ce + kl).sub_(soft, alpha=kl)
        else:
            gradient = log_p.exp_().mul_(ce).add_(tempered.exp_().sub_(soft), alpha=kl)
        smoothing = self.options.label_smoothing
        if smoothing > 0:
            gradient.sub_(ce * smoothing / self.size)
        place, here = self._gold(rows, columns)
        return gradient.scatter_add_(1, place, here.to(gradient) * (-ce * (1 - smoothing)))

    def _add_gradients(self, rows: slice, columns: slice, gradient: Tensor) -> None:
        of_hidden, of_weight, of_bias = self.gradients
        states, weight = self.head.states[rows], self.head.weight[columns]
        # Probabilities over a large vocabulary are below what float16 resolves; bfloat16 has the range.
        dtype = torch.float32 if states.dtype == torch.float16 else states.dtype
        if of_bias is not None:
            of_bias[columns] += gradient.sum(0)
        gradient = gradient.to(dtype)
        if of_hidden is not None:
            _add_product(of_hidden[rows], gradient, weight.to(dtype), self.head.scale)
        if of_weight is not None:
            _add_product(of_weight[columns], gradient.T, states.to(dtype), self.head.scale)


def _add_product(out: Tensor, first: Tensor, second: Tensor, scale: float) -> None:
    if first.dtype == out.dtype:
        out.addmm_(first, second, alpha=scale)
    else:
        out.add_(first @ second, alpha=scale)
