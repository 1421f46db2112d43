"""Decoding by kernels of our own (in ``native``), for float32 and 8-bit integers on CPUs with AVX-512 and VNNI.

They are compiled when cktk is installed, where there is a C++ compiler. Nothing but speed depends on them: where they
are missing, PyTorch's operators do their work. ``CKTK_KERNELS=0`` in the environment leaves them alone.
"""

from __future__ import annotations

import ctypes
import logging
import os
import sysconfig
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from cktk.generation.logits import best_columns
from cktk.generation.operators.contract import Activation, Linear, Norm, TileProduct, gelu_tanh
from cktk.generation.operators.int8 import quantised

_log = logging.getLogger(__name__)

#: Of the compiled functions; as in kernels.cpp.
VERSION = 1

#: Of so many candidates and more PyTorch finds the best: the kernel puts each one into a list by itself.
MANY = 64

#: Outputs of a panel of weights, and what rows of integers are padded to; as in products.h.
PANEL = 32
DEPTH = 64

#: Numbers of the activations that a product does on its way out; any other one is done after it.
_ACTIVATIONS: dict[Activation | None, int] = {None: 0, F.relu: 1, F.gelu: 2, gelu_tanh: 3, F.silu: 4}

_POINTER, _SIZE, _INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
_PRODUCT = [_POINTER, _SIZE, _SIZE]
_OUTPUT = [_SIZE, _SIZE, _SIZE, _POINTER, _POINTER, _POINTER]
_SIGNATURES: dict[str, list[Any]] = {
    "linear": [*_PRODUCT, _POINTER, _POINTER, _SIZE, _INT, _POINTER, _INT],
    "linear_int8": [*_PRODUCT, _POINTER, _POINTER, _POINTER, _SIZE, _INT, _POINTER, _INT, _INT],
    "logits": [*_PRODUCT, _POINTER, _POINTER, *_OUTPUT, _INT],
    "logits_int8": [*_PRODUCT, _POINTER, _POINTER, _POINTER, *_OUTPUT, _INT, _INT],
    "best": [*[_POINTER] * 3, *[_SIZE] * 5, *[_POINTER] * 3],
    "norm": [_POINTER, _POINTER, _SIZE, _SIZE, _POINTER, _POINTER, ctypes.c_float, _POINTER],
    "attend": [
        *(_POINTER, _SIZE, _POINTER, _POINTER),
        *(_SIZE, _SIZE, _SIZE, _SIZE, _SIZE, _SIZE),
        *(_POINTER, _SIZE, _SIZE, _SIZE, _SIZE, _POINTER, _INT),
    ],
    "keep_slots": [_POINTER, _SIZE, _SIZE, _SIZE, _SIZE, _POINTER, _SIZE, _INT],
}


Kernel = Callable[..., None]


class Library:
    """The compiled kernels; ``amx`` says whether the processor multiplies tiles of integers."""

    linear: Kernel
    linear_int8: Kernel
    logits: Kernel
    logits_int8: Kernel
    best: Kernel
    norm: Kernel
    attend: Kernel
    keep_slots: Kernel

    def __init__(self, compiled: ctypes.CDLL, amx: bool) -> None:
        self.compiled = compiled
        self.amx = amx
        for name, arguments in _SIGNATURES.items():
            function = getattr(compiled, f"cktk_{name}")
            function.argtypes, function.restype = arguments, None
            setattr(self, name, function)


@cache
def library() -> Library | None:
    """The kernels; None where they were not compiled, the processor cannot run them, or the user does not want them."""
    if os.environ.get("CKTK_KERNELS") == "0":
        return None
    built = Path(__file__).parent / f"_kernels{sysconfig.get_config_var('EXT_SUFFIX')}"
    try:
        compiled = ctypes.CDLL(str(built))
        if compiled.cktk_version() == VERSION:
            level = compiled.cktk_level()
            return Library(compiled, amx=level > 1) if level > 0 else None
        reason = "are those of another version of cktk"
    except (OSError, AttributeError):
        reason = "cannot be loaded" if built.exists() else "were not compiled"
    if _could_run():
        _log.warning(
            "generation is slower than it could be: its kernels %s; install cktk once more, with a C++ compiler (g++) "
            "at hand, or set CKTK_KERNELS=0 to read this no more",
            reason,
        )
    return None


def _could_run() -> bool:
    """Whether this machine has the instructions that the kernels are made of."""
    processor = Path("/proc/cpuinfo")
    return processor.is_file() and "avx512_vnni" in processor.read_text(encoding="utf-8", errors="replace")


class Packed:
    """A weight (out, in) in panels, in float32 or in 8-bit integers with scales, and a bias."""

    def __init__(self, weight: Tensor, bias: Tensor | None, *, int8: bool) -> None:
        self.features = (weight.shape[1], weight.shape[0])
        # Kernels get addresses: what these lists hold must live as long as they do.
        self._tensors = _int8_panels(weight) if int8 else [_panels(weight)]
        self._bias = None if bias is None else bias.contiguous()
        self.addresses = (*(tensor.data_ptr() for tensor in self._tensors), _address(self._bias))


class KernelLinear:
    """See `Linear`. ``kernel`` multiplies with ``packed``; ``options`` stand before the number of threads."""

    def __init__(self, kernel: Kernel, packed: Packed, options: tuple[int, ...], activation: Activation | None) -> None:
        self.features = packed.features
        self._kernel = kernel
        self._packed = packed
        self._options = options
        self._number = _ACTIVATIONS.get(activation, 0)
        self._after = activation if activation not in _ACTIVATIONS else None

    def __call__(self, x: Tensor) -> Tensor:
        x = x.contiguous()
        rows, (size, out) = len(x), self.features
        found = x.new_empty(rows, out)
        given = (x.data_ptr(), rows, size, *self._packed.addresses, out, self._number, found.data_ptr())
        self._kernel(*given, *self._options, torch.get_num_threads())
        return found if self._after is None else self._after(found)


class KernelNorm:
    """See `Norm`."""

    def __init__(self, kernel: Kernel, weight: Tensor, bias: Tensor | None, eps: float) -> None:
        self._kernel = kernel
        self._weight = weight.contiguous()
        self._bias = None if bias is None else bias.contiguous()
        self._eps = eps

    def __call__(self, x: Tensor, added: Tensor | None = None) -> Tensor:
        rows, width = x.shape
        found = x.new_empty(rows, width)
        given = (x.data_ptr(), _address(added), rows, width, self._weight.data_ptr(), _address(self._bias))
        self._kernel(*given, self._eps, found.data_ptr())
        return found


class KernelTiles:
    """See `TileProduct`. ``packed`` has the columns of all tiles one after the other, of which ``columns`` are used."""

    def __init__(self, kernel: Kernel, packed: Packed, options: tuple[int, ...], columns: int) -> None:
        self._kernel = kernel
        self._packed = packed
        self._options = options
        self._columns = columns

    def __call__(self, states: Tensor, tiles: Tensor, maxima: Tensor) -> Tensor:
        states = states.contiguous()
        given = (states.data_ptr(), *states.shape, *self._packed.addresses, len(tiles), tiles.shape[2], self._columns)
        normalisers = states.new_empty(len(states))
        found = (tiles.data_ptr(), maxima.data_ptr(), normalisers.data_ptr())
        self._kernel(*given, *found, *self._options, torch.get_num_threads())
        return normalisers


class KernelOperators:
    """See `Operators`; with ``int8`` all products are in 8-bit integers."""

    def __init__(self, kernels: Library, *, int8: bool) -> None:
        self._kernels = kernels
        self._int8 = int8
        self._options = (int(kernels.amx),) if int8 else ()

    def linear(self, weight: Tensor, bias: Tensor | None, activation: Activation | None = None) -> Linear:
        """See `Operators`."""
        kernel = self._kernels.linear_int8 if self._int8 else self._kernels.linear
        return KernelLinear(kernel, Packed(weight, bias, int8=self._int8), self._options, activation)

    def norm(self, weight: Tensor, bias: Tensor | None, eps: float) -> Norm:
        """See `Operators`."""
        return KernelNorm(self._kernels.norm, weight, bias, eps)

    def tiles(self, weight: Tensor, bias: Tensor | None, columns: int) -> TileProduct:
        """See `Operators`."""
        kernel = self._kernels.logits_int8 if self._int8 else self._kernels.logits
        packed = Packed(weight.flatten(0, 1), None if bias is None else bias.flatten(), int8=self._int8)
        return KernelTiles(kernel, packed, self._options, columns)

    def best(self, tiles: Tensor, maxima: Tensor, offsets: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """See `Operators`."""
        if count >= MANY:
            return best_columns(tiles, maxima, offsets, count)
        offsets = offsets.contiguous()
        batch, beams = offsets.shape
        scores, places = offsets.new_empty(batch, count), torch.empty(2, batch, count, dtype=torch.long)
        parents, columns = places.unbind()
        given = (tiles.data_ptr(), maxima.data_ptr(), offsets.data_ptr(), batch, beams, len(tiles), tiles.shape[2])
        self._kernels.best(*given, count, scores.data_ptr(), parents.data_ptr(), columns.data_ptr())
        return scores, parents, columns

    def attend(self, query: Tensor, cache: Tensor, mask: Tensor | None) -> Tensor:
        """See `Operators`."""
        return self._attend(query, cache, cache.shape[3], mask, fresh=-1)

    def append_and_attend(self, mixed: Tensor, cache: Tensor, slots: tuple[int, int], mask: Tensor | None) -> Tensor:
        """See `Operators`."""
        return self._attend(mixed, cache, slots[1], mask, fresh=slots[0])

    def keep_slots(self, cache: Tensor, slots: Tensor) -> None:
        """See `Operators`."""
        slots = slots.contiguous()
        given = (cache.data_ptr(), *cache.shape[1:], slots.data_ptr(), slots.shape[1])
        self._kernels.keep_slots(*given, torch.get_num_threads())

    def _attend(self, query: Tensor, cache: Tensor, used: int, mask: Tensor | None, fresh: int) -> Tensor:
        _, batch, heads, capacity, width = cache.shape
        rows = len(query)
        found = query.new_empty(rows, heads * width)
        keys = cache.data_ptr()
        strides = (0, 0, 0) if mask is None else (_stride(mask, 0), _stride(mask, 1), _stride(mask, 2))
        self._kernels.attend(
            *(query.data_ptr(), query.shape[1], keys, keys + cache.stride(0) * cache.element_size()),
            *(batch, heads, rows // batch, width, capacity, used),
            *(_address(mask), *strides, fresh, found.data_ptr(), torch.get_num_threads()),
        )
        return found


def _stride(mask: Tensor, dimension: int) -> int:
    return 0 if mask.shape[dimension] == 1 else mask.stride(dimension)


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _panels(weight: Tensor) -> Tensor:
    """(out, in) as (panels, in, PANEL)."""
    padded = F.pad(weight, (0, 0, 0, -len(weight) % PANEL))
    return padded.view(-1, PANEL, weight.shape[1]).transpose(1, 2).contiguous()


def _int8_panels(weight: Tensor) -> list[Tensor]:
    """(out, in) as unsigned integers w + 128 (panels, in / 4, PANEL, 4), padded with w = 0, and scales of outputs."""
    whole, scales = quantised(weight.float())
    padded = F.pad(whole, (0, -weight.shape[1] % DEPTH, 0, -len(weight) % PANEL))
    # In 8 bits adding 128 is adding -128.
    shifted = padded.add_(-128).view(torch.uint8)
    panels = shifted.view(-1, PANEL, padded.shape[1] // 4, 4).transpose(1, 2).contiguous()
    return [panels, F.pad(scales.flatten(), (0, -len(weight) % PANEL))]
