"""What the tests of student families share."""

from __future__ import annotations

import pytest
import torch

from cktk.protocols import IGNORED, Batch


@pytest.fixture(params=["bart", "mbart"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def batch() -> Batch:
    """Three sentences of 7, 4 and 5 source tokens and 5, 6 and 2 scored target tokens."""
    generator = torch.Generator().manual_seed(1)
    source = torch.randint(3, 41, (3, 7), generator=generator)
    target = torch.randint(3, 41, (3, 6), generator=generator)
    mask = torch.arange(7) < torch.tensor([[7], [4], [5]])
    scored = torch.arange(6) < torch.tensor([[5], [6], [2]])
    labels = target.masked_fill(~scored, IGNORED)
    starts = torch.full((3, 1), 2)
    return Batch(
        inputs={
            "input_ids": source.masked_fill(~mask, 1),
            "attention_mask": mask.long(),
            "decoder_input_ids": torch.cat([starts, target.masked_fill(~scored, 1)[:, :-1]], 1),
        },
        labels=labels,
        ids=[0, 1, 2],
    )
