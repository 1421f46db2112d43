"""Models seen through another vocabulary: logits of shared tokens are the model's own."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedModel

from cktk.architectures.initialisation.borrow_vocabulary import shared_rows, with_rows
from cktk.architectures.vocabulary import Vocabulary
from cktk.errors import ConfigError
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


@pytest.mark.parametrize("tokens", [None, lambda: None])
def test_vocabularies_without_tokens_are_refused(tokens) -> None:
    ours, theirs = Vocabulary("ours", 3, tokens=lambda: {"a": 0}), Vocabulary("the model x", 3, tokens=tokens)
    for pair in ((ours, theirs), (theirs, ours)):
        with pytest.raises(ConfigError, match="the model x: its tokens are not known"):
            shared_rows(*pair, 3)


def without(model: PreTrainedModel, missing: int) -> torch.Tensor:
    rows = torch.arange(model.config.vocab_size)
    rows[missing] = -1
    return rows


def test_a_special_token_that_is_missing_is_none_or_refused() -> None:
    model = make_model("bart")
    ids = [model.config.bos_token_id, model.config.pad_token_id, model.config.eos_token_id]
    assert len(set(ids)) == 3
    made = with_rows(model, without(model, ids[0]))
    assert made.config.bos_token_id is None and made.config.eos_token_id == ids[2]
    for name, missing in (("pad", ids[1]), ("(eos|decoder_start)", ids[2])):
        message = f"the earlier one: the data's vocabulary lacks its {name}_token_id {missing}"
        with pytest.raises(ConfigError, match=message):
            with_rows(model, without(model, missing), "the earlier one")


def test_nothing_is_drawn_for_tensors_that_are_taken_over_and_ties_are_kept() -> None:
    model = make_model("bart")
    before = torch.get_rng_state()
    made = with_rows(model, torch.arange(model.config.vocab_size))
    assert torch.equal(before, torch.get_rng_state())
    assert made.get_input_embeddings().weight is made.get_output_embeddings().weight
    assert made.num_parameters() == model.num_parameters()
