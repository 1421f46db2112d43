"""The Debian example's data: from apt's index files to splits that never change."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[3] / "examples" / "debian_translation"

ENGLISH = """\
Package: b
Description-md5: bbb
Description-en: second tool
 One paragraph over
   two lines.
 .
 Another one.

Package: a
Description-md5: aaa
Description-en: first  tool
 Shared text.

Package: c
Description-md5: ccc
Description-en: third tool
 Shared text.
 .
 Only English has this.
"""
FRENCH = """\
Package: b
Description-md5: bbb
Description-fr: second outil
 Un paragraphe\u00a0sur deux
 lignes.
 .
 Un autre.

Package: a
Description-md5: aaa
Description-fr: premier outil\u00a0!
 Texte commun.

Package: c
Description-md5: ccc
Description-fr: troisième outil
 Texte.
"""


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", FOLDER / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def fetch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The module, with a held-out list of its own: valid holds "second tool", test "Another one."."""
    module = load("fetch")
    held_out = tmp_path / "held_out.txt"
    held_out.write_text(
        f"valid {module.debian_index.digest('second tool')}\ntest {module.debian_index.digest('Another one.')}\n"
    )
    monkeypatch.setattr(module, "HELD_OUT", held_out)
    return module


def test_paragraphs_are_aligned_by_checksum_and_position(fetch: Any) -> None:
    pairs = fetch.paragraph_pairs(
        fetch.debian_index.descriptions(ENGLISH, "en"), fetch.debian_index.descriptions(FRENCH, "fr")
    )
    assert list(pairs) == [
        ("first  tool", "premier outil\u00a0!"),
        ("Shared text.", "Texte commun."),
        ("second tool", "second outil"),
        ("One paragraph over two lines.", "Un paragraphe sur deux lignes."),
        ("Another one.", "Un autre."),
    ]


def test_long_empty_and_repeated_paragraphs_are_left_out(fetch: Any) -> None:
    english = {"1": "ok\n " + "w " * 100, "2": "ok\n " + "w " * 101, "3": "ok\n same words", "4": " \n filled"}
    french = {"1": "bien\n a", "2": "encore\n b", "3": "bien\n c", "4": "rien\n "}
    pairs = list(fetch.paragraph_pairs(english, french))
    assert [target for _, target in pairs] == ["bien", "a", "c"]


def test_held_out_paragraphs_never_reach_train(fetch: Any) -> None:
    splits = fetch.split_held_out(
        fetch.paragraph_pairs(
            fetch.debian_index.descriptions(ENGLISH, "en"), fetch.debian_index.descriptions(FRENCH, "fr")
        )
    )
    assert splits["valid"] == [("second tool", "second outil")]
    assert splits["test"] == [("Another one.", "Un autre.")]
    assert len(splits["train"]) == 3


def test_the_committed_list_names_each_paragraph_once() -> None:
    rows = [line.split() for line in (FOLDER / "held_out.txt").read_text().splitlines()]
    assert [sum(split == name for split, _ in rows) for name in ("valid", "test")] == [1438, 1489]
    assert len({digest for _, digest in rows}) == len(rows)


def test_the_hash_split_is_stable_and_about_three_percent(fetch: Any) -> None:
    pairs = [(f"sentence {number}", "phrase") for number in range(5000)]
    splits = fetch.split_by_hash(pairs)
    assert sorted(pair for split in splits.values() for pair in split) == sorted(pairs)
    assert 100 < len(splits["valid"]) < 200 and 100 < len(splits["test"]) < 200
    assert set(fetch.split_by_hash(pairs[::-1])["test"]) == set(splits["test"])


def test_six_files_are_written_once(fetch: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(
        fetch.debian_index,
        "fetch_descriptions",
        lambda _: (fetch.debian_index.descriptions(ENGLISH, "en"), fetch.debian_index.descriptions(FRENCH, "fr")),
    )
    assert fetch.main(["--dest", str(tmp_path / "data")]) == 0
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == sorted(
        f"{split}.{language}" for split in ("train", "valid", "test") for language in ("en", "fr")
    )
    assert (tmp_path / "data" / "test.fr").read_text(encoding="utf-8") == "Un autre.\n"
    monkeypatch.setattr(fetch.debian_index, "fetch_descriptions", lambda _: pytest.fail("fetched again"))
    assert fetch.main(["--dest", str(tmp_path / "data")]) == 0


def test_bookworm_is_preferred_to_a_larger_index(fetch: Any, tmp_path: Path) -> None:
    for prefix, size in (("x_debian_dists_bookworm", 10), ("y_ubuntu_dists_noble", 99), ("z_debian_dists_sid", 500)):
        (tmp_path / f"{prefix}_main_i18n_Translation-fr.lz4").write_bytes(b"x" * size)
        if "sid" not in prefix:
            (tmp_path / f"{prefix}_main_i18n_Translation-en.lz4").write_bytes(b"x")
    assert fetch.debian_index._best_index(tmp_path).name.startswith("x_debian")
    (tmp_path / "x_debian_dists_bookworm_main_i18n_Translation-en.lz4").unlink()
    assert fetch.debian_index._best_index(tmp_path).name.startswith("y_ubuntu")
    assert fetch.debian_index._best_index(tmp_path / "nowhere") is None


def test_without_apt_the_hub_is_asked_and_without_both_one_line_says_so(
    fetch: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"translation": {"en": f"line {number}", "fr": "ligne"}} for number in range(200)]
    monkeypatch.setattr(fetch.debian_index.shutil, "which", lambda _: None)
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: rows)
    assert fetch.main(["--dest", str(tmp_path / "books")]) == 0
    assert "no apt-get" in capsys.readouterr().err

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr("datasets.load_dataset", unreachable)
    assert fetch.main(["--dest", str(tmp_path / "none")]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "no apt-get" in error and "no route" in error and "your own" in error
    assert list((tmp_path / "none").iterdir()) == []


def test_an_apt_without_network_is_quoted(fetch: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(fetch.debian_index.shutil, "which", lambda _: "/usr/bin/apt-get")
    said = subprocess.CompletedProcess([], 100, stdout="", stderr="W: Failed to fetch http://mirror\nE: more\n")
    monkeypatch.setattr(fetch.debian_index.subprocess, "run", lambda *_, **__: said)
    with pytest.raises(fetch.DataError, match="Failed to fetch http://mirror"):
        fetch.debian_index.fetch_descriptions(tmp_path)
