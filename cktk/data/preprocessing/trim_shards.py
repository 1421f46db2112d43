"""The tokens that a data folder uses, and the same folder in a trimmed vocabulary."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cktk.data.manifest import MANIFEST, TOKENIZER_FOLDER
from cktk.data.shards import DataFolder, write_manifest, write_shard
from cktk.data.tokenization.tokenizers import describe, open_tokenizer
from cktk.data.tokenization.vocabulary_map import VocabularyMap
from cktk.errors import DataError
from cktk.utils.files import read_json

#: Called with the number of rows that have just been dealt with.
Progress = Callable[[int], None]


def rows_of(data: DataFolder) -> int:
    """The rows of all splits together."""
    return sum(len(data.split(name)) for name in data.splits)


def count_tokens(data: DataFolder, progress: Progress) -> npt.NDArray[np.int64]:
    """How often each id (V) occurs in the columns of all splits."""
    counts = np.zeros(data.vocab_size, np.int64)
    for name in data.splits:
        split = data.split(name)
        for number, rows in enumerate(split.shard_rows):
            for column in split.shard(number).values():
                found = np.bincount(column.ids, minlength=data.vocab_size)
                if len(found) > data.vocab_size:
                    raise DataError(f"{data.path}: split {name} holds ids outside of its vocabulary; it is damaged")
                counts += found
            progress(rows)
    return counts


def template_ids(data: DataFolder) -> set[int]:
    """The special tokens that are put around the rows of the folder."""
    templates = [template for by_language in data.templates.values() for template in by_language.values()]
    found = {token for template in templates for token in (*template.prefix, *template.suffix)}
    if (pair := data.pair_template) is not None:
        found.update(pair.prefix, pair.middle, pair.suffix)
    return found


def write_trimmed_data(
    data: DataFolder, vocabulary: VocabularyMap, tokenizer: Path, folder: Path, progress: Progress
) -> None:
    """Write the rows of ``data`` with new ids, and the trimmed ``tokenizer``, into ``folder``.

    It is what cktk-preprocess would make of the text with that tokenizer. Raises `DataError` where a row holds a token
    that ``vocabulary`` dropped.
    """
    shutil.copytree(tokenizer, folder / TOKENIZER_FOLDER)
    manifest: dict[str, Any] = read_json(data.path / MANIFEST)
    del manifest["cktk"]  # the version that writes is this one
    for name in data.splits:
        split = data.split(name)
        entries = []
        for number, entry in enumerate(data.entries(name)):
            columns: dict[str, Any] = {
                column: np.split(vocabulary.to_new(ids), offsets[1:-1]) if entry["rows"] else []
                for column, (ids, offsets) in split.shard(number).items()
            }
            columns |= split.values_of(number)
            entries.append(write_shard(folder, entry["name"], columns, vocabulary.new_size))
            progress(entry["rows"])
        manifest["splits"][name]["shards"] = entries
    templates = [template for by_language in manifest["templates"].values() for template in by_language.values()]
    for template in [*templates, manifest.get("pair_template") or {}]:
        for place in {"prefix", "middle", "suffix"} & set(template):
            template[place] = vocabulary.to_new(template[place]).tolist()
    opened = open_tokenizer(folder / TOKENIZER_FOLDER)
    write_manifest(folder, {**manifest, "tokenizer": describe(opened, folder / TOKENIZER_FOLDER)})
