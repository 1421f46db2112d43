"""One product of 64 rows with an output layer in 8-bit integers: what PyTorch offers, and ours."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.generation_engines import median_seconds
from benchmarks.report import Figure
from cktk.generation.operators.dense import DenseOperators
from cktk.generation.operators.int8 import Int8Operators, quantised
from cktk.generation.operators.kernels import KernelOperators, library

ROWS, SHAPES = 64, ((640, 50265), (384, 250027))

Product = Callable[[Tensor], object]


@torch.inference_mode()
def product_figures(quick: bool) -> list[Figure]:
    """Milliseconds of each way, for one thread and for two."""
    figures = []
    for threads in (1,) if quick else (1, 2):
        torch.set_num_threads(threads)
        for size, out in SHAPES[:1] if quick else SHAPES:
            layer = nn.Linear(size, out, bias=False)
            seconds = median_seconds(_ways(layer), torch.randn(ROWS, size), 2 if quick else 7, time.perf_counter)
            where = f"{ROWS} x {size} by {out} outputs, {threads} thread{'s'[: threads > 1]}"
            figures += [Figure(f"{where}: {name}, ms", 1e3 * spent, None) for name, spent in seconds.items()]
    return figures


def _ways(layer: nn.Linear) -> dict[str, Product]:
    weight = layer.weight.detach()
    ways: dict[str, Product] = {
        "fp32, torch.nn.Linear": layer,
        "fp32, cktk without kernels": DenseOperators().linear(weight, None),
        "int8, torch._int_mm and scales of rows": _int_mm(weight),
        "int8, torch.ao.quantization": _torch_ao(layer),
        "int8, oneDNN (cktk without kernels)": Int8Operators().linear(weight, None),
    }
    if (found := _torchao(layer)) is not None:
        ways["int8, torchao"] = found
    if (kernels := library()) is not None:
        ways["fp32, cktk"] = KernelOperators(kernels, int8=False).linear(weight, None)
        ways["int8, cktk"] = KernelOperators(kernels, int8=True).linear(weight, None)
    return ways


def _int_mm(weight: Tensor) -> Product:
    whole, scales = quantised(weight)
    columns = scales.flatten()

    def multiply(x: Tensor) -> Tensor:
        rows, scale = quantised(x)
        return torch._int_mm(rows, whole.t()).float().mul_(columns).mul_(scale)

    return multiply


def _torch_ao(layer: nn.Linear) -> Product:
    """Deprecated in PyTorch, and still there."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found: Product = torch.ao.quantization.quantize_dynamic(  # type: ignore[no-untyped-call]
            nn.Sequential(copy.deepcopy(layer)), {nn.Linear}, dtype=torch.qint8
        )
    return found


def _torchao(layer: nn.Linear) -> Product | None:
    """Its successor, where it is installed."""
    try:
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_
    except ImportError:
        return None
    model = nn.Sequential(copy.deepcopy(layer))
    quantize_(model, Int8DynamicActivationInt8WeightConfig())
    return model
