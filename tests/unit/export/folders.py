"""Tiny random students of every family in folders, with their tokenizers."""

from __future__ import annotations

from pathlib import Path

from tests.unit.generation.models import tiny
from tests.unit.generation.students import bart_tokenizer, mbart_tokenizer

LINES = ["a b c", "q", "t s r q p o n m", "", "b b", "k l a f", "d", "e f g h i j k l m n o p"]

#: Kinds of models, with mBART's two tokenizers, and seeds whose models write a different text for nearly every line.
STUDENTS = {"bart": 2, "marian": 1, "mbart25": 2, "mbart50": 3, "t5": 8, "flan": 2, "mt5": 4}


def student(folder: Path, kind: str) -> Path:
    """A student of one of `STUDENTS`; with mBART's tokenizers it goes from en_XX to ro_RO."""
    languages = {"mbart25": 25, "mbart50": 50}.get(kind)
    tokenizer = bart_tokenizer() if languages is None else mbart_tokenizer(languages)
    model = tiny(kind if languages is None else "mbart", STUDENTS[kind], vocab_size=len(tokenizer) + 3)
    # Not forced, so that an output may be cut without an end: CTranslate2 has no forced end.
    model.generation_config.forced_eos_token_id = model.config.forced_eos_token_id = None
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
