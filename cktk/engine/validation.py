"""Validation: the loss's parts over the whole split, and translation quality by beam search."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
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
from cktk.protocols import Batch, Scorer, Unit
from cktk.utils.words import unknown_name

#: Figures that come of a flag, and its name.
_FLAGS = {
    **dict.fromkeys(("bleu", "chrf"), "--eval-bleu"),
    **dict.fromkeys(("rouge1", "rouge2", "rougeL", "rougeLsum"), "--eval-rouge"),
    **dict.fromkeys(("accuracy", "f1", "matthews", "pearson", "spearman"), "--task glue and --eval-metrics"),
}


class Validator:
    """Averages every part of the criterion over a split, with the same units as in training.

    Statistics (CKA) are merged over the whole split, so that their value does not depend on the batches. ``passes``
    start a new pass over this rank's share of the split, dummies included: one, or one for each of several corpora, by
    name. With several, the parts that are sums (not the merged statistics, nor ``loss`` with them) are also given for
    each corpus as ``kl/NAME``. ``sums`` name further figures that are sums of parts, where all of these are there.
    """

    def __init__(
        self,
        step: Step,
        teacher: Teacher | None,
        passes: Mapping[str, Callable[[], Iterator[Batch]]],
        world: World,
        scorer: Scorer | None = None,
        sums: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self._step, self._teacher, self._passes = step, teacher, passes
        self._world, self._scorer, self._sums = world, scorer, sums or {}

    def check(self, metric: str) -> None:
        """Raise `ConfigError` unless a validation will give ``metric``; looks at one micro-batch."""
        with evaluation_mode(self._step), torch.no_grad():
            known = {*self._losses(1), *(self._scorer.figures if self._scorer else ())}
        if metric not in known:
            # With many corpora their own figures would hide the others: they are for who asks for one of them.
            names = sorted(name for name in known if "/" in metric or "/" not in name)
            hint = f" ({metric} needs {_FLAGS[metric]})" if metric in _FLAGS else ""
            raise ConfigError(f"--best-checkpoint-metric: {unknown_name(metric, names)}{hint}")

    def run(self) -> dict[str, float]:
        """All figures of one validation; the student's mode is what it was before."""
        with evaluation_mode(self._step), torch.no_grad():
            values = self._losses()
            if self._scorer:
                values.update(self._scorer())
        return values

    def _losses(self, most: int | None = None) -> dict[str, float]:
        """The figures of the first ``most`` micro-batches (None: all) of each pass."""
        criterion = self._step.train_criterion
        parts: dict[str, _Part] = {}
        statistics: Any = None
        for name, start in self._passes.items():
            parts[name] = part = _Part()
            for batch in islice(start(), most):
                batch = batch.to(self._world.device)
                teacher = self._teacher.states(batch) if self._teacher else None
                output = self._step("evaluate", batch, teacher, prior=statistics)
                part.totals.add(output.totals)
                part.seen.append(batch.counts())
                statistics = output.statistics
            if not part.seen:
                split = f"the validation split of {name}" if name else "the validation split"
                raise DataError(f"{split} is empty; give another --valid-subset or --disable-validation")
        whole = _Part()
        for part in parts.values():
            whole.totals.add(part.totals)
            whole.seen += part.seen
        if statistics is not None:
            pooled = criterion.pool(statistics, self._world.all_reduce)
            whole.totals.take(criterion.pooled_term(criterion.coefficients(pooled)))
        values = self._averages(whole)
        for name, part in parts.items() if len(parts) > 1 else ():
            hidden = {"loss"} if statistics is not None else set()
            own = self._averages(part).items()
            values |= {f"{key}/{name}": value for key, value in own if "/" not in key and key not in hidden}
        return values

    def _averages(self, part: _Part) -> dict[str, float]:
        reduce = self._world.all_reduce
        values = part.totals.averages(global_counts(part.seen, self._world.device, reduce)[0], reduce)
        for name, addends in self._sums.items():
            if all(addend in values for addend in addends):
                values[name] = sum(values[addend] for addend in addends)
        return values


class _Part:
    """What was seen of one corpus, or of all."""

    def __init__(self) -> None:
        self.totals = Totals()
        self.seen: list[dict[Unit, int]] = []


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Eval mode inside, and the mode from before afterwards, whatever happens."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)
