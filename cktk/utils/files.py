"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from cktk.errors import CktkError, DataError

_TEMPORARY = re.compile(r"\..+\.(?P<process>\d+)@(?P<machine>.+)\.tmp")


def temporary_path(path: Path) -> Path:
    """Where this process writes what will become ``path``: a hidden neighbour that names process and machine."""
    return path.with_name(f".{path.name}.{os.getpid()}@{platform.node()}.tmp")


def is_temporary(path: Path) -> bool:
    """Whether ``path`` has a name of `temporary_path`: not there as far as the content of its folder goes."""
    return _TEMPORARY.fullmatch(path.name) is not None


def sweep_temporaries(folder: Path) -> None:
    """Remove the temporary files and folders that processes of this machine left in ``folder`` when they were killed.

    Those of live processes and of other machines, whose processes cannot be seen from here, stay.
    """
    for path in folder.iterdir():
        found = _TEMPORARY.fullmatch(path.name)
        if found is None or found["machine"] != platform.node() or _is_alive(int(found["process"])):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        pass
    return True


def fsync_path(path: Path) -> None:
    """Flush a file or a folder entry to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_file(path: Path, mode: str = "wb", **options: Any) -> Iterator[IO[Any]]:
    """Open ``path`` for writing; it gets its name only after everything was written and synced.

    A link is followed. A device or a pipe, which nothing may replace, is written to as it is. Raises `CktkError` naming
    the file when it is a folder, the disk is full, or its folder cannot be written.
    """
    target = path.resolve() if path.is_symlink() else path
    if target.is_dir():
        raise CktkError(f"cannot write {path}: it is a folder; give a file")
    if target.exists() and not target.is_file():
        with _told(path), open(target, mode, **options) as stream:
            yield stream
        return
    temporary = temporary_path(target)
    try:
        with _told(path):
            with open(temporary, mode, **options) as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, target)
            fsync_path(target.parent)
    finally:
        with suppress(OSError):  # on a file system gone read-only this would hide the error above
            temporary.unlink(missing_ok=True)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CktkError(f"cannot write {path}: {error.strerror or error}; nothing was kept") from error


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that is synced and renamed to ``path`` at the end, where nothing may then be.

    On any error the temporary folder is removed and ``path`` does not appear.
    """
    temporary = temporary_path(path)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for entry in sorted(temporary.rglob("*")):
            fsync_path(entry)
        fsync_path(temporary)
        os.rename(temporary, path)
        fsync_path(path.parent)
    except OSError as error:
        raise CktkError(f"cannot write {path}: {error.strerror or error}; nothing was kept") from error
    except Exception as error:
        if type(error) is Exception:  # how the tokenizers package tells that a file cannot be written
            raise CktkError(f"cannot write {path}: {error}; nothing was kept") from error
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented UTF-8 JSON, atomically."""
    with atomic_file(path, "w", encoding="utf-8") as stream:
        json.dump(value, stream, ensure_ascii=False, indent=2)
        stream.write("\n")


def read_json(path: Path) -> Any:
    """Read a JSON file; a missing or malformed one raises `DataError` with its name."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error})") from error


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
