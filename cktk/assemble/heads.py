"""The heads of models for tasks about sentences: as many answers as the data has labels, in the same order."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from cktk.architectures.encoder_family import EncoderFamily
from cktk.architectures.family import Family
from cktk.architectures.spec import StudentSpec
from cktk.config.command import Settings
from cktk.data.corpora import Corpora
from cktk.errors import ConfigError
from cktk.protocols import SentenceHead
from cktk.registry import TASKS
from cktk.utils.log import logger

#: What classes are called by those who did not name them.
_UNNAMED = re.compile(r"(label_)?\d+", re.IGNORECASE)


def wanted_head(settings: Settings, data: Corpora) -> SentenceHead | None:
    """The head that the task of a run needs its models to have; None where it takes any."""
    name, config = settings.component("task")
    choose = getattr(TASKS.target(name), "head", None)
    if choose is None:
        return None
    head: SentenceHead = choose(config, data)
    if head.labels is not None and len(head.labels) < 2:
        raise ConfigError(f"{data.path}: has {len(head.labels)} label, but classes are 2 or more; see --label-names")
    return head


def with_head(spec: StudentSpec, family: Family, head: SentenceHead | None) -> StudentSpec:
    """``spec`` with the classifier that ``head`` asks for; raises `ConfigError` for families and flags without it."""
    if head is None:
        return spec
    if not isinstance(family, EncoderFamily) or "classification" not in family.heads:
        raise ConfigError(
            f"a {family.model_type} has no head for sentences: use an encoder's --arch, e.g. bert, roberta, distilbert"
        )
    if spec.head not in (None, "classification"):
        raise ConfigError(f"--head {spec.head}: the task needs a classifier of sentences; leave it out")
    return replace(spec, head="classification", labels=head.outputs)


def answers_alike(family: Family, config: Any, head: SentenceHead | None) -> bool:
    """Whether a model of ``config`` has the head that is wanted, apart from what its classes are called."""
    if head is None or not isinstance(family, EncoderFamily):
        return True
    return family.head_kind(config) == "classification" and config.num_labels == head.outputs


def trunk(family: Family, source: PreTrainedModel, head: SentenceHead | None) -> PreTrainedModel:
    """``source``, or what is under its head where that is a classifier with another number of answers."""
    other = not answers_alike(family, source.config, head)
    if other and isinstance(family, EncoderFamily) and family.head_kind(source.config) == "classification":
        known: Any = source
        inner: PreTrainedModel = known.base_model
        return inner
    return source


def name_labels(student: PreTrainedModel, head: SentenceHead | None) -> None:
    """Tell ``student`` what its answers are called, for whoever opens it with transformers."""
    if head is None:
        return
    names = head.labels or ("score",)
    config: Any = student.config
    config.id2label = dict(enumerate(names))
    config.label2id = {name: number for number, name in enumerate(names)}
    config.problem_type = "regression" if head.labels is None else "single_label_classification"


def check_answers(family: Family, config: PreTrainedConfig, head: SentenceHead, name: str, otherwise: str) -> None:
    """Raise `ConfigError` unless the model that is called ``name`` answers with the data's labels, in their order.

    ``otherwise`` ends the advice. Other names than the data's are taken in order, with a warning, unless they are the
    data's in another order.
    """
    kind = family.head_kind(config) if isinstance(family, EncoderFamily) else "another"
    if kind != "classification":
        raise ConfigError(f"{name} has no head that classifies sentences (its head is {kind}){otherwise}")
    known: Any = config
    theirs = [str(known.id2label[number]) for number in sorted(known.id2label)]
    wanted = "a number" if head.labels is None else f"{head.outputs} labels ({', '.join(head.labels)})"
    if len(theirs) != head.outputs:
        has = "a number" if len(theirs) == 1 else f"{len(theirs)} labels ({', '.join(theirs)})"
        raise ConfigError(f"{name} answers with {has}, but the data has {wanted}{otherwise}")
    if head.labels is not None:
        _check_names(theirs, head.labels, name)


def _check_names(theirs: Sequence[str], ours: Sequence[str], name: str) -> None:
    plain = [[label.strip().lower() for label in labels] for labels in (theirs, ours)]
    if plain[0] == plain[1] or all(_UNNAMED.fullmatch(label) for label in theirs):
        return
    if sorted(plain[0]) == sorted(plain[1]):
        raise ConfigError(
            f"{name} has the labels in the order {', '.join(theirs)}, the data in the order {', '.join(ours)}: "
            f"preprocess the data with --label-names {','.join(theirs)}"
        )
    logger.warning("%s calls its labels %s and the data %s: taken in this order", name, theirs, list(ours))
