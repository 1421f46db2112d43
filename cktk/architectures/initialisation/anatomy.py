"""How the parts of a model hang together: which norm feeds which linear, and what lies between linears.

Names are those of modules in the whole model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.nn.functional import gelu
from transformers import PreTrainedModel

from cktk.errors import ConfigError
from cktk.protocols import Side

_SIDES: tuple[Side, Side] = ("encoder", "decoder")


@dataclass(frozen=True)
class Block:
    """Attention or a feed-forward layer of one side, with a space of heads or of neurons between its linears.

    ``inputs`` are the linears into that space, each with the norm whose output it reads; ``output`` leads back into the
    residual stream. ``heads`` is None for neurons. ``bias`` is the parameter with a column a head, if there is one;
    blocks that share it need the same heads.
    """

    side: Side
    inputs: dict[str, str]
    output: str
    heads: int | None = None
    bias: str | None = None


@dataclass(frozen=True)
class Transform:
    """What the head of an encoder does first: a dense layer that reads the norm ``read``, and its activation.

    Masked language models have a ``norm`` after it (then ``activation`` is given), and their last linear may be
    ``tied`` to the embedding. Without a last ``linear`` it is the pooler of a bare encoder.
    """

    dense: str
    read: str
    linear: str | None = None
    norm: str | None = None
    activation: Callable[[Tensor], Tensor] | None = None
    tied: bool = False


@dataclass
class Anatomy:
    """The parts of a model that know its width; ``norms`` gives the side of each.

    What a norm in ``kept`` gives goes on as residual stream, or to a head that is tied to the embedding; what others
    give is read by linears alone. ``head_norm`` feeds the head of an encoder-decoder; heads of encoders have a
    ``transform``. Embeddings that are tied stand in ``tokens`` several times; what is added to them are ``positions``,
    kinds of sentence included.
    """

    centred: bool  # norms subtract the mean, and have a bias
    tokens: tuple[str, ...]
    positions: tuple[str, ...] = ()
    norms: dict[str, Side] = field(default_factory=dict)
    kept: set[str] = field(default_factory=set)
    blocks: list[Block] = field(default_factory=list)
    head_norm: str | None = None
    transform: Transform | None = None

    def add_norm(self, name: str, side: Side, *, kept: bool) -> None:
        self.norms[name] = side
        if kept:
            self.kept.add(name)


def anatomy_of(model: PreTrainedModel) -> Anatomy:
    """The anatomy of a model of one of the known types; raises `ConfigError` for others."""
    kind = model.config.model_type
    if kind not in _KINDS:
        raise ConfigError(f"--init pca knows models of type {', '.join(_KINDS)}, not {kind}: use --init truncate")
    return _KINDS[kind](model)


def _bart(model: Any, *, normalise_first: bool) -> Anatomy:
    found = Anatomy(
        centred=True,
        tokens=("model.shared", *(f"model.{side}.embed_tokens" for side in _SIDES)),
        positions=tuple(f"model.{side}.embed_positions" for side in _SIDES),
    )
    memory = ""
    for side in _SIDES:
        stack = f"model.{side}"
        source = f"{stack}.layernorm_embedding"
        found.add_norm(source, side, kept=True)
        for number in range(len(model.get_submodule(stack).layers)):
            for block, norm in _bart_blocks(f"{stack}.layers.{number}", side):
                found.add_norm(norm, side, kept=not normalise_first)
                read = norm if normalise_first else source
                found.blocks.append(_bart_block(model, block, side, read, memory))
                source = norm
        if normalise_first:
            source = f"{stack}.layer_norm"
            found.add_norm(source, side, kept=side == "decoder" and _tied(model))
        memory = found.head_norm = source
    return found


def _bart_blocks(layer: str, side: Side) -> Iterator[tuple[str, str]]:
    """Blocks in order, each with its norm; that of the neurons has the name of the layer."""
    yield f"{layer}.self_attn", f"{layer}.self_attn_layer_norm"
    if side == "decoder":
        yield f"{layer}.encoder_attn", f"{layer}.encoder_attn_layer_norm"
    yield layer, f"{layer}.final_layer_norm"


def _bart_block(model: Any, block: str, side: Side, read: str, memory: str) -> Block:
    if not block.endswith("attn"):
        return Block(side, {f"{block}.fc1": read}, f"{block}.fc2")
    others = memory if block.endswith("encoder_attn") else read
    inputs = {f"{block}.q_proj": read, f"{block}.k_proj": others, f"{block}.v_proj": others}
    return Block(side, inputs, f"{block}.out_proj", getattr(model.config, f"{side}_attention_heads"))


def _t5(model: Any) -> Anatomy:
    found = Anatomy(centred=False, tokens=("shared", *(f"{side}.embed_tokens" for side in _SIDES)))
    for side in _SIDES:
        for number, layer in enumerate(model.get_submodule(side).block):
            for part in range(len(layer.layer)):
                name = f"{side}.block.{number}.layer.{part}"
                found.add_norm(f"{name}.layer_norm", side, kept=False)
                found.blocks.append(_t5_block(model, name, side))
        found.head_norm = f"{side}.final_layer_norm"
        found.add_norm(found.head_norm, side, kept=side == "decoder" and _tied(model))
    return found


def _t5_block(model: Any, name: str, side: Side) -> Block:
    children = dict(model.get_submodule(name).named_children())
    read, heads = f"{name}.layer_norm", model.config.num_heads
    if "DenseReluDense" in children:
        linears = [linear for linear, _ in children["DenseReluDense"].named_children() if linear.startswith("wi")]
        return Block(side, {f"{name}.DenseReluDense.{x}": read for x in linears}, f"{name}.DenseReluDense.wo")
    if "EncDecAttention" in children:
        block, others, bias = f"{name}.EncDecAttention", "encoder.final_layer_norm", None
    else:
        block, others = f"{name}.SelfAttention", read
        bias = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    return Block(side, {f"{block}.q": read, f"{block}.k": others, f"{block}.v": others}, f"{block}.o", heads, bias)


def _tied(model: Any) -> bool:
    return bool(model.get_output_embeddings().weight is model.get_input_embeddings().weight)


#: Of the layers of an encoder: linears that read the stream, linear that leads back, norm that follows.
_Layer = tuple[tuple[tuple[str, ...], str, str], ...]

_BERT_LAYER: _Layer = (
    (
        ("attention.self.query", "attention.self.key", "attention.self.value"),
        "attention.output.dense",
        "attention.output.LayerNorm",
    ),
    (("intermediate.dense",), "output.dense", "output.LayerNorm"),
)
_DISTILBERT_LAYER: _Layer = (
    (("attention.q_lin", "attention.k_lin", "attention.v_lin"), "attention.out_lin", "sa_layer_norm"),
    (("ffn.lin1",), "ffn.lin2", "output_layer_norm"),
)


def _encoder(model: Any, layers: str, parts: _Layer) -> Anatomy:
    """The encoder without its head. All norms are post-norms, that of the embeddings included."""
    base = base_prefix(model)
    embeddings = f"{base}embeddings"
    added = ("position_embeddings", "token_type_embeddings")
    found = Anatomy(
        centred=True,
        tokens=(f"{embeddings}.word_embeddings",),
        positions=tuple(f"{embeddings}.{name}" for name in added if hasattr(model.get_submodule(embeddings), name)),
    )
    source = f"{embeddings}.LayerNorm"
    found.add_norm(source, "encoder", kept=True)
    for number in range(len(model.get_submodule(f"{base}{layers}"))):
        layer = f"{base}{layers}.{number}"
        for inputs, output, norm in parts:
            heads = model.config.num_attention_heads if len(inputs) > 1 else None
            reads = {f"{layer}.{linear}": source for linear in inputs}
            found.blocks.append(Block("encoder", reads, f"{layer}.{output}", heads))
            source = f"{layer}.{norm}"
            found.add_norm(source, "encoder", kept=True)
    return found


def _bert(model: Any) -> Anatomy:
    found = _encoder(model, "encoder.layer", _BERT_LAYER)
    read = list(found.norms)[-1]
    if hasattr(model, "cls"):
        head, act = "cls.predictions", model.cls.predictions.transform.transform_act_fn
        norm = f"{head}.transform.LayerNorm"
        found.transform = Transform(f"{head}.transform.dense", read, f"{head}.decoder", norm, act, _tied(model))
    elif hasattr(model, "lm_head"):
        names = ("lm_head.dense", read, "lm_head.decoder", "lm_head.layer_norm")
        found.transform = Transform(*names, gelu, _tied(model))
    elif hasattr(model, "classifier") and model.base_model.pooler is None:
        found.transform = Transform("classifier.dense", read, "classifier.out_proj")
    elif model.base_model.pooler is not None:
        linear = "classifier" if hasattr(model, "classifier") else None
        found.transform = Transform(f"{base_prefix(model)}pooler.dense", read, linear)
    return found


def _distilbert(model: Any) -> Anatomy:
    found = _encoder(model, "transformer.layer", _DISTILBERT_LAYER)
    read = list(found.norms)[-1]
    if hasattr(model, "vocab_transform"):
        names = ("vocab_transform", read, "vocab_projector", "vocab_layer_norm")
        found.transform = Transform(*names, model.activation, _tied(model))
    elif hasattr(model, "pre_classifier"):
        found.transform = Transform("pre_classifier", read, "classifier")
    return found


def base_prefix(model: PreTrainedModel) -> str:
    """What stands in ``model`` before the names of what lies in its ``base_model``."""
    return "" if model.base_model is model else f"{model.base_model_prefix}."


_KINDS: dict[str, Callable[[Any], Anatomy]] = {
    "bart": lambda model: _bart(model, normalise_first=False),
    "mbart": lambda model: _bart(model, normalise_first=True),
    "t5": _t5,
    "mt5": _t5,
    "bert": _bert,
    "roberta": _bert,
    "distilbert": _distilbert,
}
