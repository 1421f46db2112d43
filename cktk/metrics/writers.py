"""Where figures go: a JSONL file that a resumed run continues byte for byte, and TensorBoard."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from cktk.errors import CktkError


class Writer(Protocol):
    """Takes the figures, or words, of one moment: ``group`` is train, valid, stage or speed."""

    def write(self, group: str, update: int, values: Mapping[str, float | str]) -> None: ...

    def close(self) -> None: ...


class JsonlWriter:
    """One JSON object a line: ``{"group": "train", "update": 100, "loss": ...}``.

    The file is cut back to ``keep_bytes`` at opening (None: goes on at its end), so that a resumed run repeats no line.
    Times and speeds belong in a file of their own (group "speed"): this one is the same for an interrupted and an
    uninterrupted run.
    """

    def __init__(self, path: Path, keep_bytes: int | None = None) -> None:
        path.touch()
        self._file = open(path, "r+b")
        size = self._file.seek(0, 2)
        if keep_bytes is not None and keep_bytes < size:
            self._file.truncate(keep_bytes)
            self._file.seek(keep_bytes)

    def write(self, group: str, update: int, values: Mapping[str, float | str]) -> None:
        record = {"group": group, "update": update, **values}
        try:
            self._file.write(json.dumps(record).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise CktkError(
                f"cannot write {self._file.name}: {error.strerror}; the last checkpoint is whole"
            ) from error

    def position(self) -> int:
        """Bytes written so far; a checkpoint keeps this number."""
        return self._file.tell()

    def close(self) -> None:
        self._file.close()


class TensorBoardWriter:
    """Scalars and texts as ``group/name``; steps after ``purge_step`` of an earlier, interrupted run are hidden."""

    def __init__(self, folder: Path, purge_step: int | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter  # 1 s of import that a run without it should not pay

        self._writer = SummaryWriter(str(folder), purge_step=purge_step)

    def write(self, group: str, update: int, values: Mapping[str, float | str]) -> None:
        for name, value in values.items():
            add = self._writer.add_text if isinstance(value, str) else self._writer.add_scalar
            add(f"{group}/{name}", value, update)

    def close(self) -> None:
        self._writer.close()
