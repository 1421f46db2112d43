"""Templates are those of the tokenizer, for sources and for targets; fast encoding gives transformers' ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertTokenizer, MBart50Tokenizer, MBartTokenizer, NllbTokenizer, PreTrainedTokenizerFast

from cktk.data.tokenization import tokenizers
from cktk.data.tokenization.encoder import ROLES
from cktk.data.tokenization.encoder_spec import choose_encoder
from cktk.errors import DataError
from cktk.protocols import PairTemplate, Template

SPECIALS = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
PIECES = [*SPECIALS, ("▁", -2.0), ("▁a", -3.0), ("▁house", -4.0), ("b", -5.0), ("é", -6.0)]


def word_tokenizer(**names: str) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "b": 2}, "[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", **names)


class TestTemplates:
    def test_mbart_ends_with_the_language_of_the_role(self) -> None:
        tokenizer = MBartTokenizer(vocab=PIECES)
        english, french = tokenizer.convert_tokens_to_ids(["en_XX", "fr_XX"])
        found = tokenizers.probe_templates(tokenizer, ["en_XX", "fr_XX"])
        both = {"en_XX": Template((), (2, english)), "fr_XX": Template((), (2, french))}
        assert found == {"source": both, "target": both}
        assert english != french

    def test_mbart50_begins_with_the_language_of_the_role(self) -> None:
        tokenizer = MBart50Tokenizer(vocab=PIECES)
        english, french = tokenizer.convert_tokens_to_ids(["en_XX", "fr_XX"])
        found = tokenizers.probe_templates(tokenizer, ["en_XX", "fr_XX"])
        assert found["source"]["en_XX"] == found["target"]["en_XX"] == Template((english,), (2,))
        assert found["target"]["fr_XX"] == Template((french,), (2,))

    def test_roles_that_differ(self) -> None:
        # A tokenizer whose targets are marked in front and whose sources are not, as transformers calls it.
        class Marked:
            def __call__(self, text: str = "", text_target: str = "", add_special_tokens: bool = True) -> Any:
                inner = [7] if text or text_target else []
                if not add_special_tokens:
                    return {"input_ids": inner}
                return {"input_ids": [*inner, 2] if text else [9, *inner, 2]}

        found = tokenizers.probe_templates(Marked(), ["en"])
        assert found == {"source": {"en": Template((), (2,))}, "target": {"en": Template((9,), (2,))}}

    @pytest.mark.parametrize("kind", [MBartTokenizer, MBart50Tokenizer])
    def test_unknown_language(self, kind: Any) -> None:
        with pytest.raises(DataError, match=r"has no language 'fr'; did you mean fr_XX\? known: ar_AR"):
            tokenizers.probe_templates(kind(vocab=PIECES), ["en_XX", "fr"])

    def test_languages_of_nllb(self) -> None:
        tokenizer = NllbTokenizer(vocab={piece: number for number, (piece, _) in enumerate(PIECES)})
        found = tokenizers.probe_templates(tokenizer, ["eng_Latn", "fra_Latn"])
        assert found["target"]["fra_Latn"] == Template((tokenizer.convert_tokens_to_ids("fra_Latn"),), (2,))
        with pytest.raises(DataError, match="has no language 'fra_Latin'; did you mean fra_Latn"):
            tokenizers.probe_templates(tokenizer, ["eng_Latn", "fra_Latin"])


class TestPairs:
    def test_bert_tells_the_texts_apart_and_bart_does_not(self) -> None:
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b"]
        bert = BertTokenizer(vocab={word: number for number, word in enumerate(words)})
        assert tokenizers.probe_pair(bert, "") == PairTemplate((2,), (3,), (3,), token_types=True)
        bart = word_tokenizer()
        bart.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 7), ("</s>", 8)]
        )
        assert tokenizers.probe_pair(bart, "") == PairTemplate((7,), (8, 8), (8,))

    def test_equal_ids_and_languages(self) -> None:
        tokenizer = MBartTokenizer(vocab=PIECES)
        french = tokenizer.convert_tokens_to_ids("fr_XX")
        assert tokenizers.probe_pair(tokenizer, "fr_XX") == PairTemplate((), (), (2, french))
        unknown = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(models.WordLevel({"[UNK]": 0}, "[UNK]")), unk_token="[UNK]"
        )
        assert tokenizers.probe_pair(unknown, "") == PairTemplate()

    @pytest.mark.parametrize("types", [[1, 1, 0], [0, 0, 2], None])
    def test_others_are_refused(self, types: list[int] | None) -> None:
        class Own:
            def __call__(self, text: str, pair: str | None = None, add_special_tokens: bool = True) -> Any:
                if pair is None:
                    return {"input_ids": [ord(text)]}
                return {"input_ids": [ord(text), 1, ord(pair)][:: 1 if types else -1], "token_type_ids": types}

        with pytest.raises(DataError, match="Own joins two texts in a way of its own"):
            tokenizers.probe_pair(Own(), "")

    def test_a_language_is_needed_where_tokenizers_mark_it(self) -> None:
        with pytest.raises(DataError, match=r"^--lang is needed: MBartTokenizer marks .*; known: ar_AR"):
            tokenizers.check_languages(MBartTokenizer(vocab=PIECES), [""], "--lang")
        tokenizers.check_languages(word_tokenizer(), [""], "--lang")


class TestEncoding:
    @pytest.mark.parametrize("kind", [MBartTokenizer, MBart50Tokenizer])
    def test_fast_ids_are_those_of_transformers(self, kind: Any, tmp_path: Path) -> None:
        kind(vocab=PIECES).save_pretrained(tmp_path)
        opened = tokenizers.open_tokenizer(tmp_path)
        spec = choose_encoder(opened, tmp_path, {"source": "en_XX", "target": "fr_XX"})
        texts = ["a house", "", "  é b  a", "x" * 3000]
        assert spec.rust
        rows = spec.open()(texts, "source")
        assert [row.tolist() for row in rows.split()] == opened(texts, add_special_tokens=False)["input_ids"]
        slow = spec._replace(rust=False).open()
        assert all(
            [row.tolist() for row in slow(texts, role).split()] == [r.tolist() for r in rows.split()] for role in ROLES
        )

    def test_ids_are_never_cut_or_padded(self, tmp_path: Path) -> None:
        tokenizer = word_tokenizer(pad_token="[PAD]", sep_token="[SEP]")
        tokenizer.backend_tokenizer.enable_truncation(4)
        tokenizer.backend_tokenizer.enable_padding(length=8)
        tokenizer.save_pretrained(tmp_path)
        opened = tokenizers.open_tokenizer(tmp_path)
        encode = choose_encoder(opened, tmp_path, {"source": "en", "target": "fr"}).open()
        assert encode(["a b " * 10, "a"], "source").lengths.tolist() == [20, 1]


def test_description(tmp_path: Path) -> None:
    tokenizer = word_tokenizer(pad_token="[PAD]", sep_token="[SEP]", cls_token="[CLS]")
    tokenizer.save_pretrained(tmp_path)
    entry = tokenizers.describe(tokenizer, tmp_path)
    assert entry["vocab_size"] == len(tokenizer) == 6
    assert (entry["pad"], entry["bos"], entry["eos"], entry["unk"]) == (
        tokenizer.pad_token_id,
        None,
        tokenizer.sep_token_id,
        0,
    )
    before = entry["fingerprint"]
    (tmp_path / "tokenizer.json").write_text((tmp_path / "tokenizer.json").read_text() + " ")
    assert tokenizers.fingerprint(tmp_path) != before


@pytest.mark.parametrize(
    ("names", "message"), [({"eos_token": "a"}, "no padding"), ({"pad_token": "a"}, "no end-of-text")]
)
def test_tokenizers_that_cannot_be_used(tmp_path: Path, names: dict[str, str], message: str) -> None:
    word_tokenizer(**names).save_pretrained(tmp_path)
    with pytest.raises(DataError, match=message):
        tokenizers.open_tokenizer(tmp_path)


def test_missing_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--tokenizer .*none: no such folder"):
        tokenizers.open_tokenizer(tmp_path / "none")
    with pytest.raises(DataError, match="no tokenizer can be opened there"):
        tokenizers.open_tokenizer(tmp_path)
