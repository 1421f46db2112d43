"""Attention maps of teacher and students side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cktk.report.attention import Map, Maps

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_KINDS = {"encoder": "encoder self-attention", "decoder": "decoder self-attention", "cross": "cross-attention"}
#: Inches of a token, and of what stands beside the maps.
_TOKEN, _BESIDE = 0.21, 1.0


def attention_figure(maps: Maps) -> Figure:
    """A panel a model with one scale of colours; rows are the tokens that look, columns those that are looked at."""
    from matplotlib.figure import Figure

    width = max(1.9, _TOKEN * len(maps.keys))
    height = max(1.9, _TOKEN * len(maps.queries))
    figure = Figure(figsize=(len(maps.maps) * (width + 0.3) + 2 * _BESIDE, height + 1.8))
    panels: Any = figure.subplots(1, len(maps.maps), sharey=True, squeeze=False)
    highest = max(float(each.weights.max()) for each in maps.maps)
    for axes, each in zip(panels[0], maps.maps, strict=True):
        image = axes.imshow(each.weights, cmap="Blues", vmin=0.0, vmax=highest, aspect="equal")
        _write_tokens(axes, maps, each)
    panels[0, 0].set_yticks(range(len(maps.queries)), maps.queries, fontsize=8)
    panels[0, 0].set_ylabel("token that looks")
    bar = figure.colorbar(image, ax=panels[0].tolist(), fraction=0.05, pad=0.02, shrink=0.8)
    bar.set_label("attention")
    bar.outline.set_visible(False)
    head = "mean over heads" if maps.head is None else f"head {maps.head}"
    figure.suptitle(f"{_KINDS[maps.kind].capitalize()}, {head}", x=0.01, ha="left", fontweight="bold", fontsize=12)
    return figure


def _write_tokens(axes: Axes, maps: Maps, each: Map) -> None:
    title = f"{each.name}, layer {each.layer}"
    if each.kl is not None:
        title += f"\nKL(teacher ‖ student) {each.kl:.3g} nats"
    axes.set_title(title, fontsize=9, fontweight="normal")
    axes.set_xticks(range(len(maps.keys)), maps.keys, rotation=90, fontsize=8)
    axes.set_xlabel("token looked at")
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_color("#BBBBBB")
        spine.set_visible(True)
    axes.tick_params(length=0)
