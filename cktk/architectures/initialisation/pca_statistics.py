"""What a teacher's residual stream looks like on a sample of data: its second moments, and its norms in a subspace."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cktk.architectures.families.family import family_of
from cktk.architectures.initialisation.anatomy import Anatomy, Transform
from cktk.protocols import Batch, Side, StateRequest

#: Name of the module, rows (N, in) that it was given, rows (N, out) that it gave.
_Hook = Callable[[str, Tensor, Tensor], None]
#: Variance of a normalised feature below which nothing can be learned about a norm's gain from it.
_NO_VARIANCE = 1e-6
#: What a head's dense layer gave before its activation, and what enters the last linear: rows (N, p) that are scored.
_HeadHook = Callable[[Tensor, Tensor], None]


@dataclass
class StreamMoments:
    """``second`` (p, p) is the mean of x x' over rows of mean square 1, all norms counting alike.

    ``energy`` and ``mean`` hold, for each linear that leads back into the stream, mean squares and means of its inputs.
    ``rows`` is how many rows the smaller side had. ``head`` is there where it was asked for.
    """

    second: Tensor
    energy: dict[str, Tensor]
    mean: dict[str, Tensor]
    rows: int
    head: HeadMoments | None = None


@dataclass
class HeadMoments:
    """What enters the last linear of an encoder's head: means and variances (p) over ``rows`` rows that are scored."""

    mean: Tensor
    variance: Tensor
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

    def fitted(self, *, shifted: bool) -> tuple[Tensor, Tensor]:
        """Gain and bias (d) with which x comes nearest to z, axis by axis; not ``shifted``, the bias is not used."""
        mean = self.x if shifted else torch.zeros_like(self.x)
        gain = (self.xz - mean * self.z) / (self.xx - mean.square()).clamp(min=_NO_VARIANCE)
        return gain, self.z - gain * self.x


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
        return self._sums.get(name, torch.zeros(())) / max(1, self.rows)


def stream_moments(
    model: PreTrainedModel, anatomy: Anatomy, batches: Iterable[Batch], *, head: bool = False
) -> StreamMoments:
    """Run ``model`` over ``batches`` and look at the inputs of all norms, and at the outputs of those that are kept.

    With ``head`` at what enters the last linear of an encoder's head too. Where that is tied to the embedding, it is
    read in the directions of the stream and counts as one more norm.
    """
    stream: dict[str, _Means] = {side: _Means() for side in anatomy.norms.values()}
    inner = {block.output: _Means() for block in anatomy.blocks}
    scored = _Means()

    def see_norm(name: str, given: Tensor, gave: Tensor) -> None:
        norm = model.get_submodule(name)
        states = torch.cat([given, gave]) if name in anatomy.kept else given
        unit = normalised(states, norm, False)
        stream[anatomy.norms[name]].add(len(given), second=unit.T @ unit * (len(given) / max(1, len(states))))

    def see_linear(name: str, given: Tensor, _: Tensor) -> None:
        inner[name].add(len(given), energy=given.square().sum(0), mean=given.sum(0))

    def see_head(_: Tensor, features: Tensor) -> None:
        unit = torch.nn.functional.normalize(features) * features.shape[1] ** 0.5
        scored.add(len(features), energy=features.square().sum(0), mean=features.sum(0), second=unit.T @ unit)

    hooks: dict[str, tuple[Side, _Hook]] = {name: (side, see_norm) for name, side in anatomy.norms.items()}
    hooks |= {block.output: (block.side, see_linear) for block in anatomy.blocks}
    _run(model, batches, hooks, anatomy.transform if head else None, see_head)
    norms: list[str] = list(anatomy.norms.values())
    if head and anatomy.transform and anatomy.transform.tied:
        stream["head"] = scored
        norms.append("head")
    return StreamMoments(
        torch.stack([found["second"] * norms.count(part) / len(norms) for part, found in stream.items()]).sum(0),
        {name: found["energy"] for name, found in inner.items()},
        {name: found["mean"] for name, found in inner.items()},
        min(found.rows for found in inner.values()),
        HeadMoments(scored["mean"], scored["energy"] - scored["mean"].square(), scored.rows) if head else None,
    )


def norm_moments(
    model: PreTrainedModel,
    anatomy: Anatomy,
    batches: Iterable[Batch],
    basis: Tensor,
    neurons: Tensor | None = None,
) -> dict[str, NormMoments]:
    """How the norms of ``model`` act on ``batches`` in the subspace with the orthonormal ``basis`` (p, d).

    With ``neurons`` (p, d), the norm in a head's transform too, in the subspace of these. What it is given there is not
    a projection but what a student has: the activation of the projected.
    """
    found = {name: _Means() for name in anatomy.norms}
    transform = anatomy.transform if neurons is not None else None

    def add(name: str, x: Tensor, z: Tensor, gave: Tensor, aim: Tensor) -> None:
        sums = {"x": x.sum(0), "xx": x.square().sum(0), "z": z.sum(0), "xz": (x * z).sum(0), "y": gave.sum(0)}
        found.setdefault(name, _Means()).add(len(x), **sums, aim=(aim * x).sum())

    def see(name: str, given: Tensor, gave: Tensor) -> None:
        norm = model.get_submodule(name)
        aim = normalised(given, norm, anatomy.centred) @ basis
        add(name, normalised(given @ basis, norm, anatomy.centred), gave @ basis, gave, aim)

    def see_head(given: Tensor, gave: Tensor) -> None:
        assert transform is not None and transform.norm and transform.activation and neurons is not None
        x = normalised(transform.activation(given @ neurons), model.get_submodule(transform.norm), True)
        add(transform.norm, x, gave @ neurons, gave, x)

    _run(model, batches, {name: (side, see) for name, side in anatomy.norms.items()}, transform, see_head)
    return {
        name: NormMoments(m["x"], m["xx"], m["z"], m["xz"], m["y"], float(m["aim"] / m["xx"].sum()))
        for name, m in found.items()
    }


@torch.no_grad()
def _run(
    model: PreTrainedModel,
    batches: Iterable[Batch],
    hooks: Mapping[str, tuple[Side, _Hook]],
    transform: Transform | None,
    see_head: _HeadHook,
) -> None:
    """Run ``model`` in eval mode; the hook of a module is shown the rows that count on its side.

    With a ``transform``, ``see_head`` is shown what the head makes of the rows that are scored.
    """
    adapter = family_of(model.config.model_type, "the teacher").adapter(model)
    sides: set[Side] = {side for side, _ in hooks.values()}
    request = StateRequest({"encoder": (0,)}, head="decoder" in sides or transform is not None)
    rows: dict[Side, Tensor] = {}
    dense: list[Tensor] = []

    def watcher(name: str, side: Side, hook: _Hook) -> Any:
        def watch(_: Any, arguments: tuple[Tensor, ...], output: Tensor) -> None:
            hook(name, *(states.flatten(0, 1)[rows[side]] for states in (arguments[0], output)))

        return watch

    training = model.training
    model.train(False)
    with ExitStack() as stack:
        for name, (side, hook) in hooks.items():
            stack.enter_context(model.get_submodule(name).register_forward_hook(watcher(name, side, hook)))
        if transform is not None:
            watched = model.get_submodule(transform.dense)
            stack.enter_context(watched.register_forward_hook(lambda _, __, output: dense.append(output)))
        for batch in batches:
            moved = batch.to(model.device)
            rows.update({side: moved.rows(side).flatten().nonzero().squeeze(1) for side in sides})
            features = adapter(moved, request).head_input
            if transform is not None and features is not None:
                see_head(dense[-1], features)
                dense.clear()
    model.train(training)
