"""What a teacher's residual stream looks like on a sample of data: its second moments, and its norms in a subspace."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cktk.architectures.anatomy import Anatomy
from cktk.architectures.family import family_of
from cktk.protocols import Batch, Side, StateRequest

#: Name of the module, rows (N, in) that it was given, rows (N, out) that it gave.
_Hook = Callable[[str, Tensor, Tensor], None]


@dataclass
class StreamMoments:
    """``second`` (p, p) is the mean of x x' over rows of mean square 1, all norms counting alike.

    ``energy`` and ``mean`` hold, for each linear that leads back into the stream, mean squares and means of its inputs.
    ``rows`` is how many rows the smaller side had.
    """

    second: Tensor
    energy: dict[str, Tensor]
    mean: dict[str, Tensor]
    rows: int


@dataclass
class NormMoments:
    """A norm seen in the subspace of a basis B: means over rows of what it was given and of what it gave.

    x = the normalised B' u of its input u, z = B' y of its output y: ``x``, ``xx``, ``z`` and ``xz`` are (d), products
    elementwise; ``y`` is (p). ``shrink`` is the factor that makes x nearest to B' of the normalised u.
    """

    x: Tensor
    xx: Tensor
    z: Tensor
    xz: Tensor
    y: Tensor
    shrink: float


def normalised(rows: Tensor, norm: nn.Module, centred: bool) -> Tensor:
    """``rows`` as ``norm`` makes them before gain and bias: mean square 1, and mean 0 where ``centred``."""
    if centred:
        rows = rows - rows.mean(-1, keepdim=True)
    eps: Any = getattr(norm, "eps", None) or getattr(norm, "variance_epsilon", 0.0)
    unit: Tensor = rows * (rows.square().mean(-1, keepdim=True) + eps).rsqrt()
    return unit


class _Means:
    """Means over all rows of quantities that come as sums."""

    def __init__(self) -> None:
        self.rows = 0
        self._sums: dict[str, Tensor] = {}

    def add(self, rows: int, **sums: Tensor) -> None:
        self.rows += rows
        for name, value in sums.items():
            self._sums[name] = self._sums[name] + value.double() if name in self._sums else value.double()

    def __getitem__(self, name: str) -> Tensor:
        return self._sums[name] / max(1, self.rows)


def stream_moments(model: PreTrainedModel, anatomy: Anatomy, batches: Iterable[Batch]) -> StreamMoments:
    """Run ``model`` over ``batches`` and look at the inputs of all norms, and at the outputs of those that are kept."""
    stream = {side: _Means() for side in anatomy.norms.values()}
    inner = {block.output: _Means() for block in anatomy.blocks}

    def see_norm(name: str, given: Tensor, gave: Tensor) -> None:
        norm = model.get_submodule(name)
        states = torch.cat([given, gave]) if name in anatomy.kept else given
        unit = normalised(states, norm, False)
        stream[anatomy.norms[name]].add(len(given), second=unit.T @ unit * (len(given) / max(1, len(states))))

    def see_linear(name: str, given: Tensor, _: Tensor) -> None:
        inner[name].add(len(given), energy=given.square().sum(0), mean=given.sum(0))

    hooks: dict[str, tuple[Side, _Hook]] = {name: (side, see_norm) for name, side in anatomy.norms.items()}
    hooks |= {block.output: (block.side, see_linear) for block in anatomy.blocks}
    _run(model, batches, hooks)
    norms = list(anatomy.norms.values())
    return StreamMoments(
        torch.stack([found["second"] * norms.count(side) / len(norms) for side, found in stream.items()]).sum(0),
        {name: found["energy"] for name, found in inner.items()},
        {name: found["mean"] for name, found in inner.items()},
        min(found.rows for found in inner.values()),
    )


def norm_moments(
    model: PreTrainedModel, anatomy: Anatomy, batches: Iterable[Batch], basis: Tensor
) -> dict[str, NormMoments]:
    """How the norms of ``model`` act on ``batches`` in the subspace with the orthonormal ``basis`` (p, d)."""
    found = {name: _Means() for name in anatomy.norms}

    def see(name: str, given: Tensor, gave: Tensor) -> None:
        norm = model.get_submodule(name)
        x, z = normalised(given @ basis, norm, anatomy.centred), gave @ basis
        aim = normalised(given, norm, anatomy.centred) @ basis
        sums = {"x": x.sum(0), "xx": x.square().sum(0), "z": z.sum(0), "xz": (x * z).sum(0), "y": gave.sum(0)}
        found[name].add(len(given), **sums, aim=(aim * x).sum())

    _run(model, batches, {name: (side, see) for name, side in anatomy.norms.items()})
    return {
        name: NormMoments(m["x"], m["xx"], m["z"], m["xz"], m["y"], float(m["aim"] / m["xx"].sum()))
        for name, m in found.items()
    }


@torch.no_grad()
def _run(model: PreTrainedModel, batches: Iterable[Batch], hooks: Mapping[str, tuple[Side, _Hook]]) -> None:
    """Run ``model`` in eval mode; the hook of a module is shown the rows that count on its side."""
    adapter = family_of(model.config.model_type, "the teacher").adapter(model)
    rows: dict[Side, Tensor] = {}

    def watcher(name: str, side: Side, hook: _Hook) -> Any:
        def watch(_: Any, arguments: tuple[Tensor, ...], output: Tensor) -> None:
            hook(name, *(states.flatten(0, 1)[rows[side]] for states in (arguments[0], output)))

        return watch

    training = model.training
    model.train(False)
    with ExitStack() as stack:
        for name, (side, hook) in hooks.items():
            stack.enter_context(model.get_submodule(name).register_forward_hook(watcher(name, side, hook)))
        for batch in batches:
            moved = batch.to(model.device)
            rows.update({side: moved.rows(side).flatten().nonzero().squeeze(1) for side in ("encoder", "decoder")})
            adapter(moved, StateRequest(head=True))
    model.train(training)
