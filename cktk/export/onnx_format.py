"""Students as ONNX: one graph for the encoder, one for a step of the decoder.

The encoder gives what the decoder's layers read of a source, so that this is computed once. Graphs are written operator
by operator, from the same description of a decoder that our own generation goes by: no tracing, and the same file from
every version of torch.

Shapes: B sentences, S source positions, n tokens so far, L decoder layers, H heads, h width of a head, V tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cktk.architectures.families.family import family_of
from cktk.architectures.loading import make_readable
from cktk.export.onnx_graph import Graph
from cktk.protocols import DecoderLayout

ENCODER, DECODER = "encoder.onnx", "decoder.onnx"


def write_onnx(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write both graphs, configuration and tokenizer into the existing ``folder``.

    Raises `ConfigError` for an activation that has no operator.
    """
    layout = family_of(model.config.model_type, "the model").decoder_layout(model.config)
    Writer(model, layout).encoder(folder / ENCODER)
    Writer(model, layout).decoder(folder / DECODER)
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    make_readable(folder)


class Writer:
    """Writes one graph of ``model``, whose decoder ``layout`` describes."""

    def __init__(self, model: Any, layout: DecoderLayout) -> None:
        self._model, self._layout = model, layout
        self._graph = Graph()
        self._layers = attrgetter(layout.layers)(model.get_decoder())
        config = model.config
        self._activation = getattr(config, "activation_function", None) or config.dense_act_fn
        attention = attrgetter(layout.cross_attention)(self._layers[0])
        width = attrgetter(layout.projections[1])(attention).weight.shape[0]
        self._cache = [len(self._layers), "batch", layout.heads, width // layout.heads]

    def encoder(self, file: Path) -> None:
        """Source ids and mask (B, S) to ``cross_keys`` and ``cross_values`` (L, B, H, S, h)."""
        graph, stack = self._graph, self._model.get_encoder()
        length = graph.scalar(graph.size("input_ids", 1))
        places = graph.count(graph.integers(0, scalar=True), length)
        x = self._embedded(stack, "input_ids", places)
        bias = graph.unseen("attention_mask")
        if self._layout.position_bias is not None:
            table = both_ways(attrgetter(self._layout.position_bias)(stack))
            bias = graph.op("Add", bias, self._by_distance(table, places))
        for layer in attrgetter(self._layout.layers)(stack):
            x = self._encoder_layer(layer, x, bias)
        x = self._finished(stack, x)
        for number, out in ((1, "cross_keys"), (2, "cross_values")):
            blocks = [attrgetter(self._layout.cross_attention)(layer) for layer in self._layers]
            parts = [self._heads(x, attrgetter(self._layout.projections[number])(block)) for block in blocks]
            graph.stacked(parts, out)
        ids: tuple[str, list[Any]] = ("int64", ["batch", "source"])
        shape = self._shape("source")
        graph.save(file, {"input_ids": ids, "attention_mask": ids}, {"cross_keys": shape, "cross_values": shape})

    def decoder(self, file: Path) -> None:
        """The n-th tokens (B, 1), and keys and values before them, to logits (B, V), keys and values after them."""
        graph, stack = self._graph, self._model.get_decoder()
        place = graph.size("past_keys", 3)
        x = self._embedded(stack, "tokens", place)
        bias, unseen = None, graph.unseen("attention_mask")
        if self._layout.position_bias is not None:
            bias = self._bias_of_past(attrgetter(self._layout.position_bias)(stack), graph.scalar(place))
        keys, values = [], []
        for number, layer in enumerate(self._layers):
            x, key, value = self._decoder_layer(layer, x, graph.integers(number, scalar=True), bias, unseen)
            keys.append(key)
            values.append(value)
        self._logits(self._finished(stack, x))
        graph.stacked(keys, "keys")
        graph.stacked(values, "values")
        cross, past = ("float32", self._shape("source")), ("float32", self._shape("past"))
        inputs: dict[str, tuple[str, list[Any]]] = {
            "tokens": ("int64", ["batch", 1]),
            "attention_mask": ("int64", ["batch", "source"]),
            "cross_keys": cross,
            "cross_values": cross,
            "past_keys": past,
            "past_values": past,
        }
        after = self._shape("past + 1")
        logits = ["batch", self._model.config.vocab_size]
        graph.save(file, inputs, {"logits": logits, "keys": after, "values": after})

    def _shape(self, length: str) -> list[Any]:
        return [*self._cache[:3], length, self._cache[3]]

    def _embedded(self, stack: Any, ids: str, places: str) -> str:
        graph, layout = self._graph, self._layout
        x = graph.op("Gather", graph.weight(stack.embed_tokens.weight), ids)
        scale = 1.0 if layout.embedding_scale is None else float(attrgetter(layout.embedding_scale)(stack))
        if scale != 1.0:
            x = graph.op("Mul", x, graph.number(scale))
        if layout.positions is not None:
            module = attrgetter(layout.positions)(stack)
            table = graph.weight(module.weight.detach()[getattr(module, "offset", 0) :])
            x = graph.op("Add", x, graph.op("Gather", table, places))
        return x if layout.embedding_norm is None else graph.norm(x, attrgetter(layout.embedding_norm)(stack))

    def _finished(self, stack: Any, x: str) -> str:
        name = self._layout.final_norm
        return x if name is None else self._graph.norm(x, attrgetter(name)(stack))

    def _logits(self, x: str) -> None:
        graph, model = self._graph, self._model
        last = graph.op("Squeeze", x, graph.integers(1))
        if self._layout.head_scale != 1.0:
            last = graph.op("Mul", last, graph.number(self._layout.head_scale))
        inputs = [last, graph.weight(model.get_output_embeddings().weight)]
        bias = getattr(model, "final_logits_bias", None)
        if bias is not None and bool(bias.any()):
            inputs.append(graph.weight(bias.flatten()))
        graph.op("Gemm", *inputs, out="logits", transB=1)  # the matrix as it is: often the embedding

    def _encoder_layer(self, layer: Any, x: str, bias: str) -> str:
        layout = self._layout
        block = attrgetter(layout.self_attention)(layer)
        inner = self._before(layer, layout.norms[0], x)
        query, (keys, values) = self._queries(inner, block), self._keys_values(inner, block)
        x = self._added(layer, layout.norms[0], x, self._mixed(query, keys, values, bias, block))
        # T5 counts the parts of a block, and an encoder's has no cross-attention.
        up, down, norm = (
            [name.replace("layer.2.", "layer.1.", 1) for name in names]
            for names in (layout.up, [layout.down], [layout.norms[2]])
        )
        return self._feed_forward(layer, x, up, down[0], norm[0])

    def _decoder_layer(self, layer: Any, x: str, number: str, bias: str | None, unseen: str) -> tuple[str, str, str]:
        graph, layout = self._graph, self._layout
        own, cross = (attrgetter(name)(layer) for name in (layout.self_attention, layout.cross_attention))
        inner = self._before(layer, layout.norms[0], x)
        keys, values = (
            graph.op("Concat", graph.op("Gather", past, number, axis=0), new, axis=2)
            for past, new in zip(("past_keys", "past_values"), self._keys_values(inner, own), strict=True)
        )
        mixed = self._mixed(self._queries(inner, own), keys, values, bias, own)
        x = self._added(layer, layout.norms[0], x, mixed)
        query = self._queries(self._before(layer, layout.norms[1], x), cross)
        read_keys, read_values = (graph.op("Gather", name, number, axis=0) for name in ("cross_keys", "cross_values"))
        x = self._added(layer, layout.norms[1], x, self._mixed(query, read_keys, read_values, unseen, cross))
        return self._feed_forward(layer, x, layout.up, layout.down, layout.norms[2]), keys, values

    def _feed_forward(self, layer: Any, x: str, up: Sequence[str], down: str, norm: str) -> str:
        graph = self._graph
        inner = self._before(layer, norm, x)
        wide = [graph.affine(inner, attrgetter(name)(layer)) for name in up]
        active = graph.activation(wide[0], self._activation)
        if len(wide) > 1:
            active = graph.op("Mul", active, wide[1])
        return self._added(layer, norm, x, graph.affine(active, attrgetter(down)(layer)))

    def _before(self, layer: Any, norm: str, x: str) -> str:
        return self._graph.norm(x, attrgetter(norm)(layer)) if self._layout.pre_norm else x

    def _added(self, layer: Any, norm: str, x: str, y: str) -> str:
        x = self._graph.op("Add", x, y)
        return x if self._layout.pre_norm else self._graph.norm(x, attrgetter(norm)(layer))

    def _queries(self, x: str, block: Any) -> str:
        return self._heads(x, attrgetter(self._layout.projections[0])(block), float(block.scaling))

    def _keys_values(self, x: str, block: Any) -> tuple[str, str]:
        _, key, value, _ = self._layout.projections
        return self._heads(x, attrgetter(key)(block)), self._heads(x, attrgetter(value)(block))

    def _heads(self, x: str, module: Any, scale: float = 1.0) -> str:
        return self._graph.split_heads(self._graph.affine(x, module, scale), self._layout.heads)

    def _mixed(self, query: str, keys: str, values: str, bias: str | None, block: Any) -> str:
        out = attrgetter(self._layout.projections[3])(block)
        return self._graph.affine(self._graph.attend(query, keys, values, bias), out)

    def _by_distance(self, table: Tensor, places: str) -> str:
        """The bias (1, H, S, S) of an encoder, from ``table`` (H, 2 D + 1) by distances -D .. D."""
        graph, farthest = self._graph, table.shape[1] // 2
        keys, queries = (graph.op("Unsqueeze", places, graph.integers(axis)) for axis in (0, 1))
        distance = graph.op("Sub", keys, queries)
        bounds = graph.integers(-farthest, scalar=True), graph.integers(farthest, scalar=True)
        index = graph.op("Add", graph.op("Clip", distance, *bounds), graph.integers(farthest, scalar=True))
        found = graph.op("Gather", graph.weight(table), index, axis=1)
        return graph.op("Unsqueeze", found, graph.integers(0))

    def _bias_of_past(self, attention: Any, place: str) -> str:
        """The bias (1, H, 1, n + 1) of the keys up to the n-th, for the n-th query."""
        graph, table = self._graph, backwards(attention)
        distance = graph.count(place, graph.integers(-1, scalar=True), -1)
        index = graph.op("Min", distance, graph.integers(table.shape[1] - 1, scalar=True))
        found = graph.op("Gather", graph.weight(table), index, axis=1)
        return graph.op("Unsqueeze", found, graph.integers(0, 2))


def backwards(attention: Any) -> Tensor:
    """What T5's decoder adds to the score of the key so many tokens back, (H, D + 1); all beyond is as D."""
    distances = int(attention.relative_attention_max_distance) + 1
    with torch.no_grad():
        row: Tensor = attention.compute_bias(1, distances, past_seen_tokens=distances - 1)[0, :, 0]
    return row.flip(1).contiguous()


def both_ways(attention: Any) -> Tensor:
    """What T5's encoder adds to the score of the key -D .. D tokens ahead, (H, 2 D + 1)."""
    distances = int(attention.relative_attention_max_distance) + 1
    with torch.no_grad():
        square: Tensor = attention.compute_bias(distances, distances)[0]
    return torch.cat([square[:, 1:, 0].flip(1), square[:, 0]], dim=1).contiguous()
