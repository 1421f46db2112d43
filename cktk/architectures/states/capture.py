"""Collecting what layers compute while a model runs; no hook outlives its ``with`` block."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def captured_states(layers: nn.ModuleList, wanted: Iterable[int]) -> Iterator[dict[int, Tensor]]:
    """Collect the input of the first of ``layers`` as state 0 and the output of layer i as state i while inside.

    transformers' own ``output_hidden_states=[...]`` is not used: it counts the encoder's layers for both sides, and so
    drops the upper states of a decoder that is deeper than its encoder. Raises `ValueError` for states beyond the last.
    """
    numbers = set(wanted)
    if not numbers <= set(range(len(layers) + 1)):
        raise ValueError(f"states {sorted(numbers)} asked of a stack whose states are 0 to {len(layers)}")
    states: dict[int, Tensor] = {}

    def keep_input(_: Any, arguments: tuple[Any, ...]) -> None:
        states[0] = arguments[0]

    def keep_output(number: int) -> Any:
        def hook(_module: Any, _arguments: tuple[Any, ...], output: Tensor | tuple[Tensor, ...]) -> None:
            states[number] = output[0] if isinstance(output, tuple) else output

        return hook

    with ExitStack() as hooks:
        for number in numbers:
            if number == 0:
                hooks.enter_context(layers[0].register_forward_pre_hook(keep_input))
            else:
                hooks.enter_context(layers[number - 1].register_forward_hook(keep_output(number)))
        yield states


@contextmanager
def captured_projections(
    layers: nn.ModuleList, wanted: Iterable[int], block_name: str, names: tuple[str, ...]
) -> Iterator[dict[int, tuple[Any, dict[str, Any]]]]:
    """Collect what the parts ``names`` of the blocks ``block_name`` give while inside, by layer, counted from 1.

    Each layer has its block and the outputs by name; the part ``""`` is the block itself. Raises `ValueError` for
    layers that do not exist.
    """
    numbers = set(wanted)
    if not numbers <= set(range(1, len(layers) + 1)):
        raise ValueError(f"attention of layers {sorted(numbers)} asked of a stack whose layers are 1 to {len(layers)}")

    def keep(outputs: dict[str, Any], name: str) -> Any:
        def hook(_module: Any, _arguments: tuple[Any, ...], output: Any) -> None:
            outputs[name] = output

        return hook

    captured: dict[int, tuple[Any, dict[str, Any]]] = {}
    with ExitStack() as hooks:
        for number in sorted(numbers):
            block = layers[number - 1].get_submodule(block_name)
            outputs: dict[str, Any] = {}
            captured[number] = (block, outputs)
            for name in names:
                hooks.enter_context(block.get_submodule(name).register_forward_hook(keep(outputs, name)))
        yield captured


def first_only(rows: Tensor) -> Tensor:
    """The mask (B, L) that keeps of each row of the mask ``rows`` (B, L) the first position where it holds."""
    return rows & (rows.cumsum(1) == 1)


def pack(states: dict[int, Tensor], rows: Tensor) -> dict[int, Tensor]:
    """Of states (B, L, d) the rows where the mask ``rows`` (B, L) holds: (N, d) each, found once for all of them."""
    index = rows.flatten().nonzero().squeeze(1)
    flat = {layer: state.flatten(0, 1) for layer, state in states.items()}
    if len(index) == rows.numel():
        return flat
    return {layer: state.index_select(0, index) for layer, state in flat.items()}
