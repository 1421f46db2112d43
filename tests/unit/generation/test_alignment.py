"""Alignments against the attention that transformers itself gives, one output at a time and without pads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from cktk.data.context_config import InputConfig
from cktk.errors import ConfigError
from cktk.generation.alignment import AlignedHypothesis, Aligner
from cktk.generation.configs import SearchConfig
from cktk.generation.translator import Translation, Translator
from cktk.protocols import Hypothesis
from tests.unit.generation.models import KINDS, beam_search, layout_of, random_sources, tiny, tiny_model
from tests.unit.generation.students import bart_tokenizer, mbart_tokenizer

TEXTS = ["a b c", "", "t s r q p o n m", "k l a f e"]


def attention(model: Any, source: list[int], output: tuple[int, ...], start: int, layer: int) -> Any:
    """(T, S): the cross-attention of ``layer`` in the steps that wrote ``output``, averaged over heads."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    with torch.no_grad():
        found = model(
            input_ids=torch.as_tensor(np.array(source))[None],
            decoder_input_ids=torch.tensor([[start, *output[:-1]]]),
            output_attentions=True,
        )
    model.set_attn_implementation(before)
    return found.cross_attentions[layer - 1][0].mean(dim=0).numpy()


def naive(model: Any, source: list[int], output: tuple[int, ...], start: int, layer: int, text: range) -> list[int]:
    weights = attention(model, source, output, start, layer)
    return [max(text, key=lambda at: float(row[at])) - text.start for row in weights]


@pytest.mark.parametrize("kind", KINDS)
def test_links_are_the_places_of_most_attention(kind: str) -> None:
    model = tiny(kind, 3)
    start = model.generation_config.decoder_start_token_id
    sources = random_sources(3, 5)
    places = [range(1, len(source) - 1) for source in sources]
    found = beam_search(model, SearchConfig(beam=3, nbest=3, max_len_b=9)).generate(sources)
    for layer in (1, 2):
        links = set()
        for limits in ({"batch_size": 1}, {"batch_size": 4}, {"max_tokens": 20}):
            aligned = Aligner(model, layout_of(model), layer)(sources, places, found, **limits)
            for source, place, plain, nbest in zip(sources, places, found, aligned, strict=True):
                assert [(one.tokens, one.score) for one in nbest] == [(one.tokens, one.score) for one in plain]
                for one in nbest:
                    assert isinstance(one, AlignedHypothesis)
                    assert list(one.links) == naive(model, source, one.tokens, start, layer, place)
                    links.update(one.links)
        assert len(links) > 2


def test_another_start_and_dropout_switched_off() -> None:
    model = tiny_model("mbart", 3)
    sources = random_sources(3, 3)
    places = [range(len(source)) for source in sources]
    found = beam_search(model, SearchConfig(beam=2, max_len_b=9)).generate(sources, decoder_start=13)
    model.train()
    aligned = Aligner(model, layout_of(model))(sources, places, found, decoder_start=13)
    assert all(module.training for module in model.modules())
    model.eval()
    for source, place, (one,) in zip(sources, places, aligned, strict=True):
        assert isinstance(one, AlignedHypothesis)
        assert list(one.links) == naive(model, source, one.tokens, 13, 1, place)


def test_the_last_layer_but_one_by_default() -> None:
    model = tiny_model("bart", 3, decoder_layers=3)
    layout, sources = layout_of(model), random_sources(3, 2)
    places = [range(len(source)) for source in sources]
    found = beam_search(model, SearchConfig(beam=2, max_len_b=9)).generate(sources)
    by_layer = [Aligner(model, layout, layer)(sources, places, found) for layer in (None, 1, 2, 3)]
    assert by_layer[0] == by_layer[2] and by_layer[0] not in (by_layer[1], by_layer[3])
    for layer in (0, 4):
        with pytest.raises(ConfigError, match=f"^--alignment-layer {layer}: the decoder has the layers 1 to 3; choose"):
            Aligner(model, layout, layer)


def test_nothing_to_link_stays_as_it_is() -> None:
    model = tiny_model("bart", 3)
    nothing = [Hypothesis((), -1.0)]
    some = [Hypothesis((5, 2), -1.0), *nothing]
    found = Aligner(model, layout_of(model))([[5, 2]] * 3, [range(1), range(1), range(1, 1)], [nothing, some, some])
    assert found[0] == nothing and found[2] == some
    assert found[1] == [AlignedHypothesis((5, 2), -1.0, (0, 0)), *nothing]


def test_special_tokens_and_context_have_no_pairs() -> None:
    # Nine tokens were written; the first three are of context that was taken off.
    found = AlignedHypothesis((40, 5, 6, 3, 7, 2), -1.0, (9, 9, 9, 8, 1, 0, 4, 2, 8))
    assert found.alignment({40, 3, 2}) == ((1, 0), (0, 1), (2, 2))


def expected(translator: Translator, text: str, found: Translation, start: int, source: list[int], offset: int) -> Any:
    """Pairs of ``found``, whose source text begins at ``offset`` of ``source``."""
    place = range(offset, offset + len(text.split()))
    links = naive(translator.model, source, found.tokens, start, 1, place)
    special = translator.tokenizer.all_special_ids
    written = [link for link, token in zip(links, found.tokens, strict=True) if token not in special]
    return tuple(zip(written, range(len(written)), strict=True))


@pytest.mark.parametrize("prompt", ["", "d e"])
def test_positions_are_those_of_the_text_alone(prompt: str) -> None:
    tokenizer = bart_tokenizer()
    model = tiny_model("bart", 4, vocab_size=len(tokenizer))
    search, inputs = SearchConfig(beam=3, nbest=2, max_len_b=12), InputConfig(source_prompt=f"{prompt} ".lstrip())
    translator = Translator(model, tokenizer, search, layout=layout_of(model), decoder_start=2, inputs=inputs)
    prefixes = ["", "", "c", "f e"]
    assert translator.translate_nbest(TEXTS, prefixes)[0][0].alignment is None
    translator.align()
    for text, nbest in zip(TEXTS, translator.translate_nbest(TEXTS, prefixes), strict=True):
        source = tokenizer(f"{prompt} {text}".strip()).input_ids
        for one in nbest:
            offset = 1 + len(prompt.split())
            assert one.alignment == (expected(translator, text, one, 2, source, offset) if text else ())


@pytest.mark.parametrize("languages", [25, 50])
def test_language_codes_have_no_pairs(languages: int) -> None:
    tokenizer = mbart_tokenizer(languages)
    model = tiny_model("mbart", 5, vocab_size=len(tokenizer))
    search = SearchConfig(beam=2, max_len_b=12)
    translator = Translator(model, tokenizer, search, layout=layout_of(model), decoder_start=None)
    translator.align(1)
    start = tokenizer.convert_tokens_to_ids("ro_RO") if languages == 25 else 2
    tokenizer.src_lang = "en_XX"
    for text, (one,) in zip(TEXTS, translator.translate_nbest(TEXTS), strict=True):
        source, offset = tokenizer(text).input_ids, 1 if languages == 50 else 0
        assert one.alignment == (expected(translator, text, one, start, source, offset) if text else ())


def test_context_is_attended_to_but_not_aligned() -> None:
    tokenizer = bart_tokenizer()
    model = tiny_model("bart", 6, vocab_size=len(tokenizer))
    inputs = InputConfig(context_size=1, context_separator="▁t", context_target="given")
    search = SearchConfig(beam=2, max_len_b=8)
    translator = Translator(model, tokenizer, search, layout=layout_of(model), decoder_start=2, inputs=inputs)
    translator.align(1)
    texts, separator = ["a b c", "k l"], tokenizer.convert_tokens_to_ids("▁t")
    first, second = (nbest[0] for nbest in translator.translate_nbest(texts))
    assert first.alignment == expected(translator, texts[0], first, 2, tokenizer(texts[0]).input_ids, 1)
    source = [0, *tokenizer(texts[0], add_special_tokens=False).input_ids, separator]
    source += [*tokenizer(texts[1], add_special_tokens=False).input_ids, 2]
    before = [token for token in first.tokens if token not in tokenizer.all_special_ids]
    whole = (0, *before, separator, *second.tokens[1:])
    links = naive(model, source, whole, 2, 1, range(5, 7))[len(before) + 2 :]
    pairs = [link for link, token in zip(links, second.tokens[1:], strict=True) if token not in (0, 1, 2, 3)]
    assert second.tokens[0] == 0 and pairs
    assert second.alignment == tuple((link, place) for place, link in enumerate(pairs))
