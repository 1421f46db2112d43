"""Distillation from internal representations in stages ("Knowledge Distillation from Internal Representations",
Aguilar et al., AAAI 2020): attention and first positions of one layer after the other, then the output head.

Extensions of cktk, none of them in the paper: CKA where widths differ, attention averaged over heads where their
numbers differ, encoder-decoders.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from torch import nn

from cktk.criteria.attention import AttentionLoss, attention_pairs
from cktk.criteria.base import HiddenLoss
from cktk.criteria.compose import Criterion, head_options
from cktk.criteria.configs import InternalKdConfig
from cktk.criteria.internal.first_rows import FirstCka, FirstCosine
from cktk.criteria.internal.stages import StageSchedule
from cktk.errors import ConfigError
from cktk.protocols import LayerPair, Matching, Needs, Side, Unit

Pairs = tuple[LayerPair, ...]


@dataclass(frozen=True)
class Stage:
    """What is trained in one stage: the pairs that are matched, those of them that decide about its end, the head."""

    name: str
    pairs: Pairs
    deciding: Pairs
    head: bool


def plan_stages(config: InternalKdConfig, pairs: Pairs) -> list[Stage]:
    """The stages that ``config`` asks for; the last one is that of the head.

    Layers come from the bottom up, those of an encoder before those of its decoder; pairs that share a student layer
    are matched together. `all` without an end, or with the layers kept at the end, is a single stage.
    """
    layers: dict[tuple[Side, int], Pairs] = {}
    for pair in sorted(pairs, key=lambda pair: (pair.side != "encoder", pair.student)):
        layers[pair.side, pair.student] = (*layers.get((pair.side, pair.student), ()), pair)
    head = Stage("head", pairs if config.keep_internal_at_end else (), (), head=True)
    if config.procedure == "all":
        everything = Stage("all layers and head", pairs, pairs, head=True)
        ends = (config.stage_epochs or config.cosine_threshold) and not config.keep_internal_at_end
        return [everything, head] if ends else [everything]
    stages: list[Stage] = []
    below: Pairs = ()
    for (side, layer), own in layers.items():
        kept = below if config.procedure == "stacked" else ()
        stages.append(Stage(f"{side} layer {layer}", (*kept, *own), own, head=False))
        below = (*below, *own)
    return [*stages, replace(head, name="head and all layers" if config.keep_internal_at_end else "head")]


class InternalKd(nn.Module):
    """A criterion that goes through ``stages``, a `Criterion` each, as its `StageSchedule` says.

    In eval mode it is the same in all stages, so that validations can be compared with one another: the heads and all
    layers are looked at, and ``loss`` is that of the last stage.
    """

    def __init__(self, config: InternalKdConfig, matching: Matching) -> None:
        super().__init__()
        if not (pairs := matching.pairs):
            raise ConfigError("there are no layer pairs to match; give a --layer-map, or use --criterion kl_kd")
        self._stages = plan_stages(config, pairs)
        make = _Maker(config, matching)
        self._criteria = nn.ModuleList(make(stage, 1.0) for stage in self._stages)
        last = self._stages[-1]
        self._whole = make(Stage("validation", pairs, (), head=True), float(bool(last.pairs)))
        self._schedule = StageSchedule(_limits(config, len(self._stages) - 1), config.cosine_threshold)
        self._loss_name = FirstCosine.name if _equal_widths(matching) else FirstCka.name
        self.freezes_body = config.freeze_body_at_end

    @property
    def current(self) -> Criterion:
        """The criterion of the present stage; in eval mode the one of validations."""
        return cast(Criterion, self._criteria[self._schedule.stage]) if self.training else self._whole

    @property
    def whole(self) -> Criterion:
        """The criterion of validations, which looks at everything."""
        return self._whole

    @property
    def stage(self) -> int:
        """The number of the present stage, from 1."""
        return self._schedule.stage + 1

    @property
    def plan(self) -> Sequence[tuple[str, Needs]]:
        """All stages: what is trained, in words, and what is looked at."""
        found = zip(self._stages, self._criteria, strict=True)
        return [(stage.name, cast(Criterion, criterion).needs()) for stage, criterion in found]

    @property
    def body_frozen(self) -> bool:
        """Whether only the output head is trained now."""
        return self.freezes_body and self._schedule.last

    def observe(self, values: Mapping[str, float], counts: Mapping[Unit, int]) -> None:
        """Take in the averages of an update: the loss of first positions of the layers that decide."""
        deciding = self._stages[self._schedule.stage].deciding
        losses = [values[name] for pair in deciding if (name := f"{self._loss_name}/{pair}") in values]
        if losses:
            self._schedule.observe(sum(losses) / len(losses), counts["sentence"])

    def end_epoch(self) -> bool:
        """An epoch is over; whether that ends the stage."""
        return self._schedule.end_epoch()

    def next_stage(self) -> None:
        """Go on to the next stage, whatever the rule says."""
        self._schedule.advance()

    @property
    def epochs_before_last(self) -> int | None:
        """After how many epochs the last stage begins; None where that depends on losses."""
        return self._schedule.epochs_before_last

    def stage_figures(self) -> dict[str, float]:
        """The stage's number, how many there are, and the mean loss of first positions in the last epoch."""
        figures: dict[str, float] = {"stage": self.stage, "stages": self._schedule.stages}
        return figures if self._schedule.loss is None else {**figures, self._loss_name: self._schedule.loss}

    def stage_state(self) -> dict[str, Any]:
        """JSON-ready."""
        return self._schedule.state_dict()

    def load_stage_state(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``; raises `CheckpointError` if it is of other stages."""
        self._schedule.load_state_dict(state)


class _Maker:
    """Makes the `Criterion` of a stage."""

    def __init__(self, config: InternalKdConfig, matching: Matching) -> None:
        self._config, self._matching = config, matching

    def __call__(self, stage: Stage, internal: float) -> Criterion:
        """The losses of layers are multiplied by ``internal``."""
        config, matching = self._config, self._matching
        options = head_options(config)
        if not stage.head:
            options = replace(options, ce_weight=0.0, kl_weight=0.0)
        dense = config.head_loss == "dense"
        criterion = Criterion(options, dense=dense, regression=matching.regression)
        if stage.pairs and config.cls_weight:
            criterion.match_hidden(self._first_rows(stage.pairs), internal * config.cls_weight)
        if stage.pairs and config.attention_weight:
            blocks = attention_pairs(stage.pairs)
            attention = AttentionLoss(blocks, ("probabilities",), None, matching.student, matching.teacher)
            criterion.match_attention(attention, internal * config.attention_weight)
        return criterion

    def _first_rows(self, pairs: Pairs) -> HiddenLoss:
        if _equal_widths(self._matching):
            return FirstCosine(pairs)
        widths = (self._matching.student.width, self._matching.teacher.width)
        return FirstCka(pairs, dict.fromkeys(self._matching.student.sides, widths))


def _equal_widths(matching: Matching) -> bool:
    return matching.student.width == matching.teacher.width


def _limits(config: InternalKdConfig, stages: int) -> list[int | None]:
    """The epochs of each stage but the last one."""
    if not config.stage_epochs:
        return [None] * stages
    if len(config.stage_epochs) == 1:
        return [config.stage_epochs[0]] * stages
    if len(config.stage_epochs) != stages:
        raise ConfigError(
            f"--stage-epochs {','.join(map(str, config.stage_epochs))}: {len(config.stage_epochs)} numbers, but there "
            f"are {stages} stages before the last one (--procedure {config.procedure}); give one for each, or one "
            "for all"
        )
    return list(config.stage_epochs)


def internal_kd(config: InternalKdConfig, matching: Matching) -> InternalKd:
    """`kl_kd` and the matching of layers, in stages. Raises `ConfigError` where nothing is paired."""
    return InternalKd(config, matching)
