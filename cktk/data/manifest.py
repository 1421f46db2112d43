"""What the manifest of a data folder says, checked; and the same for the sizes of the shards' files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from cktk.errors import DataError
from cktk.protocols import PairTemplate, Template

SCHEMA = 1
MANIFEST = "manifest.json"
TOKENIZER_FOLDER = "tokenizer"
#: What a folder with rewritten texts is to become (`cktk.data.preprocessing.rewrite`); written first, and kept.
REWRITE_RECORD = "rewrite.json"
AGAIN = "run cktk-preprocess again into a new folder"

#: What a column holds: token ids of a text, or one integer or one number a row.
Kind = Literal["tokens", "integer", "number"]

OFFSET = np.dtype("<i8")
IDS: dict[str, np.dtype[Any]] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
VALUES: dict[Kind, np.dtype[Any]] = {"integer": np.dtype("<i8"), "number": np.dtype("<f8")}


class Manifest(NamedTuple):
    """The checked content of a manifest. Folders of earlier versions, which have no ``task``, are of translation."""

    task: str
    languages: dict[str, str]
    columns: list[str]
    kinds: dict[str, Kind]
    labels: tuple[str, ...] | None
    benchmark: str | None
    tokenizer: dict[str, Any]
    templates: dict[str, dict[str, Template]]
    pair_template: PairTemplate | None
    shards: dict[str, list[dict[str, Any]]]

    @classmethod
    def parse(cls, folder: Path, raw: Any) -> Manifest:
        """Check schema, structure and file sizes of the manifest ``raw`` of ``folder``, in O(shards)."""
        path = folder / MANIFEST
        if not isinstance(raw, dict) or raw.get("schema") != SCHEMA:
            found = raw.get("schema") if isinstance(raw, dict) else None
            raise DataError(f"{path}: data schema {found}, but this version of cktk reads schema {SCHEMA}; {AGAIN}")
        try:
            columns = [str(column) for column in raw["columns"]]
            kinds = _kinds(columns, raw.get("kinds", {}))
            shards = {name: list(split["shards"]) for name, split in raw["splits"].items()}
            for name, split in raw["splits"].items():
                if split["rows"] != sum(shard["rows"] for shard in shards[name]):
                    raise DataError(f"{path}: the rows of split {name} are not those of its shards; {AGAIN}")
                for shard in shards[name]:
                    _check_columns(path, shard, kinds)
                    check_sizes(folder, shard)
            return cls(
                task=str(raw.get("task", "translation")),
                languages=_languages(kinds, raw["languages"]),
                columns=columns,
                kinds=kinds,
                labels=tuple(map(str, raw["labels"])) if raw.get("labels") is not None else None,
                benchmark=str(raw["benchmark"]) if raw.get("benchmark") is not None else None,
                tokenizer={
                    key: raw["tokenizer"][key] for key in ("fingerprint", "vocab_size", "pad", "bos", "eos", "unk")
                },
                templates={
                    role: {lang: Template(tuple(t["prefix"]), tuple(t["suffix"])) for lang, t in by_language.items()}
                    for role, by_language in raw["templates"].items()
                },
                pair_template=_pair_template(raw.get("pair_template")),
                shards=shards,
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise DataError(f"{path}: not a manifest of cktk-preprocess ({error!r}); {AGAIN}") from error


def _kinds(columns: list[str], given: Mapping[str, Any]) -> dict[str, Kind]:
    kinds = {column: given.get(column, "tokens") for column in columns}
    for column, kind in kinds.items():
        if kind not in get_args(Kind):
            raise ValueError(f"column {column} of kind {kind}")
    return kinds


def _languages(kinds: Mapping[str, Kind], given: Mapping[str, Any]) -> dict[str, str]:
    languages = {column: "" for column, kind in kinds.items() if kind == "tokens"}
    return languages | {str(column): str(lang) for column, lang in given.items()}


def _pair_template(raw: Mapping[str, Any] | None) -> PairTemplate | None:
    if raw is None:
        return None
    return PairTemplate(tuple(raw["prefix"]), tuple(raw["middle"]), tuple(raw["suffix"]), bool(raw["token_types"]))


def _check_columns(path: Path, entry: Mapping[str, Any], kinds: Mapping[str, Kind]) -> None:
    values = entry.get("values", {})
    for column, kind in kinds.items():
        found = values.get(column, "tokens" if column in entry["tokens"] else None)
        if found != kind:
            raise DataError(f"{path}: shard {entry['name']} holds {found or 'no'} {column}, not {kind}; {AGAIN}")


def check_sizes(folder: Path, entry: Mapping[str, Any]) -> None:
    """Raise `DataError` unless all files of the shard ``entry`` are there, each of the size that ``entry`` says."""
    width, rows, values = IDS[entry["dtype"]].itemsize, entry["rows"], entry.get("values", {})
    sizes = {f"{column}.bin": tokens * width for column, tokens in entry["tokens"].items()}
    sizes |= {f"{column}.idx": (rows + 1) * OFFSET.itemsize for column in entry["tokens"]}
    sizes |= {f"{column}.bin": rows * VALUES[kind].itemsize for column, kind in values.items()}
    for file, size in sizes.items():
        path = folder / f"{entry['name']}.{file}"
        try:
            found = path.stat().st_size
        except OSError as error:
            raise DataError(f"{path}: shard file is missing ({error.strerror}); {AGAIN}") from error
        if found != size:
            raise DataError(f"{path}: shard file has {found} bytes instead of {size}; it is damaged: {AGAIN}")
