"""What classifiers and regressions answer to a split, and how right they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cktk.architectures.states.encoder_adapter import encoder_inputs
from cktk.data.iterators import MicroBatches
from cktk.distributed.world import World
from cktk.evaluation.glue import CLASSIFICATION, REGRESSION, known_rows, score_answers


@torch.no_grad()
def answers(
    model: Any, batches: MicroBatches, rows: int, world: World, done: Callable[[int], None] | None = None
) -> npt.NDArray[np.float64]:
    """The logits (rows, C) of ``model`` for each row of a split, the same on all ranks.

    ``batches`` are this rank's of one pass over it; ``done`` is called with the rows just answered. The model is run in
    the mode that it is in.
    """
    numbers = [torch.zeros(0, dtype=torch.int64, device=world.device)]
    logits = [torch.zeros(0, int(model.config.num_labels), dtype=torch.float64, device=world.device)]
    while taken := batches.next_update(1):
        batch = taken[0].to(world.device)
        if batch.dummy:
            continue
        numbers.append(torch.tensor(batch.ids, device=world.device))
        logits.append(model(**encoder_inputs(model.config, batch.inputs)).logits.double())
        if done is not None:
            done(len(batch.ids))
    order = world.gather_rows(torch.cat(numbers)).cpu()
    found = torch.full((rows, logits[0].shape[1]), torch.nan, dtype=torch.float64)
    found[order] = world.gather_rows(torch.cat(logits)).cpu()
    return found.numpy()


class AnswerScorer:
    """The metrics of a split whose labels are ``gold``; the same values on all ranks.

    ``batches`` starts a pass over this rank's share of the split, ``labels`` are the classes (None: numbers). Raises
    `DataError`, which calls the split ``what``, if none of its labels is known.
    """

    def __init__(
        self,
        model: Any,
        batches: Callable[[], MicroBatches],
        gold: npt.NDArray[Any],
        labels: tuple[str, ...] | None,
        world: World,
        what: str,
    ) -> None:
        self._model, self._batches, self._world = model, batches, world
        self._gold, self._labels, self._what = gold, labels, what
        #: The names of the figures.
        self.figures = REGRESSION if labels is None else CLASSIFICATION
        known_rows(gold, labels, what)  # says what is wrong now and not after the first epoch

    def __call__(self) -> dict[str, float]:
        """Run the model over the split and compare."""
        found = answers(self._model, self._batches(), len(self._gold), self._world)
        return score_answers(self._gold, found, self._labels, self._what)
