"""Random states of a small student and teacher, and naive float64 references written from the formulas."""

from __future__ import annotations

import torch
from torch import Tensor

from cktk.protocols import LayerPair, ModelOutput

PAIRS = (
    LayerPair("encoder", 0, 0),
    LayerPair("encoder", 1, 2),
    LayerPair("decoder", 0, 0),
    LayerPair("decoder", 1, 3),  # shares its teacher layer with the next
    LayerPair("decoder", 2, 3),
)
WIDTHS = {"encoder": (5, 7), "decoder": (5, 7)}


def states(
    rows: dict[str, int], *, seed: int = 0, dtype: torch.dtype = torch.float64, pairs=PAIRS, widths=WIDTHS
) -> tuple[ModelOutput, ModelOutput]:
    """Student and teacher states that share a few directions, with means away from zero."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    common = {side: draw(rows[side], 3) for side in rows}
    student, teacher = ModelOutput({}), ModelOutput({})
    for pair in pairs:
        for output, layer, width in (
            (student, pair.student, widths[pair.side][0]),
            (teacher, pair.teacher, widths[pair.side][1]),
        ):
            state = common[pair.side] @ draw(3, width) + 0.7 * draw(rows[pair.side], width) + 2 * draw(width)
            output.hidden.setdefault((pair.side, layer), state.to(dtype))
    return student, teacher


def with_gradients(output: ModelOutput) -> ModelOutput:
    """The same states as leaves that want gradients."""
    return ModelOutput({key: state.detach().clone().requires_grad_() for key, state in output.hidden.items()})


def split(output: ModelOutput, sizes: dict[str, list[int]]) -> list[ModelOutput]:
    """Consecutive pieces of the rows of each side."""
    pieces = len(next(iter(sizes.values())))
    chunks = {key: state.split(sizes[key[0]]) for key, state in output.hidden.items()}
    return [ModelOutput({key: chunks[key][i] for key in chunks}) for i in range(pieces)]


def naive_cka(s: Tensor, t: Tensor) -> Tensor:
    """1 - |T'S| / sqrt(|S'S| |T'T|) of centred rows, by autograd."""
    s, t = s.double(), t.double()
    s, t = s - s.mean(0), t - t.mean(0)
    a = ((t.T @ s) ** 2).sum().sqrt()
    c = ((s.T @ s) ** 2).sum().sqrt()
    b = ((t.T @ t) ** 2).sum().sqrt()
    return 1 - a / (b * c).sqrt()
