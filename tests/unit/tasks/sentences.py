"""Tiny tokenizers of three kinds, and data folders of sentences that they make."""

from __future__ import annotations

import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import BertTokenizer, DistilBertTokenizer, RobertaTokenizer

from cktk.data.shards import DataFolder, write_manifest, write_shard
from cktk.data.tokenization import tokenizers

LETTERS = string.ascii_lowercase
WORDS = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]", *LETTERS]
PIECES = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *LETTERS, "Ġ"]


def make_tokenizer(kind: str) -> Any:
    """Each letter between spaces is a token (RoBERTa: and each space, too); the pad is 1."""
    if kind == "roberta":
        return RobertaTokenizer(vocab={piece: number for number, piece in enumerate(PIECES)}, merges=[])
    maker = BertTokenizer if kind == "bert" else DistilBertTokenizer
    return maker(vocab={word: number for number, word in enumerate(WORDS)})


def make_folder(
    folder: Path,
    tokenizer: Any,
    splits: dict[str, Sequence[tuple[Any, ...]]],
    labels: tuple[str, ...] | None = ("no", "yes"),
    shards: int = 1,
    **changes: Any,
) -> DataFolder:
    """A folder of rows (text, label) or (text, other text, label) in the layout of cktk-preprocess --task glue."""
    tokenizer.save_pretrained(folder / "tokenizer")
    width = len(next(iter(splits.values()))[0])
    texts = ("text_a", "text_b")[: width - 1]
    entries: dict[str, list[Any]] = {}
    for split, rows in splits.items():
        entries[split] = []
        for number, part in enumerate(np.array_split(np.arange(len(rows)), shards)):
            columns: dict[str, Any] = {
                name: [_ids(tokenizer, rows[row][at]) for row in part] for at, name in enumerate(texts)
            }
            columns["label"] = np.array([rows[row][-1] for row in part], np.float64 if labels is None else np.int64)
            entries[split].append(write_shard(folder, f"{split}-{number:05d}", columns, len(tokenizer)))
    pair = tokenizers.probe_pair(tokenizer, "") if width == 3 else None
    manifest = {
        "task": "glue",
        "languages": {},
        "columns": [*texts, "label"],
        "kinds": {**dict.fromkeys(texts, "tokens"), "label": "number" if labels is None else "integer"},
        "labels": None if labels is None else list(labels),
        "tokenizer": tokenizers.describe(tokenizer, folder / "tokenizer"),
        "templates": {
            role: {lang: {"prefix": list(t.prefix), "suffix": list(t.suffix)} for lang, t in by_language.items()}
            for role, by_language in tokenizers.probe_templates(tokenizer, [""]).items()
        },
        "pair_template": None if pair is None else vars(pair),
        "splits": {name: {"shards": found, "rows": len(splits[name])} for name, found in entries.items()},
    }
    write_manifest(folder, {**manifest, **changes})
    return DataFolder(folder)


def _ids(tokenizer: Any, text: str) -> np.ndarray:
    return np.array(tokenizer(text, add_special_tokens=False)["input_ids"], np.int64)
