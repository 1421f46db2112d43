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
    rows: dict[str, int],
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    pairs=PAIRS,
    widths=WIDTHS,
    noise: float = 0.7,
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
            state = common[pair.side] @ draw(3, width) + noise * draw(rows[pair.side], width) + 2 * draw(width)
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


def naive_cka(s: Tensor, t: Tensor, form: str = "sqrt", eps: float = 0.0) -> Tensor:
    """1 - |T'S| / sqrt(|S'S| |T'T|) of centred rows, by autograd; or 1 - k^2, or 1 - debiased CKA."""
    s, t = centred(s), centred(t)
    if form == "debiased":
        return 1 - naive_hsic(s, t) / ((naive_hsic(t, t).sqrt() + eps) * (naive_hsic(s, s).sqrt() + eps))
    k = naive_alignment(t.T @ s, s.T @ s, t.T @ t, eps)
    return 1 - (k**2 if form == "squared" else k)


def naive_alignment(cross: Tensor, student: Tensor, teacher: Tensor, eps: float = 0.0) -> Tensor:
    """k of given matrices."""
    a, c, b = ((matrix**2).sum().sqrt() for matrix in (cross, student, teacher))
    return a / ((b + eps) * (c + eps)).sqrt()


def naive_hsic(x: Tensor, y: Tensor) -> Tensor:
    """The unbiased estimator from kernel matrices without diagonal (Song et al., 2012, eq. 4)."""
    n = len(x)
    off = 1 - torch.eye(n, dtype=x.dtype)
    k, m = (x @ x.T) * off, (y @ y.T) * off
    ones = torch.ones(n, dtype=x.dtype)
    mixed = ones @ k @ m @ ones * 2 / (n - 2)
    return (torch.trace(k @ m) + (ones @ k @ ones) * (ones @ m @ ones) / ((n - 1) * (n - 2)) - mixed) / (n * (n - 3))


def naive_procrustes(s: Tensor, t: Tensor) -> Tensor:
    """1 - |T'S|_* / (|S| |T|) of centred rows, by autograd."""
    s, t = centred(s), centred(t)
    return 1 - torch.linalg.svdvals(t.T @ s).sum() / ((s**2).sum() * (t**2).sum()).sqrt()


def centred(rows: Tensor) -> Tensor:
    return rows.double() - rows.double().mean(0)
