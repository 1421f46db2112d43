"""Lines of text files. Only ``\\n`` ends a line: U+2028, form feeds and the like stay inside of it."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from cktk.errors import DataError

_BOM = b"\xef\xbb\xbf"
_BLOCK = 1 << 20


@contextmanager
def open_bytes(path: Path) -> Iterator[IO[bytes]]:
    """Open ``path``, unzipped if its name ends in ``.gz``; what goes wrong while reading is a `DataError` naming it."""
    try:
        with open(path, "rb") as raw:
            if path.suffix == ".gz":
                with gzip.GzipFile(fileobj=raw) as unzipped, io.BufferedReader(unzipped, _BLOCK) as stream:
                    yield stream
            else:
                yield raw
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: damaged gzip file ({error}); fetch or compress it again") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error


def read_lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file without their ends (``\\n`` or ``\\r\\n``) and without a byte order mark.

    Raises `DataError` naming file and line for bytes that are not UTF-8.
    """
    with open_bytes(path) as stream:
        yield from decode_lines(stream, str(path))


def decode_lines(stream: Iterable[bytes], name: str) -> Iterator[str]:
    """The same for an open binary stream, which messages call ``name``."""
    for number, raw in enumerate(stream, 1):
        if number == 1:
            raw = raw.removeprefix(_BOM)
        try:
            line = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(
                f"{name}:{number}: not valid UTF-8 (byte {raw[error.start]:#04x} at column {error.start + 1}); "
                "convert the file to UTF-8, or mend the line"
            ) from error
        yield line.removesuffix("\n").removesuffix("\r")


def count_lines(path: Path) -> int:
    """How many lines `read_lines` gives, without decoding them."""
    lines, last = 0, b"\n"
    with open_bytes(path) as stream:
        while block := stream.read(_BLOCK):
            lines += block.count(b"\n")
            last = block[-1:]
    return lines + (last != b"\n")
