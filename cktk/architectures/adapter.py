"""Running an encoder-decoder and handing out its states; hidden states are packed, so that their pads never leave."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cktk.architectures.capture import captured_projections, captured_states, pack
from cktk.errors import ConfigError
from cktk.protocols import AttentionKind, AttentionStates, Batch, HeadParams, ModelOutput, Side, StateRequest

#: Where the attention blocks of a kind are: the side, and the block's name in a layer of it.
_BLOCKS: dict[AttentionKind, tuple[Side, str]] = {
    "encoder": ("encoder", "self_attn"),
    "decoder": ("decoder", "self_attn"),
    "cross": ("decoder", "encoder_attn"),
}
_PROJECTIONS = ("q_proj", "k_proj", "v_proj")


class Seq2SeqAdapter:
    """The states of one BART or mBART model, teacher or student.

    It runs the encoder once and the decoder at most once, never the output head, and keeps only the states asked for.
    It owns no parameters and leaves no hooks behind, so it works under ``no_grad``, under autocast and inside a module
    that DDP wraps.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model: Any = model

    def __call__(self, batch: Batch, request: StateRequest) -> ModelOutput:
        """Run the model on ``batch`` as far as ``request`` needs.

        ``hidden[side, i]`` (N_side, d) equals transformers' ``hidden_states[i]`` of that side at ``batch.rows(side)``
        in row-major order; the last one follows the final norm where there is one. ``attention[kind, layer]`` are
        projections of layer ``layer``, counted from 1, as `AttentionStates`. The decoder is skipped when all that is
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
            for layer, (block, projections) in captured.items():
                output.attention[kind, layer] = _attention_states(kind, block, projections, batch)
        return output

    def _run_sides(self, batch: Batch, request: StateRequest, output: ModelOutput) -> None:
        """Run encoder and decoder as far as needed, and put the hidden states into ``output``."""
        inputs = batch.inputs
        encoder_layers = request.hidden.get("encoder", ())
        encoder_inputs = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}
        memory, states = _run(self._stack("encoder"), encoder_layers, encoder_inputs)
        packed = pack(states, batch.rows("encoder"))
        output.hidden.update({("encoder", layer): packed[layer] for layer in encoder_layers})

        decoder_layers = request.hidden.get("decoder", ())
        attended = request.attention.get("decoder") or request.attention.get("cross")
        if not decoder_layers and not request.head and not attended:
            return
        decoder_inputs = {
            "input_ids": inputs["decoder_input_ids"],
            "encoder_hidden_states": memory,
            "encoder_attention_mask": inputs["attention_mask"],
            "use_cache": False,
        }
        decoder = self._stack("decoder")
        last = len(decoder.layers)
        _, states = _run(decoder, {*decoder_layers, *([last] if request.head else [])}, decoder_inputs)
        packed = pack(states, batch.rows("decoder"))
        output.hidden.update({("decoder", layer): packed[layer] for layer in decoder_layers})
        output.head_input = packed[last] if request.head else None

    def _captured_attention(self, kind: AttentionKind, layers: tuple[int, ...]) -> Any:
        side, block = _BLOCKS[kind]
        stack = self._stack(side)
        _refuse_layerdrop(stack)
        return captured_projections(stack.layers, layers, block, _PROJECTIONS)

    def _stack(self, side: Side) -> Any:
        return self.model.get_encoder() if side == "encoder" else self.model.get_decoder()

    def head(self) -> HeadParams:
        """The output head: the weight (V, d), tied to the embedding as a rule, and ``final_logits_bias`` (V)."""
        return HeadParams(weight=self.model.get_output_embeddings().weight, bias=self.model.final_logits_bias[0])


def _run(stack: Any, layers: Iterable[int], inputs: dict[str, Any]) -> tuple[Tensor, dict[int, Tensor]]:
    """The stack's output (B, L, d), and the states ``layers`` of it, numbered as in ``hidden_states``."""
    last = len(stack.layers)
    wanted = set(layers)
    if wanted:
        _refuse_layerdrop(stack)
    with captured_states(stack.layers, wanted) as states:
        output: Tensor = stack(**inputs).last_hidden_state
    if last in wanted:  # the last state follows the final norm
        states[last] = output
    return output, states


def _refuse_layerdrop(stack: Any) -> None:
    if stack.training and stack.layerdrop:
        raise ConfigError(
            f"LayerDrop {stack.layerdrop} may skip the layers whose states are matched: set encoder_layerdrop and "
            "decoder_layerdrop to 0 in the model's config.json"
        )


def _attention_states(
    kind: AttentionKind, block: Any, projections: Mapping[str, Tensor], batch: Batch
) -> AttentionStates:
    """The projections with the rows that count.

    The decoder attends to all its positions on the left, scored or not, so that its keys all count; those on the right,
    pads among them, are hidden by ``causal``.
    """
    queries = batch.rows("encoder" if kind == "encoder" else "decoder")
    keys = batch.rows("encoder") if kind != "decoder" else torch.full_like(queries, not batch.dummy)
    query, key, value = (projections[name] for name in _PROJECTIONS)
    heads, scale = int(block.num_heads), float(block.scaling)
    return AttentionStates(query, key, value, heads, scale, queries, keys, causal=kind == "decoder")
