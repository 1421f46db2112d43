"""The data folders of a run: one, or several that share a tokenizer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from cktk.data.shards import DataFolder
from cktk.errors import ConfigError


class Corpora:
    """Data folders by name, in the order given; what they share can be asked of all at once.

    Raises `ConfigError` for none, and for folders with different tokenizers.
    """

    def __init__(self, folders: Mapping[str, DataFolder]) -> None:
        if not folders:
            raise ConfigError("DATA: no data folder is given; name one that cktk-preprocess wrote")
        self.folders = dict(folders)
        self.first = next(iter(self.folders.values()))
        for folder in self.folders.values():
            if folder.fingerprint != self.first.fingerprint:
                raise ConfigError(
                    f"{self.first.path} and {folder.path} have different tokenizers; preprocess one of them again "
                    f"with --tokenizer and the other's folder {self.first.tokenizer_path}"
                )
        self.fingerprint = self.first.fingerprint
        self.tokenizer_path = self.first.tokenizer_path
        self.vocab_size = self.first.vocab_size
        self.pad, self.bos, self.eos, self.unk = self.first.pad, self.first.bos, self.first.eos, self.first.unk

    @classmethod
    def open(cls, paths: Sequence[Path | str]) -> Corpora:
        """The folders ``paths``, named by their base names, or by more of their paths where these are alike."""
        found = [Path(path) for path in paths]
        for number, path in enumerate(found):
            if path.resolve() in (other.resolve() for other in found[:number]):
                raise ConfigError(f"DATA: {path} is given twice; name each data folder once")
        return cls({name: DataFolder(path) for name, path in zip(_names(found), found, strict=True)})

    @classmethod
    def of(cls, folder: DataFolder) -> Corpora:
        """``folder`` alone."""
        return cls({_names([folder.path])[0]: folder})

    @property
    def path(self) -> str:
        """All paths, as the command line takes them."""
        return ",".join(str(folder.path) for folder in self.folders.values())

    @property
    def splits(self) -> list[str]:
        """Names of the splits that any of the folders has."""
        return list(dict.fromkeys(split for folder in self.folders.values() for split in folder.splits))

    def having(self, split: str) -> dict[str, DataFolder]:
        """The folders that have ``split``."""
        return {name: folder for name, folder in self.folders.items() if split in folder.splits}

    def single(self, what: str) -> DataFolder:
        """The only folder; raises `ConfigError` if there are several, which ``what`` cannot do with."""
        if len(self.folders) > 1:
            raise ConfigError(f"{what} takes one data folder, not {len(self.folders)} ({self.path})")
        return self.first

    def verify(self) -> None:
        """See `DataFolder.verify`, for each folder."""
        for folder in self.folders.values():
            folder.verify()

    def __iter__(self) -> Iterator[str]:
        return iter(self.folders)

    def __len__(self) -> int:
        return len(self.folders)


def _names(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of ``paths`` that tell each from all others (``en/bin`` and ``fr/bin``)."""
    parts = [path.resolve().parts for path in paths]
    names = []
    for own in parts:
        others = [other for other in parts if other != own]
        depth = next(
            (n for n in range(1, len(own) + 1) if all(other[-n:] != own[-n:] for other in others)),
            len(own),
        )
        names.append("/".join(own[-depth:]))
    return names
