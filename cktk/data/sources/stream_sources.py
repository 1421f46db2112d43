"""What ``--stream`` names: files, a folder of datasets' ``save_to_disk``, or a data set on the hub."""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from cktk.errors import CktkError, ConfigError, DataError
from cktk.utils.words import alternatives

_BUILDERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".txt": "text", ".csv": "csv"}
_COMPRESSED = (".gz", ".zst", ".bz2", ".xz")
_READ = "files that are read end with .jsonl, .json, .parquet, .txt or .csv (and .gz, .zst, .bz2 or .xz)"


class StreamSpec(NamedTuple):
    """What ``CORPUS=NAME[:CONFIG[:SPLIT]]`` says: files by a pattern, a folder of save_to_disk, or a hub name."""

    corpus: str
    name: str
    config: str | None = None
    split: str | None = None

    @classmethod
    def parse(cls, text: str) -> StreamSpec:
        """Read one ``--stream``; raises `ConfigError`."""
        corpus, equals, rest = text.partition("=")
        name, *further = rest.split(":")
        if not (corpus and equals and name) or len(further) > 2:
            raise ConfigError(f"--stream {text}: give CORPUS=NAME, CORPUS=NAME:CONFIG or CORPUS=NAME:CONFIG:SPLIT")
        config, split = (*(part or None for part in further), None, None)[:2]
        return cls(corpus, name, config, split)

    def __str__(self) -> str:
        parts = [self.name, self.config or "", self.split or ""]
        return f"{self.corpus}={':'.join(parts).rstrip(':')}"


@dataclass(frozen=True)
class StreamSource:
    """What ``spec`` was found to mean; ``load`` gives its `datasets.IterableDataset` at its beginning.

    ``files`` are the local files in their order with their sizes in bytes, none for a data set on the hub.
    """

    spec: StreamSpec
    load: Callable[[], Any]
    files: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def find(cls, spec: StreamSpec) -> StreamSource:
        """Look where ``spec`` points to; the hub is not asked yet.

        Raises `DataError` for local paths that are not there or cannot be read, and `ConfigError` for a configuration
        or a split of something that has none.
        """
        if Path(spec.name).is_dir():
            return _saved_folder(spec)
        if Path(spec.name).is_file() or _looks_local(spec.name):
            return _files(spec)
        return cls(spec, partial(_load_hub, spec))

    def open(self) -> Any:
        """The `datasets.IterableDataset`; raises `DataError`."""
        import datasets  # takes a second, which runs without streams need not wait for

        datasets.disable_progress_bars()
        if self.files and not any(self.files.values()):
            raise self.empty()
        try:
            return self.load()
        except CktkError:
            raise
        except StopIteration as error:  # what datasets says of JSON lines of which there is none
            raise self.empty() from error
        except Exception as error:  # datasets raises many kinds: its own, of the network, of parsers
            raise self.unreadable(error) from error

    def empty(self) -> DataError:
        """What to raise where no text is found."""
        return _empty(self.spec)

    def unreadable(self, error: Exception, data: Any = None) -> DataError:
        """What to raise where ``error`` came up in reading ``data`` (None: nobody knows how far)."""
        reason = str(error).strip().partition("\n")[0]
        return DataError(f"{self.at(data)}: cannot be read ({type(error).__name__}: {reason}); mend it or give another")

    def at(self, data: Any) -> str:
        """The stream, and the file that ``data`` has come to, if that can be known."""
        where, number = f"--stream {self.spec}", None if data is None else _shard(data.state_dict())
        if number is None or data.num_shards != len(self.files) or number >= len(self.files):
            return where
        file = list(self.files)[number]
        return where if file == self.spec.name else f"{where}: {file}"


def _empty(spec: StreamSpec) -> DataError:
    return DataError(f"--stream {spec}: it holds no text; give another")


def _shard(state: Any) -> int | None:
    """The number of the shard in the innermost state of a data set."""
    found = None
    while isinstance(state, Mapping):
        found = state.get("shard_idx", found)
        state = state.get("examples_iterable")
    return found


def _looks_local(name: str) -> bool:
    """Whether ``name`` cannot be ``owner/name`` or ``name`` on the hub; a suffix is one that has no digits."""
    suffix = re.fullmatch(r"\.[A-Za-z_]+", Path(name).suffix)
    known = Path(name).suffix in (*_BUILDERS, *_COMPRESSED)
    return name[0] in "./~" or name.count("/") > 1 or bool(suffix) or known or glob.has_magic(name)


def _saved_folder(spec: StreamSpec) -> StreamSource:
    """The split of a folder that save_to_disk wrote; one that holds a single split has no names of splits."""
    if spec.config:
        raise ConfigError(f"--stream {spec}: a folder has no configuration; give CORPUS=FOLDER::SPLIT or CORPUS=FOLDER")
    folder = Path(spec.name)
    if (folder / "dataset_dict.json").is_file():
        folder /= _split(spec, folder / "dataset_dict.json")
    elif spec.split:
        raise ConfigError(f"--stream {spec}: the folder has no several splits; leave {spec.split} out")
    if not (folder / "state.json").is_file():
        raise DataError(
            f"--stream {spec}: {folder} is a folder that datasets' save_to_disk did not write; give such a folder, or "
            "a pattern of files"
        )
    files = [str(folder / entry["filename"]) for entry in _listed(spec, folder / "state.json", "_data_files")]
    if not files:
        raise _empty(spec)
    return StreamSource(spec, partial(_load_saved, folder), _sizes(spec, files))


def _split(spec: StreamSpec, described: Path) -> str:
    """The name of the wanted split, which is among those that ``described`` lists."""
    names: list[str] = _listed(spec, described, "splits")
    name = spec.split or "train"
    if name not in names:
        raise DataError(f"--stream {spec}: no split {name!r}; {alternatives(name, names)}")
    return name


def _listed(spec: StreamSpec, file: Path, key: str) -> list[Any]:
    """The list ``key`` of a JSON file that save_to_disk wrote."""
    try:
        return list(json.loads(file.read_text(encoding="utf-8"))[key])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"--stream {spec}: {file} cannot be read ({type(error).__name__}: {error})") from error


def _files(spec: StreamSpec) -> StreamSource:
    if spec.config or spec.split:
        raise ConfigError(f"--stream {spec}: files have no configuration or split; give {spec.corpus}={spec.name}")
    files = [spec.name] if Path(spec.name).is_file() else sorted(glob.glob(spec.name))
    if not files:
        raise DataError(f"--stream {spec}: no such file")
    kinds: dict[str, str] = {}
    for file in files:
        kind = _builder(file)
        if kind is None:
            raise DataError(f"--stream {spec}: {file} is of no known kind; {_READ}")
        kinds.setdefault(kind, file)
    if len(kinds) > 1:
        raise DataError(f"--stream {spec}: {' and '.join(kinds.values())} are of different kinds; give one kind")
    return StreamSource(spec, partial(_load_files, next(iter(kinds)), files), _sizes(spec, files))


def _builder(file: str) -> str | None:
    """How `datasets` calls the format of ``file``; None for one that it does not read."""
    suffixes = [suffix for suffix in Path(file).suffixes if suffix not in _COMPRESSED]
    return _BUILDERS.get(suffixes[-1]) if suffixes and not Path(file).is_dir() else None


def _sizes(spec: StreamSpec, files: list[str]) -> dict[str, int]:
    try:
        return {file: Path(file).stat().st_size for file in files}
    except OSError as error:
        raise DataError(f"--stream {spec}: {error.filename}: {error.strerror}; restore it") from error


def _load_saved(folder: Path) -> Any:
    import datasets

    return datasets.load_from_disk(str(folder)).to_iterable_dataset()


def _load_files(builder: str, files: list[str]) -> Any:
    import datasets

    return datasets.load_dataset(builder, data_files={"train": files}, split="train", streaming=True)


def _load_hub(spec: StreamSpec) -> Any:
    import datasets

    return datasets.load_dataset(spec.name, spec.config, split=spec.split or "train", streaming=True)
