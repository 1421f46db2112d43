"""One student from several checkpoints of a run: the mean of their weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from cktk.architectures.loading import load_model, load_tokenizer, save_student
from cktk.errors import CheckpointError


def average_students(folders: Sequence[Path], output: Path) -> None:
    """Write the mean of the students in ``folders`` as a model folder ``output``, with the last one's tokenizer.

    Sums are kept in float64, so the order of ``folders`` does not matter in float32. Raises `CheckpointError` when the
    students differ in shape or ``output`` exists.
    """
    if output.exists():
        raise CheckpointError(f"{output}: exists already; give another --output")
    sums: dict[str, torch.Tensor] = {}
    model: Any = None
    for folder in folders:
        model = load_model(folder)
        weights = {name: parameter.detach().double() for name, parameter in model.named_parameters()}
        if sums and {n: s.shape for n, s in sums.items()} != {n: w.shape for n, w in weights.items()}:
            raise CheckpointError(f"{folder}: its student has another shape than the one in {folders[0]}")
        sums = {name: weight + sums[name] for name, weight in weights.items()} if sums else weights
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(sums[name] / len(folders))
    save_student(model, load_tokenizer(folders[-1]), output)
