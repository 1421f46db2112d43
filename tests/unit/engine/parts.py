"""A teacher, a student and batches that are small enough for float64 references."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import BartConfig, BartForConditionalGeneration

from cktk.architectures.families.family import family_of
from cktk.architectures.states.layer_map import layer_pairs
from cktk.distributed.world import World
from cktk.engine.step import Step
from cktk.engine.teacher import Autocast, FrozenTeacher, StateStore
from cktk.engine.update import Updater
from cktk.protocols import IGNORED, Batch, Matching
from cktk.registry import CRITERIA

CPU = World(0, 1, torch.device("cpu"))
FULL_PRECISION = Autocast("cpu", None)


def bart(seed: int, width: int, layers: int, dropout: float = 0.0) -> Any:
    torch.manual_seed(seed)
    config = BartConfig(
        vocab_size=31,
        max_position_embeddings=16,
        d_model=width,
        encoder_layers=layers,
        decoder_layers=layers,
        encoder_ffn_dim=2 * width,
        decoder_ffn_dim=2 * width,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        dropout=dropout,
        init_std=0.3,
    )
    return BartForConditionalGeneration(config).double()


def batch(lengths: list[tuple[int, int]], first: int = 0, pad_to: int = 0) -> Batch:
    """One sentence per (source, target) length; sentence i is the same whatever batch it stands in."""
    rows = []
    for offset, (source, target) in enumerate(lengths):
        generator = torch.Generator().manual_seed(first + offset)
        rows.append([torch.randint(3, 31, (n,), generator=generator) for n in (source, target)])
    sides = []
    for side, fill in ((0, 1), (1, IGNORED)):
        width = max([pad_to, *(len(row[side]) for row in rows)])
        table = torch.full((len(rows), width), fill)
        for number, row in enumerate(rows):
            table[number, : len(row[side])] = row[side]
        sides.append(table)
    inputs, labels = sides
    start = torch.full((len(rows), 1), 2)
    decoder = torch.cat([start, labels.masked_fill(labels == IGNORED, 1)[:, :-1]], 1)
    tensors = {"input_ids": inputs, "attention_mask": (inputs != 1).long(), "decoder_input_ids": decoder}
    return Batch(tensors, labels, list(range(first, first + len(rows))))


def updater(
    criterion: str = "cka_kd",
    *,
    dropout: float = 0.0,
    width: int = 8,
    place: Any = "device",
    make: Callable[..., Any] = bart,
    **options: Any,
) -> Updater:
    """SGD with learning rate 1 and no clipping, so that an update is minus the gradient."""
    teacher, student = make(1, 16, 3), make(2, width, 2, dropout)
    family = family_of(student.config.model_type, "the student")
    shapes = [family.shape(model.config) for model in (student, teacher)]
    config = CRITERIA.config(criterion)(**options)
    layer_map, embeddings = getattr(config, "layer_map", "uniform"), getattr(config, "match_embeddings", False)
    pairs = layer_pairs(*shapes, layer_map, embeddings=embeddings)
    loss = CRITERIA.target(criterion)(config, Matching(*shapes, pairs)).double()
    step = Step(student, family.adapter(student), loss, None, FULL_PRECISION, CPU.all_reduce)
    frozen = FrozenTeacher(teacher, family.adapter(teacher), lambda: step.train_criterion.needs(), FULL_PRECISION)
    step.teacher = frozen
    optimizer = torch.optim.SGD(step.parameters(), lr=1.0)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    store = StateStore(frozen, place)
    return Updater(step, step, frozen, optimizer, scaler, CPU, clip_norm=0.0, seed=5, store=store)


def weights(updater: Updater) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in updater.step.named_parameters()}
