"""Running an encoder-only model and handing out its states; hidden states are packed, without pads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from cktk.architectures.states.adapter import Layout
from cktk.architectures.states.capture import captured_projections, captured_states, first_only, pack
from cktk.errors import ConfigError
from cktk.protocols import AttentionStates, Batch, HeadParams, ModelOutput, StateRequest


def encoder_inputs(config: Any, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What an encoder of ``config`` reads; kinds of sentence only where it tells several apart (RoBERTa does not)."""
    names = ["input_ids", "attention_mask"]
    if getattr(config, "type_vocab_size", 1) > 1 and "token_type_ids" in inputs:
        names.append("token_type_ids")
    return {name: inputs[name] for name in names}


@dataclass(frozen=True)
class EncoderHead:
    """The output head of a model: its last linear, and what comes between the last states and that.

    ``features`` turns states (N, d) of scored positions into the linear's input (N, d); of a head that is ``pooled``,
    the states (B, S, d) of whole sentences into one row a sentence (B, d).
    """

    linear: nn.Linear
    features: Callable[[Tensor], Tensor]
    pooled: bool = False


class EncoderAdapter:
    """The states of one BERT-like model, teacher or student.

    It runs the encoder once, never the last linear of the head, and keeps only the states asked for. It owns no
    parameters and leaves no hooks behind, so it works under ``no_grad``, under autocast and inside a module that DDP
    wraps. The models are post-norm throughout: every state, that of the embeddings included, has passed a LayerNorm.
    """

    def __init__(self, model: PreTrainedModel, layout: Layout, head: EncoderHead | None) -> None:
        self.model: Any = model
        self._layout = layout
        self._head = head

    def __call__(self, batch: Batch, request: StateRequest) -> ModelOutput:
        """Run the model on ``batch`` as far as ``request`` needs.

        ``hidden["encoder", i]`` (N_encoder, d) equals transformers' ``hidden_states[i]`` at ``batch.rows("encoder")``
        in row-major order, and ``first["encoder", i]`` its first rows of sentences; ``attention["encoder", i]`` are
        the projections of layer i, counted from 1. ``head_input`` are the rows of ``batch.rows("decoder")`` as they
        enter the last linear: positions for masked language models, sentences for classifiers. Raises `ConfigError`
        where a head is asked of a model without one.
        """
        output = ModelOutput(hidden={})
        if not request:
            return output
        sides = (request.hidden, request.first, request.attention)
        if any(asked.get("decoder") for asked in sides) or request.attention.get("cross"):
            raise ValueError("states of a decoder asked of a model that has none")
        layout, base = self._layout, self.model.base_model
        layers = base.get_submodule(layout.layers)
        wanted, attended = request.hidden.get("encoder", ()), request.attention.get("encoder", ())
        leading = request.first.get("encoder", ())
        with (
            captured_states(layers, {*wanted, *leading}) as states,
            captured_projections(layers, attended, layout.blocks["encoder"], layout.projections) as blocks,
        ):
            last: Tensor = base(**encoder_inputs(self.model.config, batch.inputs)).last_hidden_state
        rows = batch.rows("encoder")
        packed = pack({layer: states[layer] for layer in wanted}, rows)
        output.hidden.update({("encoder", layer): packed[layer] for layer in wanted})
        packed = pack({layer: states[layer] for layer in leading}, first_only(rows))
        output.first.update({("encoder", layer): packed[layer] for layer in leading})
        for layer, (block, projections) in blocks.items():
            output.attention["encoder", layer] = self._attention_states(block, projections, rows)
        if request.head:
            output.head_input = self._head_input(last, batch.rows("decoder"))
        return output

    def head(self) -> HeadParams:
        """The last linear of the head: over the vocabulary (V, d), or over the classes of sentences (C, d).

        Raises `ConfigError` for a model without a head.
        """
        linear = self._some_head().linear
        return HeadParams(weight=linear.weight, bias=linear.bias)

    def _head_input(self, last: Tensor, scored: Tensor) -> Tensor:
        head = self._some_head()
        if scored.numel() != (len(last) if head.pooled else last.shape[:2].numel()):
            unit = "sentence" if head.pooled else "position"
            raise ValueError(f"labels of shape {tuple(scored.shape)} for a head that scores each {unit}")
        if head.pooled:
            return head.features(last)[scored.flatten()]
        return head.features(pack({0: last}, scored)[0])

    def _some_head(self) -> EncoderHead:
        if self._head is None:
            raise ConfigError(
                f"a {type(self.model).__name__} has no output head, but cross entropy and KL need one: give a teacher "
                "that was saved with its head or set --kl-weight 0, and give the student one with --head"
            )
        return self._head

    def _attention_states(self, block: Any, projections: dict[str, Tensor], rows: Tensor) -> AttentionStates:
        query, key, value = (projections[name] for name in self._layout.projections)
        heads = int(getattr(block, self._layout.heads))
        return AttentionStates(query, key, value, heads, float(block.scaling), rows, rows, causal=False)
