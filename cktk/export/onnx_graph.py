"""A graph of ONNX operators under construction, with the parts that transformers are made of.

Shapes: B sentences, n positions, a width of all heads, H heads, h width of a head.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cktk.errors import ConfigError
from cktk.export.optional import load

#: Of the operators used, Gelu is the newest.
OPSET = 20

_GELU = {"gelu": "none", "gelu_new": "tanh", "gelu_fast": "tanh", "gelu_pytorch_tanh": "tanh"}
_PLAIN = {"relu": "Relu", "sigmoid": "Sigmoid", "tanh": "Tanh"}


class Graph:
    """Nodes and weights; methods add nodes and return the name of their output, or of each."""

    def __init__(self) -> None:
        self._onnx = load("onnx")
        self._nodes: list[Any] = []
        self._weights: dict[str, Any] = {}
        self._known: dict[object, str] = {}
        self._kept: list[Tensor] = []  # alive, so that no other tensor takes the place in memory

    def op(self, kind: str, *inputs: str, out: str | None = None, **attributes: Any) -> str:
        """One operator with one output, which is called ``out``."""
        name = out or f"{kind.lower()}_{len(self._nodes)}"
        self._nodes.append(self._onnx.helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def integers(self, *values: int, scalar: bool = False) -> str:
        """A constant vector of int64, or a scalar."""
        return self._constant(np.array(values[0] if scalar else values, dtype=np.int64))

    def number(self, value: float) -> str:
        """A constant scalar of float32."""
        return self._constant(np.array(value, dtype=np.float32))

    def weight(self, tensor: Tensor) -> str:
        """A tensor of the model; the same one is kept once."""
        key = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride())
        if key not in self._known:
            self._known[key] = self._add(tensor.detach().float().contiguous().numpy())
            self._kept.append(tensor)
        return self._known[key]

    def _constant(self, array: Any) -> str:
        key = (str(array.dtype), array.shape, array.tobytes())
        if key not in self._known:
            self._known[key] = self._add(array)
        return self._known[key]

    def _add(self, array: Any) -> str:
        name = f"weight_{len(self._weights)}"
        self._weights[name] = self._onnx.numpy_helper.from_array(array, name)
        return name

    def affine(self, x: str, module: Any, scale: float = 1.0) -> str:
        """A linear layer, whose output is multiplied by ``scale``."""
        weight = module.weight.detach().t()
        y = self.op("MatMul", x, self._scaled(weight, scale))
        return y if module.bias is None else self.op("Add", y, self._scaled(module.bias.detach(), scale))

    def _scaled(self, tensor: Tensor, scale: float) -> str:
        return self.weight(tensor) if scale == 1.0 else self._add((tensor * scale).contiguous().numpy())

    def norm(self, x: str, module: Any) -> str:
        """Layer norm, or without a bias RMS norm."""
        weight = self.weight(module.weight)
        bias = getattr(module, "bias", None)
        if bias is not None:
            return self.op("LayerNormalization", x, weight, self.weight(bias), epsilon=float(module.eps))
        mean = self.op("ReduceMean", self.op("Mul", x, x), self.integers(-1))
        root = self.op("Sqrt", self.op("Add", mean, self.number(module.variance_epsilon)))
        return self.op("Mul", self.op("Div", x, root), weight)

    def activation(self, x: str, name: str) -> str:
        """The activation that a configuration calls ``name``; raises `ConfigError` for one not known."""
        if name in _GELU:
            return self.op("Gelu", x, approximate=_GELU[name])
        if name in ("silu", "swish"):
            return self.op("Mul", x, self.op("Sigmoid", x))
        if name not in _PLAIN:
            known = ", ".join(sorted([*_GELU, *_PLAIN, "silu", "swish"]))
            raise ConfigError(f"--format onnx knows no activation {name!r}, only {known}: use another format")
        return self.op(_PLAIN[name], x)

    def split_heads(self, x: str, heads: int) -> str:
        """(B, n, a) to (B, H, n, h)."""
        return self.op("Transpose", self.op("Reshape", x, self.integers(0, 0, heads, -1)), perm=[0, 2, 1, 3])

    def attend(self, query: str, keys: str, values: str, bias: str | None) -> str:
        """Attention of scaled queries, all (B, H, n, h), as (B, n, a); ``bias`` is added to the scores."""
        scores = self.op("MatMul", query, self.op("Transpose", keys, perm=[0, 1, 3, 2]))
        if bias is not None:
            scores = self.op("Add", scores, bias)
        mixed = self.op("MatMul", self.op("Softmax", scores, axis=-1), values)
        return self.op("Reshape", self.op("Transpose", mixed, perm=[0, 2, 1, 3]), self.integers(0, 0, -1))

    def unseen(self, attention_mask: str) -> str:
        """What keeps the scores of pads low, (B, 1, 1, n), from a mask (B, n) of ones and zeros."""
        pads = self.op("Sub", self.number(1.0), self.op("Cast", attention_mask, to=self._onnx.TensorProto.FLOAT))
        low = self.op("Mul", pads, self.number(torch.finfo(torch.float32).min))
        return self.op("Unsqueeze", low, self.integers(1, 2))

    def size(self, x: str, axis: int) -> str:
        """The length of an axis, as a vector of one."""
        return self.op("Shape", x, start=axis, end=axis + 1)

    def count(self, start: str, stop: str, step: int = 1) -> str:
        """The integers from ``start`` to before ``stop``, which are scalars."""
        return self.op("Range", start, stop, self.integers(step, scalar=True))

    def scalar(self, x: str) -> str:
        """A vector of one as a scalar."""
        return self.op("Squeeze", x, self.integers(0))

    def stacked(self, parts: list[str], out: str) -> str:
        """Tensors of equal shape one upon another, along a new first axis."""
        raised = [self.op("Unsqueeze", part, self.integers(0)) for part in parts]
        return self.op("Concat", *raised, out=out, axis=0)

    def save(self, file: Path, inputs: dict[str, tuple[str, list[Any]]], outputs: dict[str, list[Any]]) -> None:
        """Write the graph, and its weights beside; shapes are numbers and names, ``inputs`` also have a type."""
        helper, kinds = self._onnx.helper, self._onnx.TensorProto
        types = {"int64": kinds.INT64, "float32": kinds.FLOAT}
        graph = helper.make_graph(
            self._nodes,
            file.stem,
            [helper.make_tensor_value_info(name, types[kind], shape) for name, (kind, shape) in inputs.items()],
            [helper.make_tensor_value_info(name, kinds.FLOAT, shape) for name, shape in outputs.items()],
            list(self._weights.values()),
        )
        # IR 10 is what readers of this operator set know.
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
        model.producer_name = "cktk"
        data = f"{file.name}.data"
        self._onnx.save(model, file, save_as_external_data=True, location=data, size_threshold=1024)
