"""The types that the parts of cktk hand to one another. Types only: nothing here computes a loss or runs a model.

Shapes: B sentences, S source positions, T target positions, N selected rows, d width of the model at hand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Side = Literal["encoder", "decoder"]

#: Self-attention of the encoder, self-attention of the decoder, and the decoder's attention to the encoder.
AttentionKind = Literal["encoder", "decoder", "cross"]

#: Label value of a position that is not scored (the value that PyTorch's cross entropy ignores).
IGNORED = -100

#: What a term of the loss is averaged over.
Unit = Literal["target_token", "source_token", "sentence", "microbatch", "update"]


@dataclass(frozen=True)
class LayerPair:
    """A student state and the teacher state that it is matched with.

    Indices are those of transformers' ``hidden_states``: 0 is the embedding output, ``i`` the output of layer ``i``.
    """

    side: Side
    student: int
    teacher: int

    def __str__(self) -> str:
        return f"{self.side} {self.student}<-{self.teacher}"


@dataclass(frozen=True)
class AttentionPair:
    """A student layer and the teacher layer whose attention of one kind it is matched with; layers count from 1."""

    kind: AttentionKind
    student: int
    teacher: int

    def __str__(self) -> str:
        return f"{self.kind} attention {self.student}<-{self.teacher}"


@dataclass(frozen=True)
class StateRequest:
    """Which states of one model a forward pass has to keep.

    ``hidden`` lists the ``hidden_states`` indices per side; ``head`` asks for the states that feed the output head;
    ``attention`` lists the layers, from 1, whose projections of that kind are kept. ``first`` is as ``hidden``, but of
    each sentence only the first position that counts is kept.
    """

    hidden: Mapping[Side, tuple[int, ...]] = field(default_factory=dict)
    head: bool = False
    attention: Mapping[AttentionKind, tuple[int, ...]] = field(default_factory=dict)
    first: Mapping[Side, tuple[int, ...]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return self.head or any(any(wanted.values()) for wanted in (self.hidden, self.attention, self.first))


@dataclass(frozen=True)
class Needs:
    """What a criterion wants to see; the engine captures this and nothing else.

    Of ``first`` it wants only the first position of each sentence that counts (``[CLS]`` of an encoder).
    """

    pairs: tuple[LayerPair, ...] = ()
    student_head: bool = True
    teacher_head: bool = False
    attention: tuple[AttentionPair, ...] = ()
    first: tuple[LayerPair, ...] = ()

    def request(self, model: Literal["student", "teacher"], head: bool) -> StateRequest:
        """The states of ``model`` that the pairs name, with the head's input where ``head`` is set."""
        hidden: dict[Side, set[int]] = {}
        first: dict[Side, set[int]] = {}
        for wanted, pairs in ((hidden, self.pairs), (first, self.first)):
            for pair in pairs:
                wanted.setdefault(pair.side, set()).add(getattr(pair, model))
        attention: dict[AttentionKind, set[int]] = {}
        for block in self.attention:
            attention.setdefault(block.kind, set()).add(getattr(block, model))
        return StateRequest(
            hidden={side: tuple(sorted(layers)) for side, layers in hidden.items()},
            head=head,
            attention={kind: tuple(sorted(layers)) for kind, layers in attention.items()},
            first={side: tuple(sorted(layers)) for side, layers in first.items()},
        )


@dataclass
class Batch:
    """One micro-batch.

    ``inputs`` are the keyword arguments of the model's forward (``input_ids`` and ``attention_mask`` of shape (B, S),
    ``decoder_input_ids`` (B, T)); ``labels`` (B, T) holds `IGNORED` where nothing is scored; ``ids`` are the positions
    of the sentences in their split. A dummy batch keeps ranks in step and counts for nothing.

    Encoder-only models have no decoder: for masked language models ``labels`` are of the source's positions, T = S, for
    classifiers of the sentences, (B,) or (B, 1). Where these are numbers (regression), NaN stands for `IGNORED`. What
    such models score goes by the name of the decoder all the same.
    """

    inputs: dict[str, Tensor]
    labels: Tensor
    ids: list[int]
    dummy: bool = False

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with its tensors on ``device``."""
        moved = {name: tensor.to(device, non_blocking=True) for name, tensor in self.inputs.items()}
        return Batch(moved, self.labels.to(device, non_blocking=True), self.ids, self.dummy)

    def rows(self, side: Side) -> Tensor:
        """Boolean mask (B, S) or as ``labels`` of the rows that count: attended source positions, what is scored.

        A dummy has none, so that all its states pack to zero rows and its losses and gradients are zero.
        """
        if side == "encoder":
            rows = self.inputs["attention_mask"].bool()
        else:
            rows = ~self.labels.isnan() if self.labels.is_floating_point() else self.labels != IGNORED
        return rows & (not self.dummy)

    def counts(self) -> dict[Unit, int]:
        """How many of each unit the batch holds; all zero for a dummy. Without any row it is no micro-batch either."""
        targets, sources = int(self.rows("decoder").sum()), int(self.rows("encoder").sum())
        return {
            "target_token": targets,
            "source_token": sources,
            "sentence": 0 if self.dummy else len(self.ids),
            "microbatch": int(targets + sources > 0),
        }


@dataclass
class AttentionStates:
    """What one attention block computes with: queries (B, L_q, d), keys and values (B, L_k, d), heads side by side.

    Scores are ``scale * q @ k.T`` per head, plus ``bias`` (heads, L_q, L_k) where there is one. ``query_rows`` (B, L_q)
    and ``key_rows`` (B, L_k) say which positions count; where ``causal``, a query sees no key to its right. Not packed:
    the blocks need the sentences.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    heads: int
    scale: float
    query_rows: Tensor
    key_rows: Tensor
    causal: bool
    bias: Tensor | None = None


@dataclass
class SparseTargets:
    """A teacher's distribution on ``k`` tokens of each scored position: ``ids`` and ``log_probs`` (N_decoder, k).

    ``sampled`` ids are draws from the distribution, repeats included, each worth 1 / k. Otherwise they are the k most
    probable tokens, and what is left of the probability belongs to all others together. ``log_probs`` are those of the
    whole distribution at ``temperature``.
    """

    ids: Tensor
    log_probs: Tensor
    sampled: bool
    temperature: float


@dataclass
class ModelOutput:
    """States of one model for one batch, packed: rows that do not count are already dropped, so no loss can see a pad.

    ``hidden[side, i]`` is (N_side, d); ``head_input`` is (N_decoder, d), the states as they enter the output head;
    ``attention[kind, layer]`` are the projections of a block. ``targets`` stand in for a teacher's head and its input.
    ``first[side, i]`` (B', d) are the rows of ``hidden[side, i]`` that come first in their sentences.
    """

    hidden: dict[tuple[Side, int], Tensor]
    head_input: Tensor | None = None
    attention: dict[tuple[AttentionKind, int], AttentionStates] = field(default_factory=dict)
    targets: SparseTargets | None = None
    first: dict[tuple[Side, int], Tensor] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """The memory of all tensors, each counted once."""
        sizes: dict[int, int] = {}

        def seen(tensor: Tensor) -> Tensor:
            sizes[id(tensor)] = tensor.nbytes
            return tensor

        self.map(seen)
        return sum(sizes.values())

    def map(self, change: Callable[[Tensor], Tensor]) -> ModelOutput:
        """The same output with every tensor changed; a tensor that stands in two places is changed once."""
        done: dict[int, Tensor] = {}

        def changed(tensor: Tensor) -> Tensor:
            if id(tensor) not in done:
                done[id(tensor)] = change(tensor)
            return done[id(tensor)]

        return ModelOutput(
            hidden={key: changed(state) for key, state in self.hidden.items()},
            head_input=None if self.head_input is None else changed(self.head_input),
            attention={key: _changed_fields(block, changed) for key, block in self.attention.items()},
            targets=None if self.targets is None else _changed_fields(self.targets, changed),
            first={key: changed(state) for key, state in self.first.items()},
        )


def _changed_fields(holder: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A copy of the dataclass ``holder`` with what has a ``dtype``, its tensors, changed."""
    fields = vars(holder).items()
    return replace(holder, **{name: change(value) for name, value in fields if hasattr(value, "dtype")})


@dataclass(frozen=True)
class HeadParams:
    """An output head: ``logits = scale * h @ weight.T + bias`` with ``weight`` (V, d) and ``bias`` (V) or None."""

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0


class Adapter(Protocol):
    """Runs a model as far as a request needs, and shows its output head."""

    def __call__(self, batch: Batch, request: StateRequest) -> ModelOutput: ...

    def head(self) -> HeadParams: ...


class Scorer(Protocol):
    """Figures of a validation beyond the loss, e.g. BLEU; called on all ranks with the student in eval mode."""

    @property
    def figures(self) -> Sequence[str]:
        """The names of what it gives."""

    def __call__(self) -> Mapping[str, float]: ...


@dataclass
class Term:
    """One addend of the loss: the undivided sum over ``unit``; the engine multiplies it by ``weight`` / (global count).

    ``parts`` are the detached sums to log under their own names (None: the total under ``name``). Where ``total`` is
    a surrogate that has the loss's gradient but not its value, ``value`` is the loss. Values and parts of unit
    ``"update"`` are those of the whole update already, the same in each of its micro-batches.
    """

    name: str
    total: Tensor
    unit: Unit
    weight: float = 1.0
    parts: Mapping[str, Tensor] | None = None
    value: Tensor | None = None


@dataclass(frozen=True)
class Template:
    """The token ids that a tokenizer puts before and after a text: ``[bos] x [eos]``, ``x [eos] [en_XX]`` and so on."""

    prefix: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()

    def decoding_start(self, fixed: int | None) -> DecodingStart:
        """How decoding starts where this stands around targets.

        ``fixed`` is the token that the model always starts with. None is mBART's rule: the last token of a target
        comes first, and what the template puts in front of every text (mBART-50's language code) has to follow.
        """
        if fixed is not None:
            return DecodingStart(fixed, None)
        return DecodingStart(self.suffix[-1] if self.suffix else None, self.prefix[0] if self.prefix else None)


@dataclass(frozen=True)
class PairTemplate:
    """The token ids that a tokenizer puts around two texts that it joins: ``[CLS] a [SEP] b [SEP]`` and so on.

    With ``token_types`` the model also gets a type for each token: 0 up to the end of ``middle``, and 1 from there on.
    """

    prefix: tuple[int, ...] = ()
    middle: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()
    token_types: bool = False


class DecodingStart(NamedTuple):
    """The decoder's first input, and the token that it has to give next; None leaves either to the model."""

    token: int | None
    forced_bos: int | None


@dataclass(frozen=True)
class DecoderLayout:
    """Where a kind of encoder-decoder keeps the weights of its decoder, and what it does with them.

    This is all that generation knows of a kind of model. Names are paths of attributes: ``layers`` and those of
    embeddings, positions and norms start at the decoder, whose class is ``stack``, all others at one of its layers.
    ``norms`` are those of self-attention, cross-attention and feed-forward; with ``pre_norm`` they stand before these.
    ``up`` names two projections where the activation of the first gates the second. ``position_bias`` is the attention
    whose ``compute_bias`` every layer adds to the scores of its self-attention. ``head_scale`` multiplies what enters
    the output head. ``source_positions`` is the longest source, None where there is no limit.
    """

    stack: type[Any]
    layers: str
    self_attention: str
    cross_attention: str
    projections: tuple[str, str, str, str]  # queries, keys, values, output
    norms: tuple[str, str, str]
    up: tuple[str, ...]
    down: str
    activation: str
    heads: int
    pre_norm: bool
    embedding_scale: str | None = None
    positions: str | None = None
    embedding_norm: str | None = None
    final_norm: str | None = None
    position_bias: str | None = None
    head_scale: float = 1.0
    source_positions: int | None = None


@dataclass(frozen=True)
class SideShape:
    """Sizes of the layers on one side of a model.

    ``attention_width`` is what all heads together are wide, None where that is the model's width.
    """

    layers: int
    ffn_width: int
    heads: int
    attention_width: int | None = None


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a model. ``sides`` holds only the sides that it has; ``positions`` is None where there is no limit."""

    width: int
    sides: Mapping[Side, SideShape]
    positions: int | None

    def attention_width(self, side: Side) -> int:
        """The width of queries, keys and values of ``side``, all heads together."""
        return self.sides[side].attention_width or self.width


@dataclass(frozen=True)
class Matching:
    """What a criterion is built for: the sizes of both models, and the layers that are matched.

    With ``regression`` the heads give a number a sentence, not a distribution.
    """

    student: ModelShape
    teacher: ModelShape
    pairs: tuple[LayerPair, ...] = ()
    regression: bool = False


@dataclass(frozen=True)
class SentenceHead:
    """What a model is to say about a sentence or a pair: one of the classes ``labels``, or with None a number."""

    labels: tuple[str, ...] | None

    @property
    def outputs(self) -> int:
        """Rows of the head."""
        return 1 if self.labels is None else len(self.labels)


@dataclass(frozen=True)
class Hypothesis:
    """A generated sequence: ids without decoder start (specials as generated), and its length-penalised score."""

    tokens: tuple[int, ...]
    score: float
