"""Starting weights of a student: random, or taken from its teacher or from an earlier student.

Sources: ``truncate`` from the scripts released with "Improving Language Model Distillation through Hidden State
Matching" (ICLR 2025); ``copy`` from distilBART (Shleifer and Rush, 2020) and DistilBERT (Sanh et al., 2019). ``pca`` is
cktk's own.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import nn
from transformers import PreTrainedModel

from cktk.architectures.initialisation.pca import pca_initialise
from cktk.architectures.initialisation.sources import (
    LayerMap,
    check_equal,
    check_fixed,
    check_not_larger,
    inner_name,
    origins,
)
from cktk.architectures.states.layer_map import spread_layers, truncated_layers
from cktk.errors import ConfigError
from cktk.protocols import Batch


def initialise(
    student: PreTrainedModel,
    init: str,
    *,
    teacher: PreTrainedModel | None = None,
    checkpoint: PreTrainedModel | None = None,
    batches: Sequence[Batch] | None = None,
) -> None:
    """Give ``student`` its starting weights in place; everything is checked before the first tensor changes.

    - ``random``: as built by transformers (drawn from torch's global generator when the student was made).
    - ``truncate``: student layer i is the leading block ``W[:d_out, :d_in]`` of teacher layer floor(i L_T / L_S); all
      other tensors are leading blocks too. Embeddings are not rescaled: where the model multiplies them by
      sqrt(width) (mBART), the student uses its own width.
    - ``pca``: the same layers, projected on the teacher's principal directions over ``batches`` (see `pca_initialise`).
    - ``copy``: evenly spread whole layers of a teacher of the same width, feed-forward width and heads.
    - ``checkpoint``: the same from an earlier student, whose layers are dropped or repeated.

    What a source with another head does not have (a classifier, a pooler) stays as built.

    Raises `ConfigError` naming the flag when the source is absent or its sizes do not fit.
    """
    if init == "random":
        return
    if init == "truncate":
        source = _required(teacher, "--init truncate takes weights from a teacher: give --teacher")
        check_fixed(student, source, "--init truncate", "the teacher")
        check_not_larger(student, source, "--init truncate")
        _fill(student, source, truncated_layers)
    elif init == "pca":
        source = _required(teacher, "--init pca takes weights from a teacher: give --teacher")
        if batches is None:
            raise ConfigError("--init pca looks at data: start it with cktk-train, or use --init truncate")
        pca_initialise(student, source, batches)
    elif init == "copy":
        source = _required(teacher, "--init copy takes layers from a teacher: give --teacher")
        check_equal(student, source, "--init copy", "the teacher", ", or use --init truncate")
        _fill(student, source, spread_layers)
    elif init == "checkpoint":
        source = _required(checkpoint, "--init checkpoint takes layers from an earlier student: give --init-checkpoint")
        check_equal(student, source, "--init checkpoint", "the checkpoint", "")
        _fill(student, source, spread_layers)
    else:
        raise ConfigError(f"--init {init}: unknown name; known: random, truncate, copy, checkpoint, pca")


def _required(model: PreTrainedModel | None, message: str) -> PreTrainedModel:
    if model is None:
        raise ConfigError(message)
    return model


@torch.no_grad()
def _fill(student: PreTrainedModel, source: PreTrainedModel, layer_map: LayerMap) -> None:
    """Fill every tensor of ``student`` with the leading block of its counterpart, layers going by ``layer_map``.

    Parameters are written in place and each once, so a head tied to the embedding stays tied. Those that are made not
    to be trained (MarianMT's table of positions) stay as built.
    """
    origin = origins(student, source, layer_map)
    tensors = {inner_name(source, name): tensor for name, tensor in source.state_dict().items()}
    saved = student.state_dict().keys()
    buffers = ((name, buffer) for name, buffer in student.named_buffers() if name in saved)
    for name, target in itertools.chain(student.named_parameters(), buffers):
        counterpart = origin(inner_name(student, name))
        fixed = isinstance(target, nn.Parameter) and not target.requires_grad
        if fixed or (counterpart not in tensors and type(student) is not type(source)):
            continue
        target.copy_(tensors[counterpart][tuple(slice(size) for size in target.shape)])
