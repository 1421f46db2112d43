"""A training in stages: what changes between two epochs because the criterion does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from cktk.engine.step import StagedCriterion
from cktk.engine.update import UpdateResult


class Stages:
    """Takes ``criterion`` from stage to stage, and freezes ``body`` where a stage trains the output head alone.

    A frozen parameter gets no gradient, so that optimizers pass it over, decay and all; their record of it stays.
    """

    def __init__(self, criterion: StagedCriterion, body: Sequence[nn.Parameter]) -> None:
        self._criterion = criterion
        self._body = [parameter for parameter in body if parameter.requires_grad]
        self._freeze()

    @property
    def last(self) -> bool:
        """Whether this is the last stage."""
        return self._criterion.stage == len(self._criterion.plan)

    @property
    def name(self) -> str:
        """What is trained now."""
        return self._criterion.plan[self._criterion.stage - 1][0]

    @property
    def words(self) -> str:
        """``stage 2 of 7 (encoder layer 2)``."""
        return f"stage {self._criterion.stage} of {len(self._criterion.plan)} ({self.name})"

    @property
    def epochs_before_last(self) -> int | None:
        """After how many epochs the last stage begins; None where that depends on losses."""
        return self._criterion.epochs_before_last

    def next(self) -> None:
        """Go on to the next stage, whatever the rule says."""
        self._criterion.next_stage()
        self._freeze()

    def figures(self) -> dict[str, float]:
        """Numbers to log where a stage begins."""
        return self._criterion.stage_figures()

    def observe(self, result: UpdateResult) -> None:
        """Take in an update that was made."""
        self._criterion.observe(result.values, result.counts)

    def end_epoch(self) -> bool:
        """End an epoch; whether the next stage begins."""
        changed = self._criterion.end_epoch()
        self._freeze()
        return changed

    def state_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return self._criterion.stage_state()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``; raises `CheckpointError` for that of other stages."""
        self._criterion.load_stage_state(state)
        self._freeze()

    def _freeze(self) -> None:
        for parameter in self._body:
            parameter.requires_grad_(not self._criterion.body_frozen)
