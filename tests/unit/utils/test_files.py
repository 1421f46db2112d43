"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from cktk.errors import CktkError, DataError
from cktk.utils import files
from cktk.utils.files import (
    atomic_file,
    atomic_folder,
    is_temporary,
    read_json,
    sha256_file,
    sweep_temporaries,
    temporary_path,
    write_json,
)


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_file_gets_its_name_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "out.bin"
    path.write_bytes(b"old")
    with atomic_file(path) as stream:
        stream.write(b"new")
        stream.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new" and names(tmp_path) == ["out.bin"]


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt()])
def test_an_error_inside_leaves_the_old_file_and_no_trace(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "out.bin"
    path.write_bytes(b"old")
    with pytest.raises(type(error)), atomic_file(path) as stream:
        stream.write(b"half")
        raise error
    assert path.read_bytes() == b"old" and names(tmp_path) == ["out.bin"]


def test_text_mode_takes_an_encoding(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "out.txt", "w", encoding="utf-8") as stream:
        stream.write("déjà")
    assert (tmp_path / "out.txt").read_bytes() == "déjà".encode()


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    path = tmp_path / "out.bin"
    path.write_bytes(b"old")
    monkeypatch.setattr(files.os, call, full_disk)
    with pytest.raises(CktkError, match=r"cannot write .*out\.bin: No space left on device; nothing was kept"):
        with atomic_file(path) as stream:
            stream.write(b"new")
    assert path.read_bytes() == b"old" and names(tmp_path) == ["out.bin"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_really_full_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "open", lambda path, mode: open("/dev/full", mode), raising=False)
    with pytest.raises(CktkError, match="No space left on device"), atomic_file(tmp_path / "out.bin") as stream:
        stream.write(b"x" * 100_000)
    assert names(tmp_path) == []


def test_a_missing_or_closed_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(CktkError, match=r"cannot write .*gone/out\.bin: No such file"):
        with atomic_file(tmp_path / "gone" / "out.bin") as stream:
            stream.write(b"x")


def test_a_folder_gets_its_name_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "model"
    with atomic_folder(target) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "a.txt").write_text("a")
        assert not target.exists()
    assert (target / "sub" / "a.txt").read_text() == "a" and names(tmp_path) == ["model"]


def test_a_folder_with_an_error_inside_never_appears(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mine"), atomic_folder(tmp_path / "model") as folder:
        (folder / "a.txt").write_text("a")
        raise ValueError("mine")
    assert names(tmp_path) == []


def test_a_folder_on_a_full_disk_never_appears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.os, "fsync", full_disk)
    with pytest.raises(CktkError, match="model: No space left on device; nothing was kept"):
        with atomic_folder(tmp_path / "model") as folder:
            (folder / "a.txt").write_text("a")
    assert names(tmp_path) == []


def test_an_existing_folder_is_not_replaced(tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "kept.txt").write_text("kept")
    with pytest.raises(CktkError, match="cannot write .*model"), atomic_folder(target) as folder:
        (folder / "new.txt").write_text("new")
    assert names(tmp_path) == ["model"] and names(target) == ["kept.txt"]


def test_json_round_trip(tmp_path: Path) -> None:
    value = {"a": [1, 2.5, None], "é": {"b": True}}
    write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json") == value
    assert "é" in (tmp_path / "x.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe\x00", b'{"a": 1} x'])
def test_damaged_json_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(DataError, match=r"x\.json: cannot be read as JSON"):
        read_json(tmp_path / "x.json")


def test_missing_json_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"x\.json: no such file"):
        read_json(tmp_path / "x.json")


def test_a_failed_json_write_keeps_the_old_one(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "x.json", {"a": object()})
    assert read_json(tmp_path / "x.json") == {"a": 1} and names(tmp_path) == ["x.json"]


@pytest.mark.parametrize("size", [0, 1, 1 << 20, (1 << 20) + 7])
def test_checksums_agree_with_hashlib(tmp_path: Path, size: int) -> None:
    content = os.urandom(size)
    (tmp_path / "x").write_bytes(content)
    assert sha256_file(tmp_path / "x") == hashlib.sha256(content).hexdigest()


def test_only_what_is_being_written_is_temporary(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "model") as folder, atomic_file(tmp_path / "a.b.bin"):
        assert is_temporary(folder)
        assert len(names(tmp_path)) == 2 and all(map(is_temporary, tmp_path.iterdir()))
    assert not any(map(is_temporary, tmp_path.iterdir()))
    assert not any(is_temporary(tmp_path / name) for name in (".notes.tmp", "x.12.tmp", "x.12@here.tmp", ".x.12@here"))


def test_what_dead_processes_left_is_swept(tmp_path: Path) -> None:
    script = (
        "import os, sys\nfrom pathlib import Path\nfrom cktk.utils.files import atomic_file, atomic_folder\n"
        f"folder = Path({str(tmp_path)!r})\n"
        "with atomic_folder(folder / 'model') as inner, atomic_file(folder / 'file'):\n"
        "    (inner / 'half').write_text('half')\n"
        "    os.kill(os.getpid(), 9)"
    )
    root = Path(__file__).resolve().parents[3]
    assert subprocess.run([sys.executable, "-c", script], cwd=root, check=False).returncode == -9
    left = set(names(tmp_path))
    assert len(left) == 2
    dead = next(iter(left)).rpartition("@")[0].rpartition(".")[2]
    mine = temporary_path(tmp_path / "mine")
    kept = {mine.name, f".other.{dead}@another.machine.tmp", f".parent.{os.getppid()}@{platform.node()}.tmp", "file"}
    for name in kept:
        (tmp_path / name).write_text("kept")
    (tmp_path / f".link.{dead}@{platform.node()}.tmp").symlink_to(tmp_path / "file")
    sweep_temporaries(tmp_path)
    assert set(names(tmp_path)) == kept


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    with atomic_file(tmp_path / "link", "w") as stream:
        stream.write("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"


def test_a_pipe_is_written_to_and_stays(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with atomic_file(pipe, "w") as stream:
        stream.write("through")
    assert os.read(reader, 100) == b"through"
    os.close(reader)
    assert pipe.is_fifo()


def test_a_folder_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(CktkError, match="is a folder"), atomic_file(tmp_path, "w"):
        raise AssertionError("reached")
