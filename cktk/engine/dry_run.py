"""``--dry-run``: one micro-batch through everything, all stages included, and what it says about memory."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Sequence

import torch
from rich.console import Console
from rich.table import Table

from cktk.engine.trainer import Parts
from cktk.errors import DataError
from cktk.protocols import Batch

_MIB = 2**20


def dry_run(parts: Parts, matching: Sequence[str]) -> None:
    """Run one update of one micro-batch, of each stage where there are several.

    Prints ``matching``, the figures of the loss and a memory estimate.
    """
    batches = parts.data.next_update(1)
    if not batches:
        raise DataError("the training split is empty")
    start = time.perf_counter()
    teacher = parts.updater.teacher
    states = 0
    while True:
        if teacher:
            states = max(states, teacher.states(batches[0].to(parts.world.device)).nbytes)
        result = parts.updater.run(batches, 0, parts.schedule(0, math.inf))
        if parts.stages is None or parts.stages.last:
            break
        parts.stages.next()
    seconds = time.perf_counter() - start
    if not parts.world.is_main:
        return
    console = Console(soft_wrap=True)
    for lines in matching:
        console.print(f"{lines}\n", highlight=False)
    console.print(_memory_table(parts, states, batches[0]))
    terms = " ".join(f"{name} {value:.4g}" for name, value in result.values.items() if "<-" not in name)
    console.print(f"one micro-batch in {seconds:.2f} s: {terms}", highlight=False)


def _memory_table(parts: Parts, teacher_states: int, batch: Batch) -> Table:
    updater = parts.updater
    weights = _bytes(list(updater.step.parameters()))
    moments = sum(_bytes([v for v in s.values() if torch.is_tensor(v)]) for s in updater.optimizer.state.values())
    rows: list[tuple[str, int]] = [
        ("student and projector weights", weights),
        ("gradients", _bytes(updater.parameters)),
        ("optimizer moments", moments),
        ("teacher weights", updater.teacher.weight_bytes() if updater.teacher else 0),
        (f"teacher states per micro-batch ({tuple(batch.labels.shape)} targets), times --update-freq", teacher_states),
        ("peak of this process", _peak(parts.world.device)),
    ]
    table = Table("memory", "MiB")
    for name, size in rows:
        table.add_row(name, f"{size / _MIB:,.1f}")
    return table


def _bytes(tensors: list[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
