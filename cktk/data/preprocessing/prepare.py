"""From a source of rows to a data folder: checks first, then the tokenizer, the shards, and the manifest."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from cktk.data.manifest import MANIFEST, TOKENIZER_FOLDER
from cktk.data.preprocessing.binarize import Binarizer, block_workers
from cktk.data.preprocessing.blocks import Rules
from cktk.data.preprocessing.configs import PreprocessConfig
from cktk.data.preprocessing.layouts import Layout
from cktk.data.shards import write_manifest
from cktk.data.sources.sources import Source
from cktk.data.tokenization import tokenizers
from cktk.data.tokenization.encoder_spec import EncoderSpec, choose_encoder
from cktk.errors import DataError
from cktk.utils.files import atomic_folder, is_temporary, read_json, sweep_temporaries, write_json

#: What a data folder was asked to be; written first, so that a repeated command knows what it continues.
RECORD = "preprocess.json"

#: Called with the split, its number of lines if known, and the lines just done.
SplitProgress = Callable[[str, "int | None", int], None]


class TokenizerMaker(Protocol):
    """Where the tokenizer comes from."""

    def identity(self) -> dict[str, Any]:
        """What decides which tokenizer it will be, as JSON; a folder made with another identity is not continued."""
        ...

    def make(self, folder: Path) -> None:
        """Write a folder that AutoTokenizer opens."""
        ...


class PretrainedTokenizer:
    """A Hugging Face tokenizer folder or hub name, for the texts of ``layout``."""

    def __init__(self, name: str, layout: Layout) -> None:
        self._tokenizer = tokenizers.open_tokenizer(name)
        languages = list(layout.languages.values())
        tokenizers.check_languages(self._tokenizer, languages, layout.language_flags)
        if layout.joined:
            tokenizers.probe_pair(self._tokenizer, languages[0])

    def identity(self) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            self.make(Path(folder))
            return {"kind": "pretrained", "fingerprint": tokenizers.fingerprint(Path(folder))}

    def make(self, folder: Path) -> None:
        self._tokenizer.save_pretrained(folder)


class TrainedTokenizer:
    """A tokenizer learned from all texts of the train split by ``train(config, texts, folder, workers)``."""

    def __init__(
        self, kind: str, config: Any, train: Callable[..., None], source: Source, layout: Layout, workers: int
    ) -> None:
        self._kind = kind
        self._config = config
        self._train = train
        self._source = source
        self._places = [place for place, column in enumerate(layout.columns) if column.values is None]
        self._workers = workers
        if "train" not in source.splits():
            raise DataError("--train-tokenizer learns from the train split, and none is given; add it, or --tokenizer")

    def identity(self) -> dict[str, Any]:
        digest = hashlib.blake2b(digest_size=16)
        for text in self._texts():
            digest.update(text.encode() + b"\0")
        return {"kind": self._kind, "text": digest.hexdigest(), **vars(self._config)}

    def make(self, folder: Path) -> None:
        self._train(self._config, self._texts(), folder, self._workers)

    def _texts(self) -> Iterator[str]:
        for row in self._source.rows("train"):
            for place in self._places:
                yield row[place]


class Prepared(NamedTuple):
    """What was made: the content of the manifest, and whether a finished folder was found and left as it was."""

    manifest: dict[str, Any]
    unchanged: bool


def prepare(
    source: Source,
    layout: Layout,
    tokenizer: TokenizerMaker,
    config: PreprocessConfig,
    progress: SplitProgress | None = None,
) -> Prepared:
    """Write the data folder ``config.dest_dir`` with the columns of ``layout``.

    Finishes one that an interrupted run of the same command left. Raises `DataError` before anything is written if the
    text cannot be read, or the folder holds something else.
    """
    folder = Path(config.dest_dir)
    _check_free(folder)
    totals = {split: source.count(split) for split in source.splits()}
    record = _record(config, layout, tokenizer.identity())
    previous = _check_continued(folder, record, totals)
    if folder.exists():
        sweep_temporaries(folder)
    if not (folder / TOKENIZER_FOLDER).exists():
        with atomic_folder(folder / TOKENIZER_FOLDER) as inner:
            tokenizer.make(inner)
            write_json(folder / RECORD, record)
    manifest, spec, specials = _tokenizer_entries(folder, layout)
    described = manifest["tokenizer"]
    empty = "keep" if layout.keep_empty else config.empty_lines
    rules = Rules(empty, config.overlong_lines, config.max_length)
    with block_workers(spec, layout.columns, rules, described["unk"], specials, config.workers) as submit:
        binarizer = Binarizer(folder, submit, described["vocab_size"], config.shard_size)
        for split, total in totals.items():
            report = partial(progress, split, total) if progress else _silent
            manifest["splits"][split] = binarizer.split(split, layout.stored(source.rows(split)), report)
    unchanged = previous is not None and previous.get("splits") == manifest["splits"]
    if not unchanged:
        write_manifest(folder, manifest)
    return Prepared(manifest, unchanged)


def _silent(lines: int) -> None:
    pass


def _tokenizer_entries(folder: Path, layout: Layout) -> tuple[dict[str, Any], EncoderSpec, list[int]]:
    """The manifest without its splits, how to encode, and the ids of special tokens (the unknown token aside)."""
    tokenizer: Any = tokenizers.open_tokenizer(folder / TOKENIZER_FOLDER)
    described = tokenizers.describe(tokenizer, folder / TOKENIZER_FOLDER)
    languages = list(dict.fromkeys(layout.languages.values()))
    tokenizers.check_languages(tokenizer, languages, layout.language_flags)
    templates = tokenizers.probe_templates(tokenizer, languages)
    manifest: dict[str, Any] = {
        "task": layout.task,
        "benchmark": layout.published.name if layout.published is not None else None,
        "languages": layout.languages,
        "columns": [column.name for column in layout.columns],
        "kinds": {column.name: column.kind for column in layout.columns},
        "labels": layout.labels,
        "tokenizer": described,
        "templates": {
            role: {lang: {"prefix": list(t.prefix), "suffix": list(t.suffix)} for lang, t in by_language.items()}
            for role, by_language in templates.items()
        },
        "pair_template": asdict(tokenizers.probe_pair(tokenizer, languages[0])) if layout.joined else None,
        "splits": {},
    }
    spec = choose_encoder(tokenizer, folder / TOKENIZER_FOLDER, layout.roles)
    return manifest, spec, [token for token in tokenizer.all_special_ids if token != described["unk"]]


def _record(config: PreprocessConfig, layout: Layout, tokenizer: dict[str, Any]) -> dict[str, Any]:
    kept = ("shard_size", "empty_lines", "max_length", "overlong_lines")
    return {
        **{name: getattr(config, name) for name in kept},
        "task": layout.task,
        "columns": [column.name for column in layout.columns],
        "labels": list(layout.labels) if layout.labels is not None else None,
        **{f"{column}_lang": lang for column, lang in layout.languages.items()},
        "tokenizer": tokenizer,
    }


#: What the records of earlier versions, which knew translation alone, do not say.
_EARLIER = {"task": "translation", "columns": ["source", "target"], "labels": None}


def _check_free(folder: Path) -> None:
    """Refuse a folder that holds anything but a data folder or the beginnings of one."""
    if folder.exists() and not folder.is_dir():
        raise DataError(f"--dest-dir {folder}: is a file; choose a folder")
    found = sorted(path.name for path in folder.iterdir() if not is_temporary(path)) if folder.exists() else []
    if found and RECORD not in found:
        raise DataError(f"--dest-dir {folder}: holds other data ({found[0]}); choose a new or empty folder")


def _check_continued(folder: Path, record: dict[str, Any], splits: Collection[str]) -> dict[str, Any] | None:
    """Refuse a data folder made with other settings; returns its manifest if it is finished."""
    if not (folder / RECORD).exists():
        return None
    before = _flat({**_EARLIER, **read_json(folder / RECORD)})
    now = _flat(record)
    for name in sorted({*before, *now}):
        if before.get(name) != now.get(name):
            raise DataError(
                f"--dest-dir {folder}: was made with {name} {before.get(name)}, not {now.get(name)}; "
                "choose another folder, or remove this one"
            )
    if not (folder / MANIFEST).exists():
        return None
    manifest: dict[str, Any] = read_json(folder / MANIFEST)
    if left := [split for split in manifest["splits"] if split not in splits]:
        raise DataError(
            f"--dest-dir {folder}: also holds the split {left[0]}, which is not given now; give it too, or choose "
            "another folder"
        )
    return manifest


def _flat(record: dict[str, Any]) -> dict[str, Any]:
    tokenizer = record.get("tokenizer", {})
    return {**record, "tokenizer": None, **{f"tokenizer {name}": value for name, value in tokenizer.items()}}
