"""MarianMT's kind of tokenizer, trained on a few lines."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sentencepiece
from transformers import MarianTokenizer


def save_tokenizer(folder: Path, source: Sequence[str], target: Sequence[str], size: int) -> Any:
    """A SentencePiece model a side, of about ``size`` pieces, and one vocabulary that joins both."""
    folder.mkdir()
    vocabulary = {"</s>": 0, "<unk>": 1}
    for role, lines in (("source", source), ("target", target)):
        sentencepiece.SentencePieceTrainer.Train(
            sentence_iterator=iter(lines), model_prefix=str(folder / role), vocab_size=size, minloglevel=2,
            hard_vocab_limit=False,
        )  # fmt: skip
        (folder / f"{role}.model").rename(folder / f"{role}.spm")
        model = sentencepiece.SentencePieceProcessor(model_file=str(folder / f"{role}.spm"))
        for index in range(3, model.get_piece_size()):
            vocabulary.setdefault(model.id_to_piece(index), len(vocabulary))
    vocabulary["<pad>"] = len(vocabulary)
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    return MarianTokenizer(str(folder / "source.spm"), str(folder / "target.spm"), str(folder / "vocab.json"))
