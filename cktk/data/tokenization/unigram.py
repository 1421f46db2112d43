"""Training a SentencePiece unigram vocabulary, and writing it as a Hugging Face tokenizer with the same ids.

The text is learned and encoded as it is, except that every kind of white space becomes a space and control characters
go. SentencePiece's usual NFKC table is left out on purpose: it would turn ``m²`` into ``m2`` for good, and `tokenizers`
applies such a table per grapheme where SentencePiece takes the longest match, so their ids differ on stacked accents.
"""

from __future__ import annotations

import io
import re
import string
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sentencepiece
from sentencepiece.sentencepiece_model_pb2 import ModelProto  # type: ignore[attr-defined]
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from cktk.data.preprocessing.configs import UnigramTokenizerConfig
from cktk.errors import ConfigError, DataError
from cktk.utils.files import read_json, write_json

#: Names and ids of the special tokens, as in BART.
SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")

# Everything that Unicode calls white space, the zero-width space and the byte order mark, and SentencePiece's own sign
# for a space, which could not be told from a space afterwards.
_TO_SPACE = "\t\n\x0b\x0c\r\x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200C))) + "\u2028\u2029\u202f\u205f\u3000"
_TO_SPACE += "\u2581\ufeff"
_REMOVED = "".join(map(chr, (*range(0x01, 0x09), *range(0x0E, 0x20), 0x7F)))

# Characters that spell special tokens and byte pieces. With each of them in the vocabulary, a literal "</s>" or
# "<0x0A>" always has an ordinary spelling, which the score below makes the better one.
_SPELLING = "</>" + string.ascii_letters + string.digits
_NEVER = -1e6

# SentencePiece adds scores in single precision over a line, `tokenizers` in double precision over a word, and rounding
# would break ties between segmentations ("E EE", "EE E") in different ways. Sums of multiples of 2**-8 are exact in
# both for lines of thousands of tokens.
_SCORE_STEPS = 256


def train_unigram(config: UnigramTokenizerConfig, texts: Iterator[str], folder: Path, workers: int) -> None:
    """Learn a vocabulary from ``texts`` (Kudo 2018) and write a tokenizer that AutoTokenizer opens to ``folder``.

    ``sentencepiece.model`` is kept beside ``tokenizer.json``; both give the same ids for every text. Raises
    `ConfigError` if the text does not carry a vocabulary of the wanted size.
    """
    model = ModelProto()
    model.ParseFromString(_train(config, texts, workers))
    for piece in model.pieces:
        piece.score = round(piece.score * _SCORE_STEPS) / _SCORE_STEPS
    (folder / "sentencepiece.model").write_bytes(model.SerializeToString())
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=_build(model),
        bos_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        split_special_tokens=True,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.save_pretrained(folder)
    # transformers 5 writes its own name for this class, which a model folder opened with other versions would not know.
    settings = read_json(folder / "tokenizer_config.json")
    write_json(folder / "tokenizer_config.json", {**settings, "tokenizer_class": "PreTrainedTokenizerFast"})


def _train(config: UnigramTokenizerConfig, texts: Iterator[str], workers: int) -> bytes:
    model = io.BytesIO()
    with tempfile.NamedTemporaryFile("w", suffix=".tsv", encoding="utf-8") as rules:
        rules.write("".join(f"{ord(sign):X}\t20\n" for sign in _TO_SPACE))
        rules.write("".join(f"{ord(sign):X}\t\n" for sign in _REMOVED))
        rules.flush()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=(text for text in texts if text),
                model_writer=model,
                model_type="unigram",
                vocab_size=config.vocab_size,
                character_coverage=config.character_coverage,
                byte_fallback=config.byte_fallback,
                required_chars=_SPELLING,
                normalization_rule_tsv=rules.name,
                input_sentence_size=config.tokenizer_sentences,
                shuffle_input_sentence=True,
                num_threads=workers,
                bos_id=0,
                pad_id=1,
                eos_id=2,
                unk_id=3,
                minloglevel=2,
            )
        except (RuntimeError, OSError) as error:
            raise _training_error(config, str(error)) from error
    return model.getvalue()


def _training_error(config: UnigramTokenizerConfig, message: str) -> ConfigError | DataError:
    if found := re.search(r"Vocabulary size too high.*?<= (\d+)", message):
        return ConfigError(
            f"--vocab-size {config.vocab_size}: too large for this text, which carries {found[1]} at most"
        )
    if found := re.search(r"Vocabulary size is smaller than required_chars\. \d+ vs (\d+)", message):
        return ConfigError(
            f"--vocab-size {config.vocab_size}: too small: special tokens, bytes and single characters of this text "
            f"alone are {found[1]}"
        )
    return DataError(f"--train-tokenizer unigram: training failed: {message.strip() or 'no usable text'}")


def _build(model: Any) -> Tokenizer:
    normal = model.SentencePiece.NORMAL
    vocabulary = [(piece.piece, piece.score if piece.type == normal else _NEVER) for piece in model.pieces]
    byte_fallback = bool(model.trainer_spec.byte_fallback)
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=3, byte_fallback=byte_fallback))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Replace(Regex(f"[{_escaped(_TO_SPACE)}]"), " "),
            normalizers.Replace(Regex(f"[{_escaped(_REMOVED)}]"), ""),
            normalizers.Strip(),
            normalizers.Replace(Regex(" {2,}"), " "),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    metaspace = decoders.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), metaspace]) if byte_fallback else metaspace
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer.add_special_tokens(list(SPECIALS))
    return tokenizer


def _escaped(signs: str) -> str:
    return "".join(f"\\x{{{ord(sign):X}}}" for sign in signs)
