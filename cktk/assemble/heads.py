"""The heads of models for tasks about sentences: as many answers as the data has labels, in the same order."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from cktk.architectures.families.encoder_family import EncoderFamily
from cktk.architectures.families.family import Family
from cktk.architectures.spec import StudentSpec
from cktk.config.command import Settings
from cktk.data.mixtures.corpora import Corpora
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
    """Write into ``student`` what its answers are called, for whoever opens it with transformers."""
    if head is None:
        return
    names = head.labels or ("score",)
    config: Any = student.config
    config.id2label = dict(enumerate(names))
    config.label2id = {name: number for number, name in enumerate(names)}
    config.problem_type = "regression" if head.labels is None else "single_label_classification"


def check_answers(family: Family, config: PreTrainedConfig, head: SentenceHead, name: str, otherwise: str) -> None:
    """Raise `ConfigError` unless the model that is called ``name`` has as many answers as the data has labels.

    ``otherwise`` ends the advice.
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


def align_labels(family: Family, model: PreTrainedModel, head: SentenceHead | None, name: str) -> None:
    """Put the answers of ``model``, called ``name``, in the order of the data's labels where its own order is another.

    A classifier says in its configuration what its classes are called. Where that is no name (``LABEL_0``), the order
    is taken to be the data's; names that the data does not have are, too, with a warning.
    """
    if head is None or head.labels is None or not answers_alike(family, model.config, head):
        return
    assert isinstance(family, EncoderFamily)
    config: Any = model.config
    theirs = [str(config.id2label[number]) for number in range(head.outputs)]
    named, wanted = ([label.strip().lower() for label in labels] for labels in (theirs, head.labels))
    if named == wanted or all(_UNNAMED.fullmatch(label) for label in named):
        return
    if sorted(named) != sorted(wanted):
        logger.warning("%s calls its labels %s: taken for %s", name, ", ".join(theirs), ", ".join(head.labels))
        return
    order = [named.index(label) for label in wanted]
    linear = family.classification_head(model).linear
    with torch.no_grad():
        for parameter in linear.parameters():
            parameter.copy_(parameter[order])
    name_labels(model, head)
    logger.info("%s has its labels in the order %s: put in that of the data", name, ", ".join(theirs))
