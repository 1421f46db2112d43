"""MarianMT: settings, states, starting weights, files and output, as transformers has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, MarianConfig, MarianMTModel, MarianTokenizer

from cktk.architectures.configs import StudentConfig
from cktk.architectures.families.family import registered_family
from cktk.architectures.families.marian import MarianFamily
from cktk.architectures.initialisation.initialise import initialise
from cktk.architectures.loading import load_model, save_student
from cktk.architectures.parameters import count_parameters
from cktk.architectures.spec import StudentSpec
from cktk.data.tokenization.tokenizers import open_tokenizer
from cktk.errors import CheckpointError, ConfigError, DataError
from cktk.hub import student
from cktk.protocols import Batch, StateRequest
from cktk.registry import ARCHITECTURES
from tests.unit.architectures.marian import save_tokenizer

SIZES: dict[str, Any] = {
    "vocab_size": 41, "max_position_embeddings": 16, "d_model": 24, "encoder_layers": 2, "decoder_layers": 4,
    "encoder_ffn_dim": 32, "decoder_ffn_dim": 40, "encoder_attention_heads": 4, "decoder_attention_heads": 2,
    "init_std": 0.3, "scale_embedding": True, "activation_function": "swish", "pad_token_id": 40, "eos_token_id": 0,
    "decoder_start_token_id": 40, "forced_eos_token_id": 0,
}  # fmt: skip
FAMILY = MarianFamily()


def teacher(**changes: Any) -> Any:
    torch.manual_seed(2)
    model: Any = MarianMTModel(MarianConfig(**{**SIZES, **changes}))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
        model.final_logits_bias.normal_()
    model.generation_config.bad_words_ids = [[model.config.pad_token_id]]
    return model.eval()


@pytest.mark.parametrize("training", [False, True])
def test_states_and_logits_equal_transformers(batch: Batch, training: bool) -> None:
    model = teacher(dropout=0.3).train(training)
    everything = StateRequest({"encoder": (0, 1, 2), "decoder": (0, 1, 2, 3, 4)}, head=True)
    torch.manual_seed(5)
    output = model(**batch.inputs, output_hidden_states=True)
    torch.manual_seed(5)
    adapter = FAMILY.adapter(model)
    found = adapter(batch, everything)
    for side in ("encoder", "decoder"):
        rows = batch.rows(side)
        states = output[f"{side}_hidden_states"]
        assert len(states) == len(everything.hidden[side])
        for layer, state in enumerate(states):
            torch.testing.assert_close(found.hidden[side, layer], state[rows], rtol=0, atol=0)
    head, entered = adapter.head(), found.head_input
    assert entered is not None and head.bias is not None
    logits = head.scale * entered @ head.weight.T + head.bias
    torch.testing.assert_close(logits, output.logits[batch.rows("decoder")], rtol=0, atol=1e-5)


def test_a_student_has_its_own_table_of_positions() -> None:
    source = teacher()
    small = FAMILY.student(source.config, StudentSpec(width=12, encoder_layers=1, decoder_layers=2, ffn_width=16))
    fresh: Any = MarianMTModel(small.config)
    initialise(small, "truncate", teacher=source)
    anything: Any = small
    assert torch.equal(anything.model.shared.weight, source.model.shared.weight[:, :12])
    assert torch.equal(anything.final_logits_bias, source.final_logits_bias)
    for stack in ("encoder", "decoder"):
        table = anything.model.get_submodule(stack).embed_positions.weight
        assert torch.equal(table, fresh.model.get_submodule(stack).embed_positions.weight)
        assert not table.requires_grad
    same = FAMILY.student(source.config, StudentSpec())
    initialise(same, "copy", teacher=source)
    assert all(torch.equal(tensor, source.state_dict()[name]) for name, tensor in same.state_dict().items())
    with pytest.raises(ConfigError, match="^--init pca knows models of type .*, not marian: use --init truncate$"):
        initialise(small, "pca", teacher=source, batches=[])


def test_sizes_are_counted_without_memory() -> None:
    config = FAMILY.student_config(MarianConfig(), StudentSpec(width=512))
    with torch.device("meta"):
        counts = count_parameters(FAMILY.build(config))
    assert counts.embedding == 512 * (58101 + 2 * 1024)


def test_from_scratch_the_decoder_starts_with_the_pad_and_never_writes_it() -> None:
    spec = StudentSpec(width=16, encoder_layers=1, decoder_layers=1)
    config: Any = FAMILY.base_config(vocab_size=50, pad=3, bos=None, eos=1, max_positions=20, spec=spec)
    assert (FAMILY.decoder_start(config), config.eos_token_id, config.forced_eos_token_id) == (3, 1, 1)
    assert (config.scale_embedding, config.decoder_vocab_size, config.activation_function) == (True, 50, "swish")
    model: Any = FAMILY.build(config)
    FAMILY.set_generation(model)
    assert model.generation_config.bad_words_ids == [[3]]
    assert model.generation_config.decoder_start_token_id == 3
    FAMILY.set_generation(model, GenerationConfig(bad_words_ids=[[3], [5]]))
    assert model.generation_config.bad_words_ids == [[3], [5]]


def test_the_registry_leads_here() -> None:
    assert ARCHITECTURES.config("marian") is StudentConfig
    assert type(registered_family("marian")) is MarianFamily


def test_opened_with_its_positions_and_one_vocabulary(tmp_path: Path) -> None:
    model = teacher()
    save_student(model, None, tmp_path / "one")
    found: Any = load_model(tmp_path / "one")
    for stack in ("encoder", "decoder"):
        table = found.model.get_submodule(stack).embed_positions.weight
        assert torch.equal(table, model.model.get_submodule(stack).embed_positions.weight)
        assert not table.requires_grad
    save_student(teacher(share_encoder_decoder_embeddings=False, decoder_vocab_size=43), None, tmp_path / "two")
    with pytest.raises(CheckpointError, match=r"two: has a vocabulary for each side .*; use a MarianMT model with one"):
        load_model(tmp_path / "two")


@pytest.mark.filterwarnings("ignore:Recommended")
def test_a_tokenizer_with_a_vocabulary_for_each_side_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "one"
    save_tokenizer(folder, ["small tools"] * 9, ["petits outils"] * 9, 20).save_pretrained(folder)
    open_tokenizer(folder)
    files = [str(folder / name) for name in ("source.spm", "target.spm", "vocab.json", "vocab.json")]
    MarianTokenizer(*files, separate_vocabs=True).save_pretrained(tmp_path / "two")
    with pytest.raises(DataError, match="^--tokenizer .*two: has a vocabulary for each side; use a tokenizer with one"):
        open_tokenizer(tmp_path / "two")


@pytest.mark.filterwarnings("ignore:Recommended")
def test_text_in_text_out_as_with_transformers(tmp_path: Path) -> None:
    sides = [text.split() for text in ("small tools make light work", "petits outils font le travail")]
    lines = [[" ".join(words[at:] + words[:at]) for at in range(len(words))] * 4 for words in sides]
    tokenizer = save_tokenizer(tmp_path / "tokenizer", lines[0], lines[1], 28)
    pad = tokenizer.pad_token_id
    model = teacher(vocab_size=pad + 1, decoder_vocab_size=pad + 1, pad_token_id=pad, decoder_start_token_id=pad)
    model.final_logits_bias[0, pad] = 5.0  # what it must not write is what it likes best
    save_student(model, tokenizer, tmp_path / "student")
    texts = ["small tools", "light work make", "work"]
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    output = model.generate(**inputs, num_beams=3, max_length=12, early_stopping=False, do_sample=False)
    expected = [text.strip() for text in tokenizer.batch_decode(output, skip_special_tokens=True)]
    translator = student(tmp_path / "student", beam=3, max_len_b=10)
    assert translator.translate(texts) == expected
    assert len(set(expected)) > 1 and all(expected)
    begun = translator.translate(texts, ["font le", "petits", ""])
    assert [text.startswith(start) for text, start in zip(begun, ("font le", "petits", ""), strict=True)] == [True] * 3
