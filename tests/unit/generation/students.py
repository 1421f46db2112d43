"""Tiny students in folders, with tokenizers whose words are single letters."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import MBart50Tokenizer, MBartTokenizer, PreTrainedTokenizerFast

from cktk.data.shards import DataFolder, write_manifest, write_shard
from cktk.data.tokenization.tokenizers import describe, probe_templates
from tests.unit.generation.models import tiny_model

LETTERS = "abcdefghijklmnopqrst"
SPECIALS = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
PIECES = SPECIALS + [(f"▁{letter}", -1.0 - place / 10) for place, letter in enumerate(LETTERS)]


def bart_tokenizer() -> Any:
    """``<s> text </s>``; no languages."""
    tokenizer = Tokenizer(models.Unigram(PIECES, unk_id=3))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    specials = [("<s>", 0), ("</s>", 2)]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=specials)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def mbart_tokenizer(languages: int, target: str | None = "ro_RO") -> Any:
    """mBART's tokenizer for 25 or 50 languages over our letters, from English."""
    kind = MBart50Tokenizer if languages == 50 else MBartTokenizer
    return kind(vocab=PIECES, src_lang="en_XX", tgt_lang=target)


def save_student(folder: Path, seed: int = 4, **settings: Any) -> Path:
    """A random BART student with its tokenizer in ``folder``."""
    tokenizer = bart_tokenizer()
    model = tiny_model("bart", seed, vocab_size=len(tokenizer), **settings)
    # The bias is a buffer of the file, so that the reopened student still ends at varied lengths.
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def data_bin(folder: Path, student: Path, pairs: list[tuple[str, str]]) -> DataFolder:
    """A data folder with the student's tokenizer, whose split test holds ``pairs``."""
    folder.mkdir()
    tokenizer = bart_tokenizer()
    shutil.copytree(student, folder / "tokenizer", ignore=shutil.ignore_patterns("model*", "config*", "generation*"))
    columns = {
        role: [np.array(tokenizer(pair[side], add_special_tokens=False).input_ids, np.int64) for pair in pairs]
        for side, role in enumerate(("source", "target"))
    }
    entry = write_shard(folder, "test-00000", columns, len(tokenizer))
    manifest = {
        "languages": {"source": "en", "target": "fr"},
        "columns": ["source", "target"],
        "tokenizer": describe(tokenizer, folder / "tokenizer"),
        "templates": {
            role: {lang: {"prefix": list(t.prefix), "suffix": list(t.suffix)} for lang, t in by_lang.items()}
            for role, by_lang in probe_templates(tokenizer, ["en", "fr"]).items()
        },
        "splits": {"test": {"shards": [entry], "rows": len(pairs)}},
    }
    write_manifest(folder, manifest)
    return DataFolder(folder)
