"""Run directories of trainings that never were, as cktk-train writes them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import yaml
from transformers import BertConfig, BertForSequenceClassification

#: Stages as (first epoch, name).
Stages = Sequence[tuple[int, str]]


@cache
def student(layers: int, width: int) -> Path:
    """A folder with a small classifier."""
    sizes = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "intermediate_size": 2 * width,
    }
    folder = Path(mkdtemp()) / "student"
    BertForSequenceClassification(BertConfig(vocab_size=50, max_position_embeddings=16, **sizes)).save_pretrained(
        folder
    )
    return folder


def make_run(
    folder: Path,
    values: Sequence[float],
    *,
    seed: int = 1,
    metric: str = "accuracy",
    rows: int = 800,
    subset: int | None = None,
    size: tuple[int, int] | None = None,
    stages: Stages = (),
    per_epoch: int = 10,
    config: Mapping[str, Any] | None = None,
    more: Mapping[str, float] | None = None,
) -> Path:
    """A run with one validation at the end of each epoch; ``size`` are layers and width of the model that is left."""
    folder.mkdir(parents=True)
    settings = {"seed": seed, "best_checkpoint_metric": metric, "valid_subset": "valid", "save_dir": str(folder)}
    (folder / "config.yaml").write_text(yaml.safe_dump({**settings, "train_subset": subset, **(config or {})}))
    lines: list[dict[str, Any]] = []
    begins = dict(stages)
    for epoch, value in enumerate(values, start=1):
        end = epoch * per_epoch
        if epoch in begins:
            number = list(begins).index(epoch) + 1
            lines.append({"group": "stage", "update": end - per_epoch, "epoch": epoch, "name": begins[epoch]})
            lines[-1] |= {"stage": number, "stages": len(begins)}
        lines.append({"group": "train", "update": end - per_epoch // 2, "epoch": epoch, "loss": 1 / epoch})
        lines.append({"group": "valid", "update": end, "epoch": epoch, metric: value, "loss": 1.0, **(more or {})})
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    last = folder / "checkpoint_last"
    last.mkdir()
    state = {"epoch": len(values), "epoch_end": True, "update": len(values) * per_epoch}
    plan = {"rows": subset or rows}
    (last / "trainer.json").write_text(json.dumps({**state, "data": {"plan": plan}}))
    if size:
        (last / "student").symlink_to(student(*size))
    return folder
