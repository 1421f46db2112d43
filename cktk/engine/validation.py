"""Validation: the loss's parts over the whole split, and translation quality by beam search."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch import nn

from cktk.distributed.world import World
from cktk.engine.step import Step
from cktk.engine.teacher import Teacher
from cktk.engine.totals import Totals, global_counts
from cktk.errors import ConfigError, DataError
from cktk.protocols import Batch
from cktk.utils.words import unknown_name

#: Further figures of a validation, e.g. BLEU; called on all ranks with the student in eval mode.
Scorer = Callable[[], Mapping[str, float]]


class Validator:
    """Averages every part of the criterion over a split, with the same units as in training.

    Statistics (CKA) are merged over the whole split, so that their value does not depend on the batches.
    ``batches`` starts a new pass over this rank's share of the split, dummies included.
    """

    def __init__(
        self,
        step: Step,
        teacher: Teacher | None,
        batches: Callable[[], Iterator[Batch]],
        world: World,
        scorer: Scorer | None = None,
    ) -> None:
        self._step, self._teacher, self._batches = step, teacher, batches
        self._world, self._scorer = world, scorer

    def check(self, metric: str) -> None:
        """Raise `ConfigError` unless a validation will give ``metric``; looks at one micro-batch."""
        with evaluation_mode(self._step), torch.no_grad():
            known = {*self._losses(islice(self._batches(), 1)), *(("bleu", "chrf") if self._scorer else ())}
        if metric not in known:
            names = sorted(name for name in known if "/" not in name)
            hint = " (bleu and chrf need --eval-bleu)" if metric in ("bleu", "chrf") else ""
            raise ConfigError(f"--best-checkpoint-metric: {unknown_name(metric, names)}{hint}")

    def run(self) -> dict[str, float]:
        """All figures of one validation; the student's mode is what it was before."""
        with evaluation_mode(self._step), torch.no_grad():
            values = self._losses(self._batches())
            if self._scorer:
                values.update(self._scorer())
        return values

    def _losses(self, batches: Iterable[Batch]) -> dict[str, float]:
        criterion = self._step.train_criterion
        totals, seen = Totals(), []
        statistics: Any = None
        for batch in batches:
            batch = batch.to(self._world.device)
            teacher = self._teacher.states(batch) if self._teacher else None
            output = self._step("evaluate", batch, teacher, prior=statistics)
            totals.add(output.totals)
            seen.append(batch.counts())
            statistics = output.statistics
        if not seen:
            raise DataError("the validation split is empty; give another --valid-subset or --disable-validation")
        if statistics is not None:
            pooled = criterion.pool(statistics, self._world.all_reduce)
            totals.take(criterion.pooled_term(criterion.coefficients(pooled)))
        return totals.averages(
            global_counts(seen, self._world.device, self._world.all_reduce)[0], self._world.all_reduce
        )


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Eval mode inside, and the mode from before afterwards, whatever happens."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)
