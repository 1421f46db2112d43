"""Running an encoder-decoder and handing out its states, packed: rows of pads never leave this module."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from cktk.errors import ConfigError
from cktk.protocols import Batch, HeadParams, ModelOutput, StateRequest


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
        in row-major order; the last one follows the final norm where there is one. The decoder is skipped when only
        encoder states are asked for. Raises `ConfigError` for states of layers that LayerDrop may skip.
        """
        output = ModelOutput(hidden={})
        if not request:
            return output
        inputs = batch.inputs
        encoder_layers = request.hidden.get("encoder", ())
        encoder_inputs = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}
        memory, states = _run(self.model.get_encoder(), encoder_layers, encoder_inputs)
        packed = _pack(states, batch.rows("encoder"))
        output.hidden.update({("encoder", layer): packed[layer] for layer in encoder_layers})

        decoder_layers = request.hidden.get("decoder", ())
        if not decoder_layers and not request.head:
            return output
        decoder_inputs = {
            "input_ids": inputs["decoder_input_ids"],
            "encoder_hidden_states": memory,
            "encoder_attention_mask": inputs["attention_mask"],
            "use_cache": False,
        }
        decoder = self.model.get_decoder()
        last = len(decoder.layers)
        _, states = _run(decoder, {*decoder_layers, *([last] if request.head else [])}, decoder_inputs)
        packed = _pack(states, batch.rows("decoder"))
        output.hidden.update({("decoder", layer): packed[layer] for layer in decoder_layers})
        output.head_input = packed[last] if request.head else None
        return output

    def head(self) -> HeadParams:
        """The output head: the weight (V, d), tied to the embedding as a rule, and ``final_logits_bias`` (V)."""
        return HeadParams(weight=self.model.get_output_embeddings().weight, bias=self.model.final_logits_bias[0])


def _run(stack: Any, layers: Iterable[int], inputs: dict[str, Any]) -> tuple[Tensor, dict[int, Tensor]]:
    """The stack's output (B, L, d), and the states ``layers`` of it, numbered as in ``hidden_states``."""
    last = len(stack.layers)
    wanted = set(layers)
    if not wanted <= set(range(last + 1)):
        raise ValueError(f"states {sorted(wanted)} asked of a stack whose states are 0 to {last}")
    if wanted and stack.training and stack.layerdrop:
        raise ConfigError(
            f"LayerDrop {stack.layerdrop} may skip the layers whose states are matched: set encoder_layerdrop and "
            "decoder_layerdrop to 0 in the model's config.json"
        )
    with _captured(stack, wanted - {last}) as states:
        output: Tensor = stack(**inputs).last_hidden_state
    if last in wanted:
        states[last] = output
    return output, states


@contextmanager
def _captured(stack: Any, wanted: set[int]) -> Iterator[dict[int, Tensor]]:
    """Collect the input of the first layer as state 0 and the output of layer i as state i while inside.

    transformers' own ``output_hidden_states=[...]`` is not used: it counts the encoder's layers for both sides, and so
    drops the upper states of a decoder that is deeper than its encoder.
    """
    states: dict[int, Tensor] = {}

    def keep_input(_: Any, arguments: tuple[Any, ...]) -> None:
        states[0] = arguments[0]

    def keep_output(layer: int) -> Any:
        def hook(_module: Any, _arguments: tuple[Any, ...], output: Tensor) -> None:
            states[layer] = output

        return hook

    with ExitStack() as hooks:
        for layer in wanted:
            if layer == 0:
                hooks.enter_context(stack.layers[0].register_forward_pre_hook(keep_input))
            else:
                hooks.enter_context(stack.layers[layer - 1].register_forward_hook(keep_output(layer)))
        yield states


def _pack(states: dict[int, Tensor], rows: Tensor) -> dict[int, Tensor]:
    """Of states (B, L, d) the rows where the mask ``rows`` (B, L) holds: (N, d) each, found once for all of them."""
    index = rows.flatten().nonzero().squeeze(1)
    flat = {layer: state.flatten(0, 1) for layer, state in states.items()}
    if len(index) == rows.numel():
        return flat
    return {layer: state.index_select(0, index) for layer, state in flat.items()}
