"""Running an encoder-decoder and handing out its states; hidden states are packed, so that their pads never leave."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cktk.architectures.states.capture import captured_projections, captured_states, first_only, pack
from cktk.errors import ConfigError
from cktk.protocols import AttentionKind, AttentionStates, Batch, HeadParams, ModelOutput, Side, StateRequest

_SIDES: dict[AttentionKind, Side] = {"encoder": "encoder", "decoder": "decoder", "cross": "decoder"}


@dataclass(frozen=True)
class Layout:
    """The names under which a kind of model keeps its layers and their attention.

    ``layers`` is that of the list of layers in a stack, ``blocks`` are those of the attention blocks in a layer,
    ``projections`` those of queries, keys and values in a block, and ``heads`` is that of their number.
    Where ``position_bias``, a block of self-attention adds something to its scores and returns it second.
    """

    layers: str
    blocks: Mapping[AttentionKind, str]
    projections: tuple[str, str, str]
    heads: str
    position_bias: bool = False


class Seq2SeqAdapter:
    """The states of one encoder-decoder, teacher or student: BART or mBART, others by another ``layout``.

    It runs the encoder once and the decoder at most once, never the output head, and keeps only the states asked for.
    It owns no parameters and leaves no hooks behind, so it works under ``no_grad``, under autocast and inside a module
    that DDP wraps.
    """

    layout: ClassVar[Layout] = Layout(
        layers="layers",
        blocks={"encoder": "self_attn", "decoder": "self_attn", "cross": "encoder_attn"},
        projections=("q_proj", "k_proj", "v_proj"),
        heads="num_heads",
    )

    def __init__(self, model: PreTrainedModel) -> None:
        self.model: Any = model

    def __call__(self, batch: Batch, request: StateRequest) -> ModelOutput:
        """Run the model on ``batch`` as far as ``request`` needs.

        ``hidden[side, i]`` (N_side, d) equals transformers' ``hidden_states[i]`` of that side at ``batch.rows(side)``
        in row-major order; the last one follows the final norm where there is one. ``first[side, i]`` are its first
        rows of sentences. ``attention[kind, layer]`` are projections of layer ``layer``, counted from 1, as
        `AttentionStates`. The decoder is skipped when all that is
        asked for is of the encoder. Raises `ConfigError` for states of layers that LayerDrop may skip.
        """
        output = ModelOutput(hidden={})
        if not request:
            return output
        with ExitStack() as hooks:
            blocks = {
                kind: hooks.enter_context(self._captured_attention(kind, layers))
                for kind, layers in request.attention.items()
                if layers
            }
            self._run_sides(batch, request, output)
        for kind, captured in blocks.items():
            for layer, (block, outputs) in captured.items():
                output.attention[kind, layer] = self._attention_states(kind, block, outputs, batch)
        return output

    def _run_sides(self, batch: Batch, request: StateRequest, output: ModelOutput) -> None:
        """Run encoder and decoder as far as needed, and put the hidden states into ``output``."""
        inputs = batch.inputs
        encoder_layers = _states_of("encoder", request)
        encoder_inputs = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}
        memory, states = self._run("encoder", encoder_layers, encoder_inputs)
        _put("encoder", states, batch, request, output)

        decoder_layers = _states_of("decoder", request)
        attended = request.attention.get("decoder") or request.attention.get("cross")
        if not decoder_layers and not request.head and not attended:
            return
        decoder_inputs = {
            "input_ids": inputs["decoder_input_ids"],
            "encoder_hidden_states": memory,
            "encoder_attention_mask": inputs["attention_mask"],
            "use_cache": False,
        }
        last = len(self._layers("decoder"))
        _, states = self._run("decoder", {*decoder_layers, *([last] if request.head else [])}, decoder_inputs)
        _put("decoder", states, batch, request, output)
        if request.head:  # one tensor with the last state, where that is wanted too
            known = output.hidden.get(("decoder", last))
            output.head_input = pack({last: states[last]}, batch.rows("decoder"))[last] if known is None else known

    def _captured_attention(self, kind: AttentionKind, layers: tuple[int, ...]) -> Any:
        side = _SIDES[kind]
        _refuse_layerdrop(self._stack(side))
        own = ("",) if self.layout.position_bias and kind != "cross" else ()
        names = (*self.layout.projections, *own)
        return captured_projections(self._layers(side), layers, self.layout.blocks[kind], names)

    def _stack(self, side: Side) -> Any:
        return self.model.get_encoder() if side == "encoder" else self.model.get_decoder()

    def _layers(self, side: Side) -> nn.ModuleList:
        layers: nn.ModuleList = getattr(self._stack(side), self.layout.layers)
        return layers

    def _run(self, side: Side, layers: Iterable[int], inputs: dict[str, Any]) -> tuple[Tensor, dict[int, Tensor]]:
        """The output of one side (B, L, d), and the states ``layers`` of it, numbered as in ``hidden_states``."""
        stack, last = self._stack(side), len(self._layers(side))
        wanted = set(layers)
        if wanted:
            _refuse_layerdrop(stack)
        with captured_states(self._layers(side), wanted) as states:
            output: Tensor = stack(**inputs).last_hidden_state
        if last in wanted:  # the last state follows the final norm
            states[last] = output
        return output, states

    def _attention_states(
        self, kind: AttentionKind, block: Any, outputs: Mapping[str, Any], batch: Batch
    ) -> AttentionStates:
        """The projections with the rows that count.

        The decoder attends to all its positions on the left, scored or not, so that its keys all count; those on the
        right, pads among them, are hidden by ``causal``.
        """
        queries = batch.rows("encoder" if kind == "encoder" else "decoder")
        keys = batch.rows("encoder") if kind != "decoder" else torch.full_like(queries, not batch.dummy)
        query, key, value = (outputs[name] for name in self.layout.projections)
        heads, scale = int(getattr(block, self.layout.heads)), float(block.scaling)
        bias = outputs[""][1][0] if "" in outputs else None
        return AttentionStates(query, key, value, heads, scale, queries, keys, kind == "decoder", bias)

    def head(self) -> HeadParams:
        """The output head: the weight (V, d), tied to the embedding as a rule, and ``final_logits_bias`` (V)."""
        return HeadParams(weight=self.model.get_output_embeddings().weight, bias=self.model.final_logits_bias[0])


def _states_of(side: Side, request: StateRequest) -> set[int]:
    return {*request.hidden.get(side, ()), *request.first.get(side, ())}


def _put(side: Side, states: dict[int, Tensor], batch: Batch, request: StateRequest, output: ModelOutput) -> None:
    """Put what ``request`` asks of the ``states`` (B, L, d) of one side into ``output``."""
    rows = batch.rows(side)
    for found, layers, mask in (
        (output.hidden, request.hidden.get(side, ()), rows),
        (output.first, request.first.get(side, ()), first_only(rows)),
    ):
        packed = pack({layer: states[layer] for layer in layers}, mask)
        found.update({(side, layer): packed[layer] for layer in layers})


def _refuse_layerdrop(stack: Any) -> None:
    dropped = getattr(stack, "layerdrop", 0)
    if stack.training and dropped:
        raise ConfigError(
            f"LayerDrop {dropped} may skip the layers whose states are matched: set encoder_layerdrop and "
            "decoder_layerdrop to 0 in the model's config.json"
        )
