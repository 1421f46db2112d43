"""Templates, prompts and context around a text."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from cktk.data.context_config import ContextConfig
from cktk.data.framing import NO_DOCUMENT, Context, Frame
from cktk.data.languages import english_name
from cktk.data.prompts import prompt_ids
from cktk.errors import ConfigError
from cktk.protocols import Template
from tests.unit.generation.students import bart_tokenizer, mbart_tokenizer

SEPARATOR = 9


def test_all_that_goes_around_a_text_has_its_place():
    frame = Frame(template=Template((0,), (2, 50)), room=6, prompt=(30, 31), separator=SEPARATOR)
    assert frame.special == 5
    assert frame.framed([4, 5]).tolist() == [0, 30, 31, 4, 5, 2, 50]
    assert frame.framed([6], [[4], [], [5]]).tolist() == [0, 30, 31, 4, 9, 9, 5, 9, 6, 2, 50]
    assert frame.framed(range(10, 19)).tolist() == [0, 30, 31, *range(10, 16), 2, 50]


def shown_naively(lengths, rooms, documents, row, size):
    """Sentences before ``row``, one more at a time, while they are of its document and there is room on all sides."""
    count = 0
    totals = [side[row] for side in lengths]
    while count < size and row - count - 1 >= 0:
        before = row - count - 1
        if documents[row] == NO_DOCUMENT or documents[before] != documents[row]:
            break
        totals = [total + side[before] + 1 for total, side in zip(totals, lengths, strict=True)]
        if any(total > room for total, room in zip(totals, rooms, strict=True)):
            break
        count += 1
    return count


@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6), st.booleans(), st.booleans()), min_size=1, max_size=14),
    st.integers(1, 4),
    st.integers(1, 20),
    st.integers(1, 20),
    st.booleans(),
    st.integers(0, 13),
)
def test_context_is_what_one_would_count_by_hand(rows, size, source_room, target_room, both, first):
    first = min(first, len(rows) - 1)
    lengths = [np.array([row[side] for row in rows]) for side in range(1 + both)]
    documents = np.cumsum([row[2] for row in rows])
    documents[[row[2] and row[3] for row in rows]] = NO_DOCUMENT
    rooms = [source_room, target_room][: 1 + both]
    shown, there = Context(size, SEPARATOR).earlier(lengths, rooms, documents, first)
    everywhere = range(first, len(rows))
    assert shown.tolist() == [shown_naively(lengths, rooms, documents, row, size) for row in everywhere]
    boundless = [10**6] * len(rooms)
    assert there.tolist() == [shown_naively(lengths, boundless, documents, row, size) for row in everywhere]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"context_separator": "<none>"}, "--context-separator <none>: the tokenizer has no such token"),
        ({"context_target": "given"}, "--context-target given: the end token cannot part"),
        ({"context_target": "generated", "context_separator": "<pad>"}, "give another --context-separator"),
    ],
)
def test_separators_that_cannot_be(options, words):
    with pytest.raises(ConfigError, match=words):
        Context.of(ContextConfig(context_size=1, **options), bart_tokenizer())


def test_the_separator_is_a_token_and_by_default_the_end():
    tokenizer = bart_tokenizer()
    assert Context.of(ContextConfig(), tokenizer) is None
    assert Context.of(ContextConfig(context_size=2), tokenizer) == Context(2, 2, "none")
    found = Context.of(ContextConfig(context_size=1, context_separator="▁q", context_target="given"), tokenizer)
    assert found == Context(1, tokenizer.convert_tokens_to_ids("▁q"), "given")
    with pytest.raises(ConfigError, match="such as <mask>, ar_AR"):
        Context.of(ContextConfig(context_size=1, context_target="given"), mbart_tokenizer(25))


@pytest.mark.parametrize("options", [{"context_target": "given"}, {"context_separator": "</s>"}])
def test_how_context_is_shown_needs_context(options):
    with pytest.raises(ConfigError, match="give --context-size too"):
        ContextConfig(**options)


def test_a_prompt_is_what_it_adds_before_a_text():
    tokenizer = bart_tokenizer()
    whole = tokenizer("a b c: d e".replace(":", ""), add_special_tokens=False)["input_ids"]
    prompt = prompt_ids(tokenizer, "a b c ")
    assert [*prompt, *tokenizer("d e", add_special_tokens=False)["input_ids"]] == whole
    assert prompt_ids(tokenizer, "") == ()


def test_a_prompt_before_pieces_that_would_be_others_keeps_its_own():
    """Byte-level BPE joins a blank to the word behind it, which stored texts have without."""
    vocabulary = {"a": 0, "Ġa": 1, "Ġ": 2, ":": 3, "b": 4}
    inner = Tokenizer(models.BPE(vocabulary, [("Ġ", "a")]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=":", pad_token="b")
    assert tokenizer("b: a", add_special_tokens=False)["input_ids"] == [4, 3, 1]
    assert prompt_ids(tokenizer, "b: ") == (4, 3, 2)


def test_languages_have_names_and_must_be_known():
    assert [english_name(code) for code in ("es", "es_XX", "zh_CN", "pt-br", "Esperanto", "iw")] == [
        "Spanish", "Spanish", "Chinese", "Portuguese", "Esperanto", "Hebrew",
    ]  # fmt: skip
    tokenizer = bart_tokenizer()
    named = prompt_ids(tokenizer, "{source} a {target} ", "b", "c")
    assert named == prompt_ids(tokenizer, "b a c ")
    with pytest.raises(ConfigError, match=r"--source-prompt: \{target\} stands for a language that is not known"):
        prompt_ids(tokenizer, "a {target} ", "en", "")
    for word in ("{x}", "{Source}", "{ target }", "{src_lang}"):
        with pytest.raises(ConfigError, match=rf"--source-prompt: {re.escape(word)} .* \{{source\}} or \{{target\}}"):
            prompt_ids(tokenizer, f"a {word} {{source}} ", "b", "c")
    assert prompt_ids(tokenizer, "a {} b ") != ()
