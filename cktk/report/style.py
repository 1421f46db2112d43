"""What all figures have in common: colours, axes, and files that appear whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cktk.utils.files import atomic_file

if TYPE_CHECKING:  # half a second, which a table does without
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Okabe and Ito's colours, which people with any kind of colour vision tell apart, without yellow and black.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#666666")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
_DASHES = ("-", "--", ":", "-.")
_INSIDE = 6  # entries of a legend that fit beside the data
_INK, _FAINT = "#222222", "#DDDDDD"

#: Figures by the names that logs have for them.
_TITLES = {
    "accuracy": "accuracy (%)",
    "f1": "F1 (%)",
    "matthews": "Matthews correlation x 100",
    "pearson": "Pearson correlation x 100",
    "spearman": "Spearman correlation x 100",
    "bleu": "BLEU",
    "chrf": "chrF",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "rougeLsum": "ROUGE-Lsum",
    "ce": "cross entropy (nats)",
    "kl": "KL to the teacher (nats)",
}

_SETTINGS: Any = {
    "font.size": 10,
    "font.family": "DejaVu Sans",
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.grid": True,
    "grid.color": _FAINT,
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
    "lines.markersize": 6,
    "figure.constrained_layout.use": True,
    "text.parse_math": False,  # a dollar is a token like others
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "cktk",  # the same runs give the same bytes
}


class Look(NamedTuple):
    """How one line is drawn."""

    color: str
    marker: str
    linestyle: str


def looks(number: int) -> list[Look]:
    """So many looks, each different: colours first, then dashes."""
    pairs = ((color, dashes) for dashes in cycle(_DASHES) for color in _COLOURS)
    found = zip(pairs, cycle(_MARKERS), strict=False)
    return [Look(color, marker, dashes) for (color, dashes), marker in islice(found, number)]


def metric_title(metric: str, split: str | None) -> str:
    """What stands at the axis of a metric: its name, unit and split."""
    name, _, part = metric.partition("/")
    words = _TITLES.get(name, name) + (f" {part}" if part else "")
    return f"{words}, {split} split" if split else words


def legend(axes: Axes, title: str | None = None, *, inside: bool = True) -> None:
    """A legend where it hides nothing: beside the data if there is room, or right of the axes."""
    if inside and len(axes.get_legend_handles_labels()[0]) <= _INSIDE:
        axes.legend(loc="best", title=title, title_fontsize=9, alignment="left")
    else:
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), title=title, title_fontsize=9, alignment="left")


@contextmanager
def styled() -> Iterator[None]:
    """Settings of matplotlib for figures made and written inside; those of the process stay as they are."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS)
        yield


def write(figure: Figure, folder: Path, name: str, formats: Sequence[str]) -> list[Path]:
    """The files ``name`` of ``figure`` in ``folder``, one a format; each appears whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for kind in dict.fromkeys(formats):
        metadata = {"Date": None} if kind == "svg" else None
        path = folder / f"{name}.{kind}"
        with atomic_file(path) as stream:
            figure.savefig(stream, format=kind, dpi=160, metadata=metadata)
        written.append(path)
    return written
