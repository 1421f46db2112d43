"""Settings of sequence-level distillation. Torch-free, so that ``--help`` stays fast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cktk.config.options import option


@dataclass(frozen=True)
class NewTargetsConfig:
    """sequence-level distillation"""

    dest_dir: str | None = option(
        None,
        metavar="DIR",
        help="write a data folder whose --gen-subset has the outputs as targets, all else as in the data folder; an "
        "unfinished one is continued",
    )
    empty_hypotheses: Literal["drop", "keep"] = option(
        "drop", help="rows of that split whose output is empty: leave them out, or keep them"
    )
