"""Models seen through another vocabulary: logits of shared tokens are the model's own."""

from __future__ import annotations

import pytest
import torch

from cktk.architectures.borrow_vocabulary import shared_rows, with_rows
from cktk.architectures.vocabulary import Vocabulary
from tests.unit.architectures.encoders import KINDS as ENCODERS
from tests.unit.architectures.encoders import make_encoder
from tests.unit.architectures.models import T5_KINDS, make_model


def test_shared_rows() -> None:
    theirs = Vocabulary("theirs", 3, tokens=lambda: {"<s>": 0, "a": 1, "b": 2})
    ours = Vocabulary("ours", 3, tokens=lambda: {"<s>": 0, "b": 1, "c": 2})
    rows = shared_rows(theirs, ours, 4)
    assert rows.tolist() == [0, 2, -1, -1]


@pytest.mark.parametrize("kind", ["bart", "mbart", *T5_KINDS, "bert", "roberta", "distilbert"])
def test_logits_follow_their_tokens(kind: str) -> None:
    model = make_encoder(kind) if kind in ENCODERS else make_model(kind)
    model.eval()
    size = model.config.vocab_size
    rows = torch.cat([torch.arange(4), torch.randperm(size - 4, generator=torch.Generator().manual_seed(1)) + 4])
    rows = torch.cat([rows, torch.tensor([-1])])
    made = with_rows(model, rows)
    assert made.config.vocab_size == size + 1
    ids = torch.randint(0, size, (2, 5), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        names = ["input_ids"] if kind in ENCODERS else ["input_ids", "decoder_input_ids"]
        ours = made(**dict.fromkeys(names, ids)).logits
        theirs = model(**dict.fromkeys(names, rows[ids])).logits
    torch.testing.assert_close(ours[..., :-1], theirs[..., rows[:-1]])
    torch.testing.assert_close(ours[..., -1], theirs.mean(-1), atol=1e-5, rtol=1e-5)


def test_equal_sizes_are_reordered_too() -> None:
    model = make_model("bart").eval()
    rows = torch.arange(model.config.vocab_size).flip(0)
    made = with_rows(model, rows)
    torch.testing.assert_close(made.get_input_embeddings().weight, model.get_input_embeddings().weight.flip(0))
    assert made.config.pad_token_id == model.config.vocab_size - 1 - model.config.pad_token_id
