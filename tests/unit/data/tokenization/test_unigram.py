"""The unigram tokenizer made here gives SentencePiece's ids for every text, also when AutoTokenizer opens it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from cktk.data.preprocessing.configs import UnigramTokenizerConfig
from cktk.data.tokenization.encoder import RustEncoder
from cktk.data.tokenization.unigram import train_unigram
from cktk.errors import ConfigError

WORDS = ["IEEE", "EEEE", "1394", "l'été", "façade", "naïve", "m²", "½", "the", "file", "system"]
SYLLABLES = ["ka", "lo", "mi", "tre", "sun", "po", "ré", "xi", "den", "ou", "fla", "gi"]
HOSTILE = [
    "",
    " ",
    "<s> </s> <pad> <unk> <mask>",
    "<<s>>x</s>",
    "<0x41><0x0A>",
    "▁ a▁b ▁▁",
    "e\u0301 ﬁ\u0301 e\u0301\u0323\u0330 \u212b\u0301",
    "a\u00a0\u0301b \u3000 \u200b\ufeff\u200d",
    "a\r\nb\x0bc\x0cd\x85e\u2028f\u2029g\th",
    "a\x00b\x01\x02 \x03 c\x1c\x1d\x7f",
    "한글 각 汉字 👨‍👩‍👧 🇫🇷 \U0010ffff \ue000 \ufffd ⁇",
    "IEEE EEEEEEE EEEEEEEEEEEE",
]


def lines() -> list[str]:
    draw = random.Random(5)
    words = WORDS + ["".join(draw.choices(SYLLABLES, k=draw.randint(1, 4))) for _ in range(300)]
    runs = ["x" + sign * draw.randint(1, 9) for sign in draw.choices("EIk", k=600)]
    return [" ".join(draw.choices(words, k=draw.randint(2, 9))) for _ in range(600)] + runs


@pytest.fixture(scope="module", params=[True, False], ids=["bytes", "no-bytes"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("unigram")
    size = 420 if request.param else 164
    train_unigram(UnigramTokenizerConfig(vocab_size=size, byte_fallback=request.param), iter(lines()), path, 1)
    return path


@pytest.fixture(scope="module")
def reference(folder: Path) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "sentencepiece.model"))


@pytest.fixture(scope="module")
def encode(folder: Path) -> RustEncoder:
    return RustEncoder(folder)


@pytest.mark.parametrize("texts", [[text] for text in HOSTILE] + [lines()], ids=[*map(ascii, HOSTILE), "training text"])
def test_ids_equal_sentencepiece(
    folder: Path, reference: sentencepiece.SentencePieceProcessor, texts: list[str]
) -> None:
    expected = reference.encode(texts)
    assert AutoTokenizer.from_pretrained(folder)(texts, add_special_tokens=False)["input_ids"] == expected
    assert [row.tolist() for row in RustEncoder(folder)(texts, "source").split()] == expected
    assert not any({0, 1, 2} & set(row) for row in expected)


@settings(max_examples=200)
@given(text=st.text(max_size=30) | st.text(st.sampled_from("<s>/0xunkEI e\u0301▁\u00a0\t汉👍")))
def test_ids_equal_sentencepiece_on_any_text(
    encode: RustEncoder, reference: sentencepiece.SentencePieceProcessor, text: str
) -> None:
    assert encode([text], "source").ids.tolist() == reference.encode(text)


def test_ties_are_broken_alike(encode: RustEncoder, reference: sentencepiece.SentencePieceProcessor) -> None:
    # Runs such as EEEEE have several segmentations of the same score.
    draw = random.Random(3)
    texts = [" ".join("x" + sign * draw.randint(1, 11) for sign in draw.choices("EIk", k=40)) for _ in range(300)]
    assert [row.tolist() for row in encode(texts, "source").split()] == reference.encode(texts)


def test_special_tokens_and_template(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert [tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id] == [
        0,
        1,
        2,
        3,
    ]
    inner = tokenizer("the file", add_special_tokens=False)["input_ids"]
    assert tokenizer("the file")["input_ids"] == [0, *inner, 2]
    assert tokenizer.decode(tokenizer(" the  file\tIEEE")["input_ids"], skip_special_tokens=True) == "the file IEEE"


def test_a_bart_folder_opens_with_the_same_ids(folder: Path, tmp_path: Path) -> None:
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bart"}')
    again = AutoTokenizer.from_pretrained(tmp_path)
    for text in ["<s> the file", "IEEE façade"]:
        assert again(text)["input_ids"] == AutoTokenizer.from_pretrained(folder)(text)["input_ids"]


@pytest.mark.parametrize(
    ("size", "message"), [(100_000, r"too large .* carries \d+ at most"), (60, r"too small: .*\d+")]
)
def test_vocabulary_sizes_that_do_not_fit(tmp_path: Path, size: int, message: str) -> None:
    with pytest.raises(ConfigError, match=f"--vocab-size {size}: {message}"):
        train_unigram(UnigramTokenizerConfig(vocab_size=size), iter(lines()), tmp_path, 1)
