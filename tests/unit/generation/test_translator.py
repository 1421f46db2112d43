"""Text in, text out, against transformers' tokenizer, generate and batch_decode."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cktk.errors import ConfigError, DataError
from cktk.generation.configs import SearchConfig
from cktk.generation.translator import Translation, Translator
from tests.unit.generation.models import layout_of, tiny_model
from tests.unit.generation.students import bart_tokenizer, mbart_tokenizer

TEXTS = ["a b c", "q", "t s r q p o n m", "b b", "k l a f"]
SEARCH = SearchConfig(beam=3, max_len_b=12)


def bart(search: SearchConfig = SEARCH, **options: Any) -> Translator:
    tokenizer = bart_tokenizer()
    model = tiny_model("bart", 4, vocab_size=len(tokenizer))
    return Translator(model, tokenizer, search, layout=layout_of(model), decoder_start=2, **options)


def mbart(model: Any, tokenizer: Any, **options: Any) -> Translator:
    return Translator(model, tokenizer, SEARCH, layout=layout_of(model), decoder_start=None, **options)


def by_transformers(model: Any, tokenizer: Any, texts: list[str], **settings: Any) -> list[str]:
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    output = model.generate(
        input_ids=inputs.input_ids, attention_mask=inputs.attention_mask, num_beams=3, max_length=14, **settings
    )
    return [text.strip() for text in tokenizer.batch_decode(output, skip_special_tokens=True)]


def test_equals_transformers() -> None:
    translator = bart()
    expected = by_transformers(translator.model, translator.tokenizer, TEXTS)
    assert len(set(expected)) > 1
    assert translator.translate(TEXTS) == expected
    assert translator.counts.sentences == 5
    assert translator.counts.tokens > 5


def test_blank_texts_stay_in_place() -> None:
    translator = bart()
    first, second = translator.translate(["a b c", "k l a f"])
    assert translator.translate(["", "a b c", " \t", "k l a f"]) == ["", first, "", second]
    assert translator.counts.empty == 2
    assert translator.translate_nbest([""]) == [[Translation("", 0.0)]]
    assert translator.translate([]) == []


def test_overlong_text_is_cut_and_counted() -> None:
    translator = bart(max_source_positions=5)
    assert translator.translate(["a b c d e f", "a b c"]) == translator.translate(["a b c", "a b c"])
    assert translator.counts.truncated == 1
    assert bart(max_source_positions=999).max_source_positions == 64


def test_translations_begin_with_their_prefixes() -> None:
    translator = bart(SearchConfig(beam=3, nbest=3, max_len_b=12))
    found = translator.translate_nbest(["a b c", "q", "d"], ["h i", "", "t"])
    assert all(hypothesis.text.startswith("h i") for hypothesis in found[0])
    assert [hypothesis.text for hypothesis in found[1]] == [h.text for h in translator.translate_nbest(["q"])[0]]
    assert all(hypothesis.text.startswith("t") for hypothesis in found[2])
    assert all(len(hypotheses) == 3 for hypotheses in found)
    with pytest.raises(DataError, match="1 texts but 2 prefixes"):
        translator.translate(["a"], ["b", "c"])


@pytest.mark.parametrize("languages", [25, 50])
def test_mbart_starts_in_the_language_asked_for(languages: int) -> None:
    tokenizer = mbart_tokenizer(languages)
    model = tiny_model("mbart", 3, vocab_size=len(tokenizer), eos_bias=0.0)
    model.final_logits_bias[0, 4:24] += 2.0  # our letters, so that most of the output is text
    translator = mbart(model, tokenizer, source_lang="de_DE", target_lang="fr_XX")
    found = translator.translate(TEXTS)
    reference = mbart_tokenizer(languages)
    reference.src_lang = "de_DE"
    language = reference.convert_tokens_to_ids("fr_XX")
    steering = {"forced_bos_token_id": language} if languages == 50 else {"decoder_start_token_id": language}
    assert found == by_transformers(model, reference, TEXTS, **steering)
    assert found != mbart(model, tokenizer, target_lang="ro_RO").translate(TEXTS)


def test_a_fixed_start_is_that_of_the_generation_config_where_it_names_one() -> None:
    model, tokenizer = tiny_model("bart", 4), bart_tokenizer()
    layout = layout_of(model)
    assert Translator(model, tokenizer, layout=layout, decoder_start=7).decoder_start == 2
    model.generation_config.decoder_start_token_id = None
    assert Translator(model, tokenizer, layout=layout, decoder_start=7).decoder_start == 7
    assert Translator(model, tokenizer, layout=layout, decoder_start=None).decoder_start is None


def test_languages_that_do_not_fit() -> None:
    tokenizer = mbart_tokenizer(25, target=None)
    model = tiny_model("mbart", 3, vocab_size=len(tokenizer))
    with pytest.raises(ConfigError, match="--target-lang is required"):
        mbart(model, tokenizer).translate(["a"])
    with pytest.raises(DataError, match=r"no language 'fr'; did you mean fr_XX\?"):
        mbart(model, tokenizer, target_lang="fr").translate(["a"])
    with pytest.raises(ConfigError, match="--source-lang: this model's tokenizer knows no languages"):
        bart(source_lang="en").translate(["a"])


def test_output_is_one_line() -> None:
    class Spells:
        def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
            return " one\ntwo\u2028three\r\n"

    translator = bart()
    translator.tokenizer = Spells()
    assert translator.decode([5]) == "one two three"


def test_a_single_string_is_refused() -> None:
    with pytest.raises(TypeError, match="list of texts"):
        bart().translate("a b c")


def test_batches_do_not_matter() -> None:
    expected = bart().translate(TEXTS)
    assert bart(batch_size=1).translate(TEXTS) == bart(max_tokens=12).translate(TEXTS) == expected
    assert torch.is_inference_mode_enabled() is False
