"""Incremental encoder-decoder inference: one new position for every live beam at a time.

Shapes: B sentences, W beams of a sentence, S source positions, H heads, a width of all of them, d width of the model,
n cache slots.

Two ideas keep it cheap. Cross-attention keys and values exist once per sentence, and the beams are further rows of the
query. Self-attention does the same: each step appends one slot per beam to the cache of the sentence, all beams of the
sentence attend to all its slots, and a mask (B, W, n) lets each see its own ancestors only. Choosing new beams then
reorders that small mask instead of copying keys and values in every layer. When the slots are used up, those that no
beam descends from are given free.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from cktk.generation.operators.choice import choose_operators
from cktk.generation.operators.contract import Linear, Operators
from cktk.generation.operators.dense import DenseOperators
from cktk.generation.weights import DecoderWeights, LayerWeights, read_weights
from cktk.protocols import DecoderLayout

#: Cache slots are allocated for this many steps at first.
FIRST_STEPS = 24


class DecoderState:
    """Caches of one batch of sentences while it is being decoded.

    ``cross`` and ``own`` hold the keys and values of each layer (2, B, H, S or slots, width of a head), those of the
    source and those of what is written. ``ancestry`` (B, W, n) is added to the scores of self-attention: 0 for the
    slots that a beam descends from, else -inf. ``slot_positions`` (B, n) says which step each slot is of.
    """

    def __init__(self, cross: list[Tensor], source_mask: Tensor | None, operators: Operators) -> None:
        self.operators = operators
        self.cross = cross
        self.source_mask = source_mask
        self.own = [source[:, :, :, :0] for source in cross]
        batch = cross[0].shape[1]
        self.ancestry = cross[0].new_zeros(batch, 1, 0)
        self.slot_positions = torch.empty(batch, 0, dtype=torch.long, device=cross[0].device)
        self.position = 0

    @property
    def capacity(self) -> int:
        """Slots that there is room for."""
        return self.own[0].shape[3]

    @property
    def cache_bytes(self) -> int:
        """Memory of all caches."""
        return sum(cache.nbytes for cache in (*self.cross, *self.own))

    def reorder(self, parents: Tensor) -> None:
        """Continue with new beams: ``parents`` (B, W') holds the beam that each comes from."""
        self.ancestry = self.ancestry.gather(1, parents[:, :, None].expand(-1, -1, self.ancestry.shape[2]))

    def keep(self, sentences: Tensor) -> None:
        """Drop all sentences but those at the indices ``sentences``."""
        used = self.ancestry.shape[2]
        self.cross = [cache[:, sentences] for cache in self.cross]
        if self.source_mask is not None:
            self.source_mask = self.source_mask[sentences]
        self.ancestry = self.ancestry[sentences]
        self.slot_positions = self.slot_positions[sentences]
        self.own = [_with_room(cache[:, sentences, :, :used], self.capacity) for cache in self.own]

    def open_slots(self, beams: int) -> tuple[int, int]:
        """Make room for one step of ``beams`` beams; returns its slots (from, to). Each beam sees its own new one."""
        if self.ancestry.shape[2] + beams > self.capacity:
            self._make_room(beams)
        used = self.ancestry.shape[2]
        own = self.ancestry.new_full((beams, beams), float("-inf")).fill_diagonal_(0.0)
        self.ancestry = torch.cat([self.ancestry, own.expand(len(self.ancestry), -1, -1)], dim=2)
        self.slot_positions = F.pad(self.slot_positions, (0, beams), value=self.position)
        return used, used + beams

    def _make_room(self, beams: int) -> None:
        """Drop the slots that no beam descends from any more; grow where that does not set half of them free.

        Beams have most of their history in common, so that few of its slots stay in use.
        """
        seen = (self.ancestry == 0).any(dim=1)
        used = int(seen.sum(dim=1).max()) if seen.shape[1] else 0
        slots = seen.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :used]
        capacity = max(self.capacity, FIRST_STEPS * beams)
        if used > capacity // 2:
            capacity = max(capacity * 3 // 2, used + beams)
        self.ancestry = self.ancestry.gather(2, slots[:, None].expand(-1, self.ancestry.shape[1], -1))
        self.slot_positions = self.slot_positions.gather(1, slots)
        for layer, cache in enumerate(self.own):
            self.operators.keep_slots(cache, slots)
            if capacity > cache.shape[3]:
                self.own[layer] = _with_room(cache[:, :, :, :used], capacity)


def _with_room(kept: Tensor, capacity: int) -> Tensor:
    """Slots ``kept`` (2, B, H, n, a / H) at the beginning of a cache with ``capacity`` slots."""
    cache = kept.new_empty(*kept.shape[:3], capacity, kept.shape[4])
    cache[:, :, :, : kept.shape[3]] = kept
    return cache


class IncrementalDecoder:
    """Steps through the decoder of a Hugging Face encoder-decoder, whose weights are read at construction.

    The encoder runs through transformers. With ``int8`` all products are in 8-bit integers; with ``compiled``
    `torch.compile` fuses the layers. Work inside `torch.inference_mode`.
    """

    def __init__(self, model: Any, layout: DecoderLayout, *, int8: bool = False, compiled: bool = False) -> None:
        self.operators = DenseOperators() if compiled else choose_operators(model.device, model.dtype, int8=int8)
        self.weights: DecoderWeights = read_weights(model, layout, self.operators)
        encoder = model.get_encoder()
        self.encoder = int8_copy(encoder, self.operators) if int8 else encoder
        self.device: torch.device = self.weights.head.device
        self._stack: Callable[..., Tensor] = torch.compile(self._layers, dynamic=True) if compiled else self._layers
        heads = self.weights.heads
        self._heads = (heads, self.weights.layers[0].self_out.features[0] // heads)

    def start(self, input_ids: Tensor, attention_mask: Tensor | None) -> DecoderState:
        """Encode sources (B, S); ``attention_mask`` (B, S) is None where nothing is padded."""
        with evaluating(self.encoder):
            states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        cross = [self._source_keys_values(layer, states) for layer in self.weights.layers]
        mask = None
        if attention_mask is not None:
            mask = states.new_zeros(attention_mask.shape).masked_fill_(attention_mask == 0, float("-inf"))
            mask = mask[:, None, None, :]
        return DecoderState(cross, mask, self.operators)

    def step(self, state: DecoderState, tokens: Tensor) -> Tensor:
        """Feed one token per beam, ``tokens`` (B, W); returns the states (B * W, d) that enter the output head."""
        w = self.weights
        slots = state.open_slots(tokens.shape[1])
        x = F.embedding(tokens.flatten(), w.embedding)
        if w.embedding_scale != 1.0:
            x = x * w.embedding_scale
        if w.positions is not None:
            x = x + w.positions[state.position]
        if w.embedding_norm is not None:
            x = w.embedding_norm(x)
        mask = self._self_mask(state)
        x = self._stack(x, state.own, state.cross, slots, mask, state.source_mask)
        state.position += 1
        return x if w.final_norm is None else w.final_norm(x)

    def _self_mask(self, state: DecoderState) -> Tensor | None:
        """What is added to the scores of self-attention, broadcast to (B, H, W, n): ancestry, and bias by distance."""
        # A single beam descends from all slots.
        ancestry = state.ancestry[:, None] if state.ancestry.shape[1] > 1 else None
        table = self.weights.position_bias
        if table is None:
            return ancestry
        distances = (state.position - state.slot_positions).clamp_(max=table.shape[1] - 1)
        bias = table[:, distances].transpose(0, 1)[:, :, None]
        return bias if ancestry is None else ancestry + bias

    def _layers(
        self,
        x: Tensor,
        own: list[Tensor],
        cross: list[Tensor],
        slots: tuple[int, int],
        mask: Tensor | None,
        source_mask: Tensor | None,
    ) -> Tensor:
        """All layers, which write to ``slots`` of the caches ``own``; a function of tensors, which may be compiled."""
        pre, compute = self.weights.pre_norm, self.operators
        for layer, cache, source in zip(self.weights.layers, own, cross, strict=True):
            mixed = layer.self_qkv(layer.self_norm(x) if pre else x)
            written = layer.self_out(compute.append_and_attend(mixed, cache, slots, mask))
            x = x + written if pre else layer.self_norm(x, written)
            query = layer.cross_q(layer.cross_norm(x) if pre else x)
            read = layer.cross_out(compute.attend(query, source, source_mask))
            x = x + read if pre else layer.cross_norm(x, read)
            ffn = layer.down(layer.up(layer.ffn_norm(x) if pre else x))
            x = x + ffn if pre else layer.ffn_norm(x, ffn)
        return x

    def _source_keys_values(self, layer: LayerWeights, states: Tensor) -> Tensor:
        batch, length, _ = states.shape
        both = layer.cross_kv(states.flatten(0, 1)).view(batch, length, 2, *self._heads)
        return both.permute(2, 0, 3, 1, 4).contiguous()


class Int8Module(torch.nn.Module):
    """A product in 8-bit integers in the place of a `torch.nn.Linear`, for inference."""

    def __init__(self, linear: Linear) -> None:
        super().__init__()
        self._linear = linear
        # What models of transformers look at before they choose a precision.
        self.weight = torch.empty(0, dtype=torch.int8)

    def forward(self, x: Tensor) -> Tensor:
        """The product over the last dimension."""
        return self._linear(x.flatten(0, -2)).view(*x.shape[:-1], -1)


def int8_copy(encoder: torch.nn.Module, operators: Operators) -> torch.nn.Module:
    """The same module with linear layers by ``operators`` in 8-bit integers; all else shares memory with it."""
    shared: dict[int, Any] = {id(parameter): parameter for parameter in encoder.parameters()}
    copied = copy.deepcopy(encoder, shared)
    for name, module in list(copied.named_modules()):
        if isinstance(module, torch.nn.Linear):
            bias = None if module.bias is None else module.bias.detach()
            copied.set_submodule(name, Int8Module(operators.linear(module.weight.detach(), bias)))
    return copied


@contextmanager
def evaluating(module: torch.nn.Module) -> Iterator[None]:
    """Switch off dropout inside ``module`` for a while; afterwards every part is in the mode that it was in."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True
