"""The heads of encoders on the teacher's principal directions: see `cktk.architectures.initialisation.pca`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cktk.architectures.initialisation.anatomy import Transform
from cktk.architectures.initialisation.pca_statistics import HeadMoments, NormMoments
from cktk.errors import ConfigError

#: Fewer scored rows than this say too little of a head.
_FEWEST_SCORED = 8


def is_shared(student: PreTrainedModel, teacher: PreTrainedModel, transform: Transform | None) -> bool:
    """Whether the encoder ``student`` ends in the head of ``teacher``, which has a last linear after ``transform``."""
    return type(student) is type(teacher) and transform is not None and transform.linear is not None


def head_neurons(teacher: Any, transform: Transform, head: HeadMoments | None, basis: Tensor) -> Tensor:
    """Columns (p, d) on which the neurons of a teacher's ``transform`` are projected.

    Before a linear that is tied to the embedding E these are ``basis``, because the student's linear is E B. Elsewhere
    neurons may be left out: columns are those of the identity for the neurons whose variance changes the scores most,
    or for the leading ones where nothing is known of the ``head``. Raises `ConfigError` if too little is.
    """
    if head is not None and head.rows < _FEWEST_SCORED:
        raise ConfigError(
            f"--init pca: the teacher's head scores only {head.rows} rows of the sample, and {_FEWEST_SCORED} are "
            "needed to see what it does: look at more data, or use --init truncate"
        )
    if transform.tied:
        return basis
    width = basis.shape[1]
    chosen = torch.arange(width, device=basis.device)
    if head is not None and transform.linear is not None:
        energy = head.variance * teacher.get_submodule(transform.linear).weight.double().square().sum(0)
        chosen = energy.topk(width).indices.sort().values
    return torch.eye(len(basis), dtype=basis.dtype, device=basis.device)[:, chosen]


def fill_dense(own: Any, theirs: Any, neurons: Tensor, reading: Tensor, offset: Tensor) -> None:
    """The dense layer of a transform: ``neurons`` of the teacher's ``theirs``, which reads R y_s + offset."""
    own.weight.copy_(neurons.T @ theirs.weight @ reading)
    own.bias.copy_(neurons.T @ (theirs.bias + theirs.weight @ offset))


def fill_rest(
    student: Any, teacher: Any, transform: Transform, neurons: Tensor, head: HeadMoments, norm: NormMoments | None
) -> None:
    """What comes after the dense layer: norm and last linear, whose bias makes up for means that are left out.

    Both models have the ``transform``; ``norm`` tells of the norm in it.
    """
    assert transform.linear is not None
    if transform.norm is not None and norm is not None:
        gain, shift = norm.fitted(shifted=True)
        own = student.get_submodule(transform.norm)
        own.weight.copy_(gain)
        own.bias.copy_(shift)
    own, theirs = student.get_submodule(transform.linear), teacher.get_submodule(transform.linear)
    if not transform.tied:
        own.weight.copy_(theirs.weight @ neurons)
    mean = head.mean.to(theirs.weight.dtype)
    own.bias.copy_(theirs.bias + theirs.weight @ (mean - neurons @ (neurons.T @ mean)))
    holder = transform.linear.rpartition(".")[0]
    spare = getattr(student.get_submodule(holder), "bias", None)
    if isinstance(spare, Tensor) and spare is not own.bias:  # of an untied linear, and nothing reads it
        spare.copy_(teacher.get_submodule(holder).bias)
