from __future__ import annotations

from pathlib import Path

import pytest

from cktk.data.mixtures.corpora import Corpora
from cktk.errors import ConfigError
from tests.unit.data import folders

OTHER = {"fingerprint": "a" * 64, "vocab_size": 100, "pad": 1, "bos": 0, "eos": 2, "unk": 3}


def make(folder: Path, **changes) -> Path:
    folder.mkdir(parents=True)
    folders.make(folder, [[[5, 6], [7]]], **changes)
    return folder


def test_names_are_the_shortest_ends_of_the_paths_that_differ(tmp_path):
    paths = [make(tmp_path / name) for name in ("en/bin", "fr/bin", "de")]
    corpora = Corpora.open([str(path) for path in paths])
    assert list(corpora) == ["en/bin", "fr/bin", "de"] and len(corpora) == 3
    assert corpora.first.path == paths[0] and corpora.path == ",".join(map(str, paths))
    assert corpora.pad == 1 and corpora.vocab_size == 100 and corpora.fingerprint == "f" * 64
    assert list(corpora.having("train")) == list(corpora) and corpora.splits == ["train"] and not corpora.having("test")


def test_a_single_folder_can_be_asked_for(tmp_path):
    one, other = make(tmp_path / "en"), make(tmp_path / "fr")
    assert Corpora.open([one]).single("--task glue").path == one
    assert list(Corpora.of(Corpora.open([one]).first)) == ["en"]
    with pytest.raises(ConfigError, match="--task glue takes one data folder, not 2"):
        Corpora.open([one, other]).single("--task glue")


def test_what_does_not_go_together_is_refused(tmp_path):
    one, other = make(tmp_path / "en"), make(tmp_path / "fr", tokenizer=OTHER)
    with pytest.raises(ConfigError, match=r"en and .*fr have different tokenizers; preprocess .*en/tokenizer"):
        Corpora.open([one, other])
    with pytest.raises(ConfigError, match="en is given twice"):
        Corpora.open([one, tmp_path / "fr" / ".." / "en"])
    with pytest.raises(ConfigError, match="no data folder"):
        Corpora.open([])


def test_damage_in_any_folder_is_found(tmp_path):
    from cktk.errors import DataError

    one, other = make(tmp_path / "en"), make(tmp_path / "fr")
    corpora = Corpora.open([one, other])
    corpora.verify()
    file = other / "train-00000.source.bin"
    file.write_bytes(b"\1\0" * (file.stat().st_size // 2))
    with pytest.raises(DataError, match="fr/train-00000"):
        corpora.verify()
