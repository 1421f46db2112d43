"""Starting weights of a student on its teacher's principal directions: an initialisation of cktk's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cktk.architectures.families.family import family_of
from cktk.architectures.initialisation.anatomy import Block, Transform, anatomy_of, base_prefix
from cktk.architectures.initialisation.pca_heads import fill_dense, fill_rest, head_neurons, is_shared
from cktk.architectures.initialisation.pca_statistics import norm_moments, stream_moments
from cktk.architectures.initialisation.sources import check_fixed, check_not_larger, origins
from cktk.architectures.states.layer_map import truncated_layers
from cktk.errors import ConfigError
from cktk.protocols import Batch


def pca_initialise(student: PreTrainedModel, teacher: PreTrainedModel, batches: Sequence[Batch]) -> None:
    """Project ``teacher`` on the principal directions of its residual stream over ``batches``, which are read twice.

    One orthonormal basis B (p, d), see `principal_basis`, serves embeddings, all stacks and a tied head. Layers are
    those of ``truncate``, heads and neurons those that put most into the stream. With a teacher's linear W from and V
    into the stream:

    - embeddings are E B (times what makes up for a scale by the width), V becomes B' V;
    - W reads what a norm gives. Where nothing but linears reads it (mBART, T5), W diag(gain) B takes its gain over, and
      the student's norm keeps a single factor, for the length that is lost by projection. Where it goes on as stream
      or to a tied head (BART, encoders), W becomes W B, and gain and bias of the student's norm are the least-squares
      ones, axis by axis: a rotated gain is no gain, so this is an approximation;
    - biases make up for the means of all that is left out; T5 has none.

    In the head of an encoder lie a dense layer U and an activation f, so another space, of neurons. Before a linear of
    its own (a classifier, or a masked language model that is not tied) they are chosen by what they do to the scores.
    Where the linear is tied to the embedding, the student's is E B: U becomes B' U B, and f(B' u) stands for B' f(u),
    which is right as far as B selects axes, and near it as B is turned towards them; the norm after it is fitted to
    what the student's neurons are. What enters a tied linear counts as a norm of the stream. A head that the teacher
    does not have stays as built; a pooler that no classifier reads keeps its leading neurons.

    Of full width it is the student that ``truncate`` gives, exactly so in function. Students of a teacher with low rank
    are exact too, where gains are equal. Raises `ConfigError` for sizes that do not fit, for a sample with fewer rows
    than the teacher is wide, and for one in which next to nothing is scored.
    """
    check_fixed(student, teacher, "--init pca", "the teacher")
    check_not_larger(student, teacher, "--init pca")
    if family_of(student.config.model_type, "the student").shape(student.config).width < 2:
        raise ConfigError(
            "--init pca: one direction is taken by the mean; make --width 2 or more, or use --init truncate"
        )
    _Projection(student, teacher, batches).fill()


def principal_basis(second: Tensor, width: int, centred: bool) -> Tensor:
    """Orthonormal columns (p, d) that span ``width`` principal directions of the second moments ``second`` (p, p).

    Where norms subtract means (``centred``) the direction of the mean, (1, ..., 1), is one of them, and the same
    direction stands for it in the student. Within their span the columns are turned to lie as near as can be to d of
    the teacher's axes, because gains and biases of norms act on axes; at full width they are these axes.
    """
    teacher_mean, student_mean = (second.new_full((n, 1), n**-0.5) for n in (len(second), width))
    others = torch.eye(width, dtype=second.dtype, device=second.device)
    if centred:
        apart = torch.eye(len(second), dtype=second.dtype, device=second.device) - teacher_mean @ teacher_mean.T
        second = apart @ second @ apart - second.trace() * teacher_mean @ teacher_mean.T  # the mean comes last
        others = torch.linalg.qr((others - student_mean @ student_mean.T)[:, 1:]).Q
    directions = torch.linalg.eigh(second).eigenvectors[:, -others.shape[1] :]
    axes = directions.square().sum(1).topk(width).indices.sort().values
    left, _, right = torch.linalg.svd(directions[axes].T @ others, full_matrices=False)
    basis: Tensor = directions @ left @ right @ others.T
    return basis + teacher_mean @ student_mean.T if centred else basis


class _Projection:
    """Fills one student. Names of modules are the student's; `_origin` gives the teacher's."""

    def __init__(self, student: Any, teacher: Any, batches: Sequence[Batch]) -> None:
        self._student, self._teacher = student, teacher
        self._own, self._theirs = anatomy_of(student), anatomy_of(teacher)
        self._blocks = {block.output: block for block in self._theirs.blocks}
        self._layer_origin = origins(student, teacher, truncated_layers)
        shared = is_shared(student, teacher, self._theirs.transform)
        self._stream = stream_moments(teacher, self._theirs, batches, head=shared)
        family = family_of(student.config.model_type, "the student")
        width, teacher_width = (family.shape(model.config).width for model in (student, teacher))
        if self._stream.rows < teacher_width:
            raise ConfigError(
                f"--init pca: the sample has {self._stream.rows} tokens on one side, fewer than the teacher is wide "
                f"({teacher_width}): look at more data, or use --init truncate"
            )
        basis = principal_basis(self._stream.second, width, self._own.centred)
        self._basis = basis.to(teacher.dtype)
        transform, self._neurons = self._theirs.transform, self._basis
        if transform is not None:
            self._neurons = head_neurons(teacher, transform, self._stream.head, self._basis)
        seen = self._neurons if shared and transform is not None and transform.norm is not None else None
        self._norms = norm_moments(teacher, self._theirs, batches, self._basis, seen)
        # What models multiply by that depends on their width: embeddings by sqrt(d) and the head's input by 1/sqrt(d).
        narrower = (width / teacher_width) ** 0.5
        self._embedding_factor = 1 / narrower if getattr(student.config, "scale_embedding", False) else 1.0
        self._head_factor = 1.0
        if self._own.head_norm is not None:
            self._head_factor = family.adapter(teacher).head().scale / family.adapter(student).head().scale

    @torch.no_grad()
    def fill(self) -> None:
        """Write every parameter of the student."""
        factors = dict.fromkeys(self._own.tokens, self._embedding_factor) | dict.fromkeys(self._own.positions, 1.0)
        for name, factor in factors.items():
            projected = self._teacher.get_submodule(self._origin(name)).weight @ self._basis
            self._student.get_submodule(name).weight.copy_(projected * factor)
        for name in self._own.norms:
            self._fill_norm(name)
        for block in self._own.blocks:
            self._fill_block(block)
        if self._own.head_norm is not None:
            self._fill_head(self._own.head_norm)
        if self._own.transform is not None and self._theirs.transform is not None:
            self._fill_transform(self._own.transform, self._theirs.transform)

    def _fill_norm(self, name: str) -> None:
        norm, found = self._student.get_submodule(name), self._norms[self._origin(name)]
        bias = getattr(norm, "bias", None)
        if name not in self._own.kept:
            norm.weight.fill_(found.shrink)
            if bias is not None:
                bias.zero_()
            return
        gain, shift = found.fitted(shifted=bias is not None)
        factor = self._head_factor / self._embedding_factor if name == self._own.head_norm and self._tied else 1.0
        norm.weight.copy_(gain * factor)
        if bias is not None:
            bias.copy_(shift * factor)

    def _fill_block(self, block: Block) -> None:
        output = self._origin(block.output)
        source = self._blocks[output]
        heads, inner = self._chosen(block, source)
        for name, norm in zip(block.inputs, source.inputs.values(), strict=True):
            own, theirs = self._student.get_submodule(name), self._teacher.get_submodule(self._origin(name))
            reading, offset = self._reading(norm)
            own.weight.copy_(theirs.weight[inner] @ reading)
            if own.bias is not None:
                own.bias.copy_(theirs.bias[inner] + theirs.weight[inner] @ offset)
        own, theirs = self._student.get_submodule(block.output), self._teacher.get_submodule(output)
        own.weight.copy_(self._basis.T @ theirs.weight[:, inner])
        if own.bias is not None:
            left_out = self._stream.mean[output].index_fill(0, inner, 0).to(theirs.weight.dtype)
            own.bias.copy_(self._basis.T @ (theirs.bias + theirs.weight @ left_out))
        if block.bias is not None:
            self._student.get_parameter(block.bias).copy_(self._teacher.get_parameter(block.bias)[:, heads])

    def _chosen(self, block: Block, source: Block) -> tuple[Tensor, Tensor]:
        """The heads of ``source`` that a student's block takes, and where they lie between its linears, or neurons.

        Those with most energy, in order; the leading ones where the student's heads have another width.
        """
        own = self._student.get_submodule(block.output).in_features
        energy = self._energy(source)
        if block.heads is None or source.heads is None:
            neurons = energy.topk(own).indices.sort().values
            return neurons, neurons
        width = own // block.heads
        if width * source.heads != len(energy):
            leading = torch.arange(own, device=energy.device)
            return leading[: block.heads], leading
        if source.bias is not None:  # all blocks take the same heads
            sharing = [self._energy(other) for other in self._theirs.blocks if other.bias == source.bias]
            energy = torch.stack([each / each.sum() for each in sharing]).sum(0)
        heads = energy.view(source.heads, width).sum(1).topk(block.heads).indices.sort().values
        return heads, (heads[:, None] * width + torch.arange(width, device=heads.device)).flatten()

    def _energy(self, block: Block) -> Tensor:
        """How much each neuron, or feature of a head, of the teacher puts into the stream: mean squares."""
        columns: Tensor = self._teacher.get_submodule(block.output).weight.double().square().sum(0)
        return self._stream.energy[block.output] * columns

    def _fill_transform(self, own: Transform, theirs: Transform) -> None:
        """Of a head that teacher and student do not share only what both have: a pooler."""
        if self._origin(own.dense) == theirs.dense:
            dense = self._student.get_submodule(own.dense), self._teacher.get_submodule(theirs.dense)
            fill_dense(*dense, self._neurons, *self._reading(theirs.read))
        if self._stream.head is not None:
            norm = self._norms[theirs.norm] if theirs.norm is not None else None
            fill_rest(self._student, self._teacher, own, self._neurons, self._stream.head, norm)

    def _fill_head(self, name: str) -> None:
        """A head of its own reads what the last norm gives; the bias of logits makes up for what is left out."""
        own, theirs = self._student.get_output_embeddings(), self._teacher.get_output_embeddings()
        norm = self._student.get_submodule(name)
        found = self._norms[self._origin(name)]
        if not self._tied:
            reading, _ = self._reading(self._origin(name))
            own.weight.copy_(theirs.weight @ reading * self._head_factor)
        if (bias := getattr(self._student, "final_logits_bias", None)) is not None:
            given = norm.weight * found.x + norm.bias
            left_out = theirs.weight @ found.y.to(theirs.weight.dtype) - own.weight @ given.to(own.weight.dtype)
            bias.copy_(self._teacher.final_logits_bias + left_out)

    def _reading(self, norm: str) -> tuple[Tensor, Tensor]:
        """How to read the teacher's ``norm`` from what the student's gives: y = R y_s + offset, (p, d) and (p)."""
        found = self._norms[norm]
        if norm in self._theirs.kept:
            reading, seen = self._basis, found.z
        else:
            reading, seen = self._teacher.get_submodule(norm).weight[:, None] * self._basis, found.shrink * found.x
        return reading, (found.y - reading.double() @ seen).to(reading.dtype)

    def _origin(self, name: str) -> str:
        own, theirs = base_prefix(self._student), base_prefix(self._teacher)
        if not name.startswith(own):
            return name  # in the head
        return theirs + self._layer_origin(name.removeprefix(own))

    @property
    def _tied(self) -> bool:
        return bool(self._student.get_output_embeddings().weight is self._student.get_input_embeddings().weight)
