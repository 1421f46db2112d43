"""Models with fewer rows say on kept tokens what they said before, and get their rows back unchanged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForSeq2SeqLM

from cktk.architectures.loading import load_model, save_student
from cktk.architectures.parameters import count_parameters
from cktk.architectures.trim_vocabulary import restore_model, special_ids, trim_model
from cktk.data.tokenization.vocabulary_map import VocabularyMap
from cktk.errors import CheckpointError, ConfigError, DataError
from tests.unit.architectures.encoders import HEADS, make_encoder
from tests.unit.architectures.encoders import KINDS as ENCODERS
from tests.unit.architectures.models import T5_KINDS, make_model, make_t5

ROWS = 41
KEPT = VocabularyMap([0, 1, 2, 3, 7, 8, 11, 20, 21, 39], ROWS)
SEQ2SEQ = ("bart", "mbart", *T5_KINDS)


def make(kind: str, **changes: Any) -> Any:
    return make_t5(kind, **changes) if kind in T5_KINDS else make_model(kind, **changes)


def logits(model: Any, new: torch.Tensor, vocabulary: VocabularyMap | None = None) -> torch.Tensor:
    """Of the ids ``new``, after they were moved to the old vocabulary where that is given."""
    ids = new if vocabulary is None else torch.from_numpy(vocabulary.to_old(new))
    inputs = {"input_ids": ids}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids.flip(1)
    with torch.no_grad():
        output: torch.Tensor = model(**inputs).logits
    return output


def assert_equal_states(ours: Any, theirs: Any) -> None:
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor), name


@pytest.mark.parametrize("kind", SEQ2SEQ)
@settings(deadline=None, max_examples=5)
@given(data=st.data())
def test_logits_and_probabilities(kind: str, data: st.DataObject) -> None:
    kept = {0, 1, 2} | data.draw(st.sets(st.integers(0, ROWS - 1)))
    vocabulary = VocabularyMap(sorted(kept), ROWS)
    model = make(kind)
    trimmed = trim_model(model, vocabulary)
    new = torch.randint(0, vocabulary.new_size, (3, 6))
    ours, theirs = logits(trimmed, new), logits(model, new, vocabulary)[..., vocabulary.kept]
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    everything = logits(model, new, vocabulary).softmax(-1)[..., vocabulary.kept]
    renormalised = everything / everything.sum(-1, keepdim=True)
    torch.testing.assert_close(ours.softmax(-1), renormalised, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("kind", ENCODERS)
def test_encoders(kind: str, head: str) -> None:
    model = make_encoder(kind, head)
    trimmed = trim_model(model, KEPT)
    assert trimmed.get_input_embeddings().weight.shape[0] == KEPT.new_size
    new = torch.randint(2, KEPT.new_size, (3, 6))
    with torch.no_grad():
        ours, theirs = trimmed(new)[0], model(torch.from_numpy(KEPT.to_old(new)))[0]
    torch.testing.assert_close(ours, theirs[..., KEPT.kept] if head == "masked_lm" else theirs, rtol=1e-5, atol=1e-5)
    assert_equal_states(restore_model(trimmed, model, KEPT), model)


def test_roberta_keeps_all_ids_that_its_positions_stand_on() -> None:
    assert special_ids(make_encoder("roberta", pad_token_id=5, bos_token_id=8, eos_token_id=9)) >= set(range(6))
    assert special_ids(make_encoder("bert", pad_token_id=5, bos_token_id=8)) & {0, 1, 2, 3, 4} == set()


@pytest.mark.parametrize("kind", SEQ2SEQ)
def test_there_and_back(kind: str) -> None:
    model = make(kind)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trimmed = trim_model(model, KEPT)
    restored = restore_model(trimmed, model, KEPT)
    assert type(trimmed) is type(restored) is type(model)
    assert_equal_states(restored, model)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())
    assert restored.config.to_diff_dict() == model.config.to_diff_dict()
    assert restored.generation_config.to_dict() == model.generation_config.to_dict()


@pytest.mark.parametrize("kind", SEQ2SEQ)
def test_what_was_trained_since_comes_along(kind: str) -> None:
    model = make(kind)
    trimmed = trim_model(model, KEPT)
    with torch.no_grad():
        for parameter in trimmed.parameters():
            parameter.add_(torch.randn_like(parameter))
    restored = restore_model(trimmed, model, KEPT)
    new = torch.randint(0, KEPT.new_size, (2, 5))
    torch.testing.assert_close(logits(restored, new, KEPT)[..., KEPT.kept], logits(trimmed, new), rtol=1e-5, atol=1e-5)
    rows, dropped = restored.get_output_embeddings().weight, sorted(set(range(ROWS)) - set(KEPT.kept.tolist()))
    assert torch.equal(rows[dropped], model.get_output_embeddings().weight[dropped])


@pytest.mark.parametrize("kind", ["t5", "t5-v1.1"])
@pytest.mark.parametrize("tied", [True, False])
def test_heads_stay_tied_or_untied(kind: str, tied: bool, tmp_path: Path) -> None:
    model = make(kind, tied=tied)
    trimmed = trim_model(model, KEPT)
    assert (trimmed.lm_head.weight is trimmed.shared.weight) == tied
    save_student(trimmed, None, tmp_path / "trimmed")
    opened: Any = load_model(tmp_path / "trimmed")
    assert (opened.lm_head.weight is opened.shared.weight) == tied
    assert_equal_states(opened, trimmed)


@pytest.mark.parametrize("kind", SEQ2SEQ)
def test_saved_models_open_with_transformers(kind: str, tmp_path: Path) -> None:
    trimmed = trim_model(make(kind), KEPT)
    save_student(trimmed, None, tmp_path / "trimmed")
    opened = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "trimmed", dtype=torch.float32)
    assert opened.config.vocab_size == KEPT.new_size
    new = torch.randint(0, KEPT.new_size, (2, 5))
    assert torch.equal(logits(opened, new), logits(trimmed, new))


def test_special_ids_move() -> None:
    model = make("bart", pad_token_id=7, bos_token_id=8, eos_token_id=11, decoder_start_token_id=20)
    model.config.forced_eos_token_id = 11
    model.config.task_specific_params = {"translation": {"decoder_start_token_id": 39, "num_beams": 5}}
    model.generation_config.eos_token_id = [11, 21]
    model.generation_config.forced_bos_token_id = 39
    model.generation_config.suppress_tokens = [3, 5, 8]
    model.generation_config.bad_words_ids = [[7, 5], [20, 21], [3]]
    assert {7, 8, 11, 20, 21, 39} <= special_ids(model) < {*KEPT.kept.tolist()}
    trimmed: Any = trim_model(model, KEPT)
    config, generation = trimmed.config, trimmed.generation_config
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (4, 5, 6)
    assert (config.decoder_start_token_id, config.forced_eos_token_id) == (7, 6)
    assert config.task_specific_params == {"translation": {"decoder_start_token_id": 9, "num_beams": 5}}
    assert (generation.eos_token_id, generation.forced_bos_token_id) == ([6, 8], 9)
    assert (generation.suppress_tokens, generation.bad_words_ids) == ([3, 5], [[7, 8], [3]])
    assert trimmed.get_input_embeddings().padding_idx == 4
    restored = restore_model(trimmed, model, KEPT)
    assert restored.config.to_diff_dict() == model.config.to_diff_dict()
    assert restored.generation_config.to_dict() == model.generation_config.to_dict()
    assert model.config.pad_token_id == 7


def test_special_ids_outside_of_the_vocabulary_stay() -> None:
    model = make("bart")
    model.config.sep_token_id = 50_000
    assert 50_000 not in special_ids(model)
    assert trim_model(model, KEPT).config.sep_token_id == 50_000


def test_searches_are_those_of_the_original_without_the_dropped_tokens() -> None:
    model = make("bart", eos_token_id=2, decoder_start_token_id=2, forced_eos_token_id=2)
    trimmed = trim_model(model, KEPT)
    with torch.no_grad():
        model.final_logits_bias[:, sorted(set(range(ROWS)) - set(KEPT.kept.tolist()))] = -1e9
    new = torch.randint(3, KEPT.new_size, (4, 6))
    options: dict[str, Any] = {"num_beams": 3, "max_length": 10, "do_sample": False}
    theirs = model.generate(torch.from_numpy(KEPT.to_old(new)), **options)
    assert torch.equal(torch.from_numpy(KEPT.to_old(trimmed.generate(new, **options))), theirs)


def test_what_is_refused() -> None:
    model = make("bart", pad_token_id=6)
    with pytest.raises(DataError, match="id 6 is not in the trimmed vocabulary"):
        trim_model(model, KEPT)
    biased = make("bart")
    biased.generation_config.sequence_bias = [[[3], 1.0]]
    with pytest.raises(CheckpointError, match="sequence_bias holds token ids that cannot be moved"):
        trim_model(biased, KEPT)
    narrow = make("bart", d_model=16)
    with pytest.raises(
        ConfigError, match=r"--restore: .*weight has to be of \(41, 24\), and the original has of \(41, 16\)"
    ):
        restore_model(trim_model(make("bart"), KEPT), narrow, KEPT)
    tied = trim_model(make("t5"), KEPT)
    with pytest.raises(ConfigError, match="--restore: tie_word_embeddings is True in the trimmed model but False in"):
        restore_model(tied, make("t5", tied=False), KEPT)
    with pytest.raises(ConfigError, match="the original has none"):
        restore_model(trim_model(make("bart"), KEPT), make("t5"), KEPT)


def test_parameter_counts() -> None:
    for model in (make("bart"), make("t5"), make("t5-v1.1"), make_encoder("bert")):
        counts = count_parameters(model)
        assert counts.total == sum(parameter.numel() for parameter in model.parameters())
        trimmed = count_parameters(trim_model(model, KEPT))
        assert trimmed.body == counts.body
        assert counts.embedding > trimmed.embedding
    tied, untied = count_parameters(make("t5")), count_parameters(make("t5", tied=False))
    assert (tied.embedding, untied.embedding) == (ROWS * 24, 2 * ROWS * 24)
