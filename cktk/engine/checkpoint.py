"""Training checkpoints: folders that appear whole or not at all, and no pickle anywhere.

``checkpoint<epoch>/`` (at an epoch's end) and ``checkpoint_<epoch>_<update>/`` (within one) hold ``student/`` (Hugging
Face format: what users take away), ``trainer.safetensors`` (optimizer moments, projectors, raw weights beside an
average), ``trainer.json`` (everything else) and ``checksums.json``.
``checkpoint_last`` and ``checkpoint_best`` are links to such folders, replaced atomically.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import cktk
from cktk.errors import CheckpointError, CktkError, DataError
from cktk.utils.files import atomic_folder, read_json, sha256_file, temporary_path, write_json
from cktk.utils.log import logger
from cktk.utils.run_layout import BEST, LAST

SCHEMA = 1
SUMS = "checksums.json"
_EPOCH_END = re.compile(r"checkpoint\d+")
_NAME = re.compile(r"checkpoint\d+|checkpoint_\d+_\d+")


@dataclass
class Checkpoint:
    """A checkpoint read back: its folder, the JSON state, and the tensors of ``trainer.safetensors``."""

    folder: Path
    state: dict[str, Any]
    tensors: dict[str, Tensor]

    def section(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names start with ``prefix.``, without it."""
        return {name[len(prefix) + 1 :]: t for name, t in self.tensors.items() if name.startswith(prefix + ".")}


class CheckpointStore:
    """The checkpoints of one run directory. Only rank 0 writes."""

    def __init__(self, run: Path) -> None:
        self.run = run

    def save(
        self,
        name: str,
        save_student: Callable[[Path], None],
        tensors: Mapping[str, Tensor],
        state: Mapping[str, Any],
    ) -> Path:
        """Write the checkpoint folder ``name`` and return it; a damaged one of that name is replaced."""
        folder = self.run / name
        with atomic_folder(folder) as temporary:
            save_student(temporary / "student")
            try:
                save_file({k: t.detach().contiguous() for k, t in tensors.items()}, temporary / "trainer.safetensors")
            except SafetensorError as error:
                raise CheckpointError(
                    f"cannot write {folder}: {error}; the checkpoint before it is untouched"
                ) from error
            write_json(temporary / "trainer.json", {"schema": SCHEMA, "cktk": cktk.__version__, **state})
            files = sorted(path for path in temporary.rglob("*") if path.is_file())
            write_json(temporary / SUMS, {str(path.relative_to(temporary)): sha256_file(path) for path in files})
            if folder.exists():
                shutil.rmtree(folder)
        return folder

    def link(self, name: str, folder: Path) -> None:
        """Point ``checkpoint_last`` or ``checkpoint_best`` at ``folder``, atomically."""
        temporary = temporary_path(self.run / name)
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(folder.name)
        os.replace(temporary, self.run / name)

    def linked(self, name: str) -> Path | None:
        """The folder that a link points at."""
        link = self.run / name
        return self.run / os.readlink(link) if link.is_symlink() and link.exists() else None

    def folders(self) -> list[Path]:
        """Checkpoint folders, oldest first. One that cannot be read counts as the newest, so that it gets reported."""
        return sorted((path for path in self.run.glob("checkpoint*") if _NAME.fullmatch(path.name)), key=_age)

    def of_kind(self, epoch_ends: bool) -> list[Path]:
        """The folders at epochs' ends, or those within epochs, oldest first."""
        return [folder for folder in self.folders() if bool(_EPOCH_END.fullmatch(folder.name)) == epoch_ends]

    def newest(self) -> Checkpoint | None:
        """The newest whole checkpoint; damaged ones are reported and passed over. None where there is none at all.

        Raises `CheckpointError` if there are checkpoints and all are damaged.
        """
        folders = self.folders()
        for folder in reversed(folders):
            try:
                return read_checkpoint(folder)
            except CktkError as error:
                logger.warning("%s; trying the checkpoint before it", error)
        if folders:
            raise CheckpointError(f"{self.run}: no checkpoint is whole; start again with another --save-dir")
        return None

    def prune(self, keep_epochs: int, keep_updates: int) -> None:
        """Delete old checkpoints: the newest two and those that links name stay, and -1 keeps all of a kind."""
        folders = self.folders()
        kept = {*folders[-2:], *_newest(self.of_kind(True), keep_epochs), *_newest(self.of_kind(False), keep_updates)}
        kept |= {linked for name in (LAST, BEST) if (linked := self.linked(name))}
        for folder in folders:
            if folder not in kept:
                shutil.rmtree(folder)


def checkpoint_name(epoch: int, update: int, epoch_end: bool) -> str:
    """fairseq's names: ``checkpoint3`` ends epoch 3, ``checkpoint_3_1200`` lies within it."""
    return f"checkpoint{epoch}" if epoch_end else f"checkpoint_{epoch}_{update}"


def _age(folder: Path) -> tuple[float, bool]:
    """The update of a checkpoint, and whether it ends an epoch. (Epochs start anew with --reset-dataloader.)"""
    try:
        state = read_json(folder / "trainer.json")
        return float(state["update"]), bool(state["epoch_end"])
    except (DataError, KeyError, TypeError):
        return float("inf"), True


def _newest(folders: list[Path], number: int) -> list[Path]:
    return folders if number < 0 else folders[len(folders) - min(number, len(folders)) :]


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read and verify a checkpoint folder (or a link to one); raises `CheckpointError` naming what is damaged."""
    try:
        sums = read_json(folder / SUMS)
    except DataError as error:
        raise CheckpointError(f"{folder} is not a whole checkpoint ({error})") from error
    if not isinstance(sums, dict):
        raise CheckpointError(f"{folder / SUMS} is damaged (no list of checksums)")
    for name, expected in sums.items():
        path = folder / name
        if not path.is_file() or sha256_file(path) != expected:
            raise CheckpointError(f"{path} is missing or damaged (its checksum differs)")
    state = read_json(folder / "trainer.json")
    if state.get("schema") != SCHEMA:
        raise CheckpointError(f"{folder}: schema {state.get('schema')!r} is not the {SCHEMA} that this cktk reads")
    return Checkpoint(folder, state, load_file(folder / "trainer.safetensors"))


def optimizer_state(
    optimizer: torch.optim.Optimizer, parameters: Iterable[tuple[str, nn.Parameter]]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The optimizer's state by ``<parameter>/<key>``: its tensors, and its other values (JSON-ready)."""
    tensors, plain = {}, {}
    for name, parameter in parameters:
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"{name}/{key}"] = value
            else:
                plain[f"{name}/{key}"] = value
    return tensors, plain


_OTHER_RUN = "use --reset-optimizer, or --finetune-from-model to take nothing but the weights"


def restore_criterion(criterion: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put projectors back; raises `CheckpointError` if they are those of another criterion."""
    try:
        criterion.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(
            "the checkpoint's projectors are those of another --criterion or student; "
            "use --finetune-from-model to take nothing but the weights"
        ) from error


def restore_raw_weights(student: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put back the weights to train on, where the student folder holds their moving average."""
    weights = dict(student.named_parameters())
    with torch.no_grad():
        for name, tensor in tensors.items():
            if name not in weights:
                raise CheckpointError(f"the checkpoint holds weights {name}, which this student has not")
            weights[name].copy_(tensor)


def restore_optimizer(
    optimizer: torch.optim.Optimizer,
    parameters: Iterable[tuple[str, nn.Parameter]],
    tensors: Mapping[str, Tensor],
    plain: Mapping[str, Any],
) -> None:
    """Put back what `optimizer_state` took; raises `CheckpointError` if it names parameters that are not there."""
    known = dict(parameters)
    state: dict[int, dict[str, Any]] = {}
    order = [p for group in optimizer.param_groups for p in group["params"]]
    index = {parameter: position for position, parameter in enumerate(order)}
    for name, value in [*tensors.items(), *plain.items()]:
        owner, _, key = name.rpartition("/")
        if owner not in known or known[owner] not in index:
            raise CheckpointError(f"the optimizer state names {owner}, which this run does not train; {_OTHER_RUN}")
        state.setdefault(index[known[owner]], {})[key] = value
    # load_state_dict knows where each optimizer keeps its step counts; the groups stay those of the flags.
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
