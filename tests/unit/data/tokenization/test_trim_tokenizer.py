"""Trimmed tokenizers split the texts that they were trimmed for as before, whatever kind they are."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoTokenizer,
    ByT5Tokenizer,
    MBart50Tokenizer,
    MBartTokenizer,
    PreTrainedTokenizerFast,
    T5Tokenizer,
)

from cktk.data.preprocessing.configs import UnigramTokenizerConfig
from cktk.data.tokenization.tokenizer_json import fixed_ids, merge_parts, single_characters, tokens_of, trimmed
from cktk.data.tokenization.trim_tokenizer import TrimmableTokenizer
from cktk.data.tokenization.unigram import train_unigram
from cktk.data.tokenization.vocabulary_map import VocabularyMap
from cktk.errors import ConfigError, DataError

SPECIALS = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
TEXTS = st.lists(st.text("abcde ", min_size=1, max_size=14), min_size=1, max_size=6)
#: Learned from; "xyz" occur nowhere else.
CORPUS = ["abba cabbage deed", "bead added abacus", "xyzzy abc xyz", "baa baa deaf café bed", "ace dab ebb cede"] * 3


def wrapped(backend: Tokenizer, **names: Any) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", pad_token="<pad>", **names)


def trim(tokenizer: Any, texts: Iterable[str], folder: Path) -> tuple[Any, Any, VocabularyMap]:
    """``tokenizer`` saved and opened, the same with what ``texts`` need, and the map between them."""
    tokenizer.save_pretrained(folder / "whole")
    whole = AutoTokenizer.from_pretrained(folder / "whole")
    trimmable = TrimmableTokenizer(folder / "whole")
    used = {token for text in texts for token in whole(text, add_special_tokens=False)["input_ids"]}
    kept = trimmable.fixed(()) | used
    kept |= trimmable.single_characters(kept)
    kept |= set().union(*trimmable.needed_by(kept).values())
    vocabulary = trimmable.write(kept, folder / "trimmed")
    return whole, AutoTokenizer.from_pretrained(folder / "trimmed"), vocabulary


def assert_splits_as_before(whole: Tokenizer, texts: list[str]) -> Tokenizer:
    """The same with the backend alone, which is faster; returns the trimmed one."""
    raw = json.loads(whole.to_str())
    used = {index for text in texts for index in whole.encode(text).ids}
    kept = fixed_ids(raw) | used
    kept |= single_characters(raw, kept)
    kept |= set().union(*merge_parts(raw, kept).values())
    vocabulary = VocabularyMap(sorted(kept), max(tokens_of(raw).values()) + 1)
    cut = Tokenizer.from_str(json.dumps(trimmed(raw, vocabulary)))
    assert cut.get_vocab() == {t: int(vocabulary.to_new(i)) for t, i in whole.get_vocab().items() if i in vocabulary}
    for text in texts:
        before, after = whole.encode(text), cut.encode(text)
        assert after.tokens == before.tokens
        assert after.ids == vocabulary.to_new(before.ids).tolist()
    return cut


@st.composite
def unigrams(draw: st.DrawFn) -> Tokenizer:
    """Random pieces with scores that often tie; not every character has a piece of its own."""
    pieces = draw(st.lists(st.text("▁abcd", min_size=1, max_size=4), min_size=3, max_size=40, unique=True))
    scores = draw(st.lists(st.integers(-12, -1).map(float), min_size=len(pieces), max_size=len(pieces)))
    backend = Tokenizer(models.Unigram([*SPECIALS, *zip(pieces, scores, strict=True)], unk_id=3))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.add_special_tokens([name for name, _ in SPECIALS])
    return backend


@settings(deadline=None, max_examples=200)
@given(unigrams(), TEXTS)
def test_unigram(backend: Tokenizer, texts: list[str]) -> None:
    assert_splits_as_before(backend, texts)


def test_cost_of_unknown_characters_stays(tmp_path: Path) -> None:
    # ? has no piece of its own, and costs 10 more than the dearest piece: if z went, "a?" would become "a" and unknown.
    pieces = [*SPECIALS, ("a", -1.0), ("a?", -20.0), ("b", -2.0), ("z", -30.0)]
    backend = Tokenizer(models.Unigram(pieces, unk_id=3))
    whole, small, _ = trim(wrapped(backend, unk_token="<unk>"), ["a?"], tmp_path)
    assert whole.tokenize("a?") == small.tokenize("a?") == ["a?"]
    assert "b" not in small.get_vocab()


BPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "suffix": {"end_of_word_suffix": "</w>"},
    "prefix": {"continuing_subword_prefix": "##"},
    "both": {"end_of_word_suffix": "</w>", "continuing_subword_prefix": "##"},
}


@cache
def bpe(kind: str, size: int) -> Tokenizer:
    affixes = BPES.get(kind, {})
    backend = Tokenizer(models.BPE(unk_token="<unk>", **affixes))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    alphabet = []
    if kind == "bytes":
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    names = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=names, initial_alphabet=alphabet, show_progress=False, **affixes
    )
    backend.train_from_iterator(CORPUS, trainer)
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return backend


@pytest.mark.parametrize("kind", [*BPES, "bytes"])
@settings(deadline=None, max_examples=40)
@given(texts=TEXTS, size=st.sampled_from([60, 340]))
def test_bpe(kind: str, texts: list[str], size: int) -> None:
    whole = bpe(kind, size)
    cut = assert_splits_as_before(whole, [*texts, "cabbage"])
    assert cut.get_vocab_size() < whole.get_vocab_size() or size < 256


def test_bytes_of_bpe_stay(tmp_path: Path) -> None:
    whole, small, _ = trim(wrapped(bpe("bytes", 340)), ["abba"], tmp_path)
    assert set(pre_tokenizers.ByteLevel.alphabet()) < small.get_vocab().keys()
    assert small.decode(small("ß 汉")["input_ids"], skip_special_tokens=True) == "ß 汉"
    assert len(small) < len(whole)


def test_merges_of_several_ways(tmp_path: Path) -> None:
    # abc is made of a and bc here, since b c merges first; the other way to it and its parts are of no use.
    vocab = {token: index for index, token in enumerate(["<pad>", "</s>", "a", "b", "c", "ab", "bc", "abc", "bcc"])}
    merges = [("b", "c"), ("a", "b"), ("ab", "c"), ("a", "bc"), ("bc", "c")]
    _, small, _ = trim(wrapped(Tokenizer(models.BPE(vocab, merges))), ["abc"], tmp_path)
    assert small.get_vocab().keys() == {"<pad>", "</s>", "a", "b", "c", "bc", "abc"} | set("<>pds/") & vocab.keys()
    assert small.tokenize("abcbc") == ["abc", "bc"]


@pytest.mark.parametrize("kind", ["roberta", "template", "sequence"])
def test_special_tokens_that_move(kind: str) -> None:
    vocab = {token: index for index, token in enumerate(["a", "b", "c", "ab", "<unk>", "</s>", "<s>", "<pad>"])}
    whole = Tokenizer(models.BPE(vocab, [("a", "b")], unk_token="<unk>"))
    whole.add_special_tokens(["<unk>", "</s>", "<s>", "<pad>"])
    template = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 6), ("</s>", 5)])
    whole.post_processor = {
        "roberta": processors.RobertaProcessing(("</s>", 5), ("<s>", 6)),
        "template": template,
        "sequence": processors.Sequence([processors.ByteLevel(), template]),
    }[kind]
    whole.enable_padding(pad_id=7, pad_token="<pad>", length=6)
    cut = assert_splits_as_before(whole, ["a?"])
    assert cut.encode("a?").tokens == ["<s>", "a", "<unk>", "</s>", "<pad>", "<pad>"]
    assert cut.get_vocab().keys() == {"a", "<unk>", "</s>", "<s>", "<pad>"}


@cache
def wordpiece() -> Tokenizer:
    backend = Tokenizer(models.WordPiece(unk_token="<unk>"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordPieceTrainer(vocab_size=70, special_tokens=["<pad>", "</s>", "<unk>"], show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    return backend


@settings(deadline=None, max_examples=40)
@given(TEXTS)
def test_wordpiece(texts: list[str]) -> None:
    cut = assert_splits_as_before(wordpiece(), texts)
    assert cut.get_vocab_size() < wordpiece().get_vocab_size()


def test_single_characters_of_the_data_stay(tmp_path: Path) -> None:
    whole, small, _ = trim(wrapped(bpe("both", 340)), ["cabbage"], tmp_path)
    forms = {f"{before}{sign}{after}" for sign in "cabge" for before in ("", "##") for after in ("", "</w>")}
    assert forms & whole.get_vocab().keys() <= small.get_vocab().keys()
    assert "##z" in whole.get_vocab() and "##z" not in small.get_vocab()
    for word in map("".join, product("cabge", repeat=3)):
        assert ("<unk>" in small.tokenize(word)) == ("<unk>" in whole.tokenize(word))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("unigram")
    words = [a + b for a in ("ka", "lo", "mi", "tré", "sun") for b in ("po", "xi", "den", "ou", "fla")]
    lines = [" ".join(words[i:] + words[:i]) for i in range(25)] * 4
    train_unigram(UnigramTokenizerConfig(vocab_size=350), iter(lines), made, 1)
    return made


class TestOwnTokenizers:
    """Those that cktk-preprocess learns."""

    def test_texts_bytes_and_literal_specials(self, folder: Path, tmp_path: Path) -> None:
        texts = ["kapo loxi", "a </s> b <0x41>"]
        whole, small, vocabulary = trim(AutoTokenizer.from_pretrained(folder), texts, tmp_path)
        assert len(small) < len(whole)
        for text in [*texts, "<s> </s> <pad> <0x0A>", "汉 \U0001f44d", "é"]:
            assert whole.decode(whole(text)["input_ids"]) == small.decode(small(text)["input_ids"])
            inside = small(text, add_special_tokens=False)["input_ids"]
            assert not set(inside) & {0, 1, 2, 3}, text
        assert small(texts)["input_ids"] == [vocabulary.to_new(ids).tolist() for ids in whole(texts)["input_ids"]]
        assert (small.pad_token_id, small.bos_token_id, small.eos_token_id) == (1, 0, 2)

    def test_files_are_as_transformers_writes_them(self, folder: Path, tmp_path: Path) -> None:
        _, small, _ = trim(AutoTokenizer.from_pretrained(folder), ["kapo"], tmp_path)
        files = {path.name for path in (tmp_path / "trimmed").iterdir()}
        assert files == {"tokenizer.json", "tokenizer_config.json"}
        assert (
            '"tokenizer_class": "PreTrainedTokenizerFast"' in (tmp_path / "trimmed/tokenizer_config.json").read_text()
        )
        small.save_pretrained(tmp_path / "again")
        assert (tmp_path / "again/tokenizer.json").read_bytes() == (tmp_path / "trimmed/tokenizer.json").read_bytes()


PIECES = [*SPECIALS, ("▁", -2.0), ("▁a", -3.0), ("▁house", -4.0), ("b", -5.0), ("é", -6.0), ("▁fi", -30.0)]


class TestLanguages:
    def trimmed(self, tokenizer: Any, languages: list[str], folder: Path) -> tuple[Any, VocabularyMap]:
        tokenizer.save_pretrained(folder / "whole")
        trimmable = TrimmableTokenizer(folder / "whole")
        kept = trimmable.fixed(trimmable.languages_called(languages))
        vocabulary = trimmable.write(kept | {trimmable.tokens["▁house"]}, folder / "trimmed")
        return AutoTokenizer.from_pretrained(folder / "trimmed"), vocabulary

    def test_mbart(self, tmp_path: Path) -> None:
        whole = MBartTokenizer(vocab=PIECES, src_lang="en_XX")
        small, vocabulary = self.trimmed(whole, ["ro", "en_XX"], tmp_path)
        assert isinstance(small, MBartTokenizer)
        assert {token for token in small.get_vocab() if "_" in token} == {"en_XX", "ro_RO"}
        whole.tgt_lang = small.tgt_lang = "ro_RO"
        for text in ({"text": "house"}, {"text_target": "house"}):
            assert small(**text)["input_ids"] == vocabulary.to_new(whole(**text)["input_ids"]).tolist()
        assert TrimmableTokenizer(tmp_path / "trimmed").languages == ["en_XX", "ro_RO"]

    def test_the_languages_that_it_is_set_to_stay(self, tmp_path: Path) -> None:
        small, _ = self.trimmed(MBartTokenizer(vocab=PIECES, src_lang="fi_FI", tgt_lang="et_EE"), ["ro"], tmp_path)
        assert {token for token in small.get_vocab() if "_" in token} == {"fi_FI", "et_EE", "ro_RO"}

    def test_tokens_that_a_class_insists_on(self, tmp_path: Path) -> None:
        whole = MBart50Tokenizer(vocab=PIECES, src_lang="en_XX")
        small, vocabulary = self.trimmed(whole, ["ro"], tmp_path)
        assert isinstance(small, MBart50Tokenizer)
        assert len(small) == vocabulary.new_size == max(small.get_vocab().values()) + 1
        assert {"fi_FI", "ro_RO"} < small.get_vocab().keys()
        assert "▁a" not in small.get_vocab()
        assert small("house")["input_ids"] == vocabulary.to_new(whole("house")["input_ids"]).tolist()

    def test_unknown_language(self, tmp_path: Path) -> None:
        MBartTokenizer(vocab=PIECES).save_pretrained(tmp_path)
        with pytest.raises(ConfigError, match="no language 'rm'; known: ar_AR, cs_CZ"):
            TrimmableTokenizer(tmp_path).languages_called(["en", "rm"])

    def test_no_languages(self, tmp_path: Path) -> None:
        wrapped(bpe("plain", 60)).save_pretrained(tmp_path)
        with pytest.raises(ConfigError, match="knows no languages; leave the flag out"):
            TrimmableTokenizer(tmp_path).languages_called(["en"])


def test_sentinels_of_t5(tmp_path: Path) -> None:
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), ("▁a", -3.0), ("▁house", -3.0), ("b", -5.0)]
    whole, small, vocabulary = trim(T5Tokenizer(vocab=vocab), ["a"], tmp_path)
    assert "▁house" not in small.get_vocab()
    text = "a <extra_id_3> a"
    assert small(text)["input_ids"] == vocabulary.to_new(whole(text)["input_ids"]).tolist()
    assert small.get_vocab()["<extra_id_0>"] == whole.get_vocab()["<extra_id_0>"] - 1
    assert (small.pad_token_id, small.eos_token_id, small.unk_token_id) == (0, 1, 2)


def test_tokenizers_that_cannot_be_trimmed(tmp_path: Path) -> None:
    ByT5Tokenizer().save_pretrained(tmp_path / "python")
    with pytest.raises(DataError, match=r"python: the tokenizer has no tokenizer\.json"):
        TrimmableTokenizer(tmp_path / "python")
    words = Tokenizer(models.WordLevel({"a": 0, "<unk>": 1}, "<unk>"))
    wrapped(words).save_pretrained(tmp_path / "words")
    with pytest.raises(DataError, match="of type WordLevel cannot be trimmed, only Unigram, BPE, WordPiece"):
        TrimmableTokenizer(tmp_path / "words")


def test_a_token_under_two_ids() -> None:
    raw = json.loads(Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0), ("b", -2.0), ("a", -3.0)], 0)).to_str())
    assert single_characters(raw, [1]) == single_characters(raw, [3]) == {3}


def test_an_unknown_token_that_is_none(tmp_path: Path) -> None:
    """Some byte-level tokenizers name one that they do not have; they never need it."""
    raw = json.loads(bpe("bytes", 300).to_str())
    assert fixed_ids({**raw, "model": {**raw["model"], "unk_token": "[UNK]"}}) == fixed_ids(raw)
