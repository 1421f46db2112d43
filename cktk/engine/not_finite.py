"""Which micro-batch made a loss NaN or infinite: looked for only when it has happened."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from cktk.engine.step import Step, StepOutput
from cktk.protocols import Batch


def culprits(step: Step, batches: Sequence[Batch], evaluate: Callable[[int], StepOutput]) -> list[list[int]]:
    """The row numbers of each of ``batches`` whose own losses are not finite.

    ``evaluate`` runs the micro-batch of an index through phase "evaluate" of ``step`` as it was run in the update.
    """
    with torch.no_grad():
        return [batch.ids for index, batch in enumerate(batches) if not _finite(step, evaluate(index))]


def _finite(step: Step, output: StepOutput) -> bool:
    totals, criterion = output.totals, step.train_criterion
    if output.statistics is not None:
        pooled = criterion.pool(output.statistics, lambda tensor: tensor)
        totals.take(criterion.pooled_term(criterion.coefficients(pooled)))
    return all(map(math.isfinite, totals.sums().values()))
