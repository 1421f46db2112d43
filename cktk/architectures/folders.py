"""Which folder a path to a model means."""

from __future__ import annotations

import re
from pathlib import Path

from safetensors import safe_open

from cktk.errors import CheckpointError
from cktk.utils.files import read_json
from cktk.utils.run_layout import BEST, LAST, STUDENT

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def model_folder(path: str | Path, *files: str) -> Path | str:
    """The folder with one of ``files`` (default: a model's ``config.json``) that ``path`` means.

    That is ``path`` itself, the student of a checkpoint, or of a run directory the best (else the last) student. A hub
    name is returned as it is. Raises `CheckpointError` where there is no such folder or file.
    """
    wanted = files or ("config.json",)
    folder = Path(path)
    if folder.is_dir():
        for candidate in (folder, folder / STUDENT, folder / BEST / STUDENT, folder / LAST / STUDENT):
            if any((candidate / file).is_file() for file in wanted):
                return candidate
        raise CheckpointError(
            f"{folder}: no {wanted[0]} in this folder: give the folder of a Hugging Face model, a checkpoint, or the "
            "run directory of cktk-train"
        )
    if folder.exists():
        raise CheckpointError(f"{folder}: is a file: give the folder of a Hugging Face model")
    # What begins with a folder of this machine was meant as a path, not as a name on the hub.
    if not _HUB_NAME.fullmatch(str(path)) or str(path).startswith(".") or Path(folder.parts[0]).is_dir():
        raise CheckpointError(f"{folder}: no such folder; give a model folder or a name on the Hugging Face hub")
    return str(path)


def stored_names(source: Path | str) -> set[str] | None:
    """Names of the tensors in the safetensors files of the folder ``source``; None where there are none to look at."""
    if isinstance(source, str):
        return None
    if (index := source / "model.safetensors.index.json").is_file():
        return set(read_json(index)["weight_map"])
    if not (single := source / "model.safetensors").is_file():
        return None
    with safe_open(single, framework="numpy") as file:
        return set(file.keys())
