from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch

from cktk.engine import checkpoint
from cktk.engine.checkpoint import CheckpointStore, optimizer_state, read_checkpoint, restore_optimizer
from cktk.errors import CheckpointError, CktkError
from cktk.utils.run_layout import BEST, LAST

#: Epochs went 1, 2, 3 and, after --reset-dataloader, 1 and 2 again.
UPDATES = {"checkpoint_1_10": 10, "checkpoint1": 20, "checkpoint_2_30": 30, "checkpoint2": 40, "checkpoint_3_50": 50}
UPDATES |= {"checkpoint3": 50, "checkpoint_1_70": 70, "checkpoint_2_90": 90}


def save(store: CheckpointStore, name: str, value: float = 1.0) -> Path:
    def save_student(folder: Path) -> None:
        folder.mkdir()
        (folder / "config.json").write_text("{}")

    state = {"update": UPDATES[name], "epoch_end": "_" not in name}
    return store.save(name, save_student, {"criterion.w": torch.full((3,), value)}, state)


def names(store: CheckpointStore) -> list[str]:
    return [folder.name for folder in store.folders()]


def test_what_was_saved_is_read(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.link(LAST, save(store, "checkpoint_1_10", 2.5))
    found = read_checkpoint(tmp_path / LAST)
    assert found.state["update"] == 10
    assert found.section("criterion")["w"].tolist() == [2.5] * 3
    assert found.section("optimizer") == {}


def test_order_is_that_of_the_run(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for name in reversed(UPDATES):
        save(store, name)
    (tmp_path / "checkpoints-of-mine").mkdir()
    assert names(store) == list(UPDATES)


@pytest.mark.parametrize("file", ["trainer.safetensors", "trainer.json", "student/config.json", "checksums.json"])
@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(file: str, damage: str, tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    save(store, "checkpoint1", 1.0)
    path = save(store, "checkpoint2", 2.0) / file
    path.unlink() if damage == "missing" else path.write_bytes(path.read_bytes()[:-2])
    newest = store.newest()
    assert newest is not None
    assert newest.folder.name == "checkpoint1"
    (tmp_path / "checkpoint1" / "checksums.json").unlink()
    with pytest.raises(CheckpointError, match="no checkpoint is whole"):
        store.newest()


def test_no_checkpoint_is_not_an_error(tmp_path: Path) -> None:
    assert CheckpointStore(tmp_path).newest() is None


def test_pruning_keeps_the_newest_and_the_linked(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for name in ("checkpoint_1_10", "checkpoint1", "checkpoint_2_30", "checkpoint2", "checkpoint_3_50", "checkpoint3"):
        save(store, name)
    store.link(BEST, tmp_path / "checkpoint_1_10")
    store.link(LAST, tmp_path / "checkpoint3")
    store.prune(keep_epochs=-1, keep_updates=0)
    assert names(store) == ["checkpoint_1_10", "checkpoint1", "checkpoint2", "checkpoint_3_50", "checkpoint3"]
    store.prune(keep_epochs=1, keep_updates=0)
    assert names(store) == ["checkpoint_1_10", "checkpoint_3_50", "checkpoint3"]


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CheckpointStore(tmp_path)
    store.link(LAST, save(store, "checkpoint1"))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(CktkError, match=r"checkpoint2.*No space left"):
        save(store, "checkpoint2")
    assert sorted(os.listdir(tmp_path)) == ["checkpoint1", LAST]
    assert store.newest() is not None


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_a_restored_optimizer_goes_on_the_same(kind: type[torch.optim.Optimizer]) -> None:
    def model() -> torch.nn.Linear:
        torch.manual_seed(1)
        return torch.nn.Linear(4, 3)

    def train(module: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
        for _ in range(steps):
            module(torch.ones(2, 4)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()

    options = {"momentum": 0.9} if kind is torch.optim.SGD else {"fused": True}
    whole, first, second = model(), model(), model()
    train(whole, kind(whole.parameters(), lr=0.1, **options), 5)
    optimizer = kind(first.parameters(), lr=0.1, **options)
    train(first, optimizer, 2)
    tensors, plain = optimizer_state(optimizer, first.named_parameters())
    second.load_state_dict(first.state_dict())
    other = kind(second.parameters(), lr=0.1, **options)
    restore_optimizer(other, second.named_parameters(), tensors, plain)
    train(second, other, 3)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), second.parameters(), strict=True))
    with pytest.raises(CheckpointError, match="--reset-optimizer"):
        restore_optimizer(other, [("bias", second.bias)], tensors, plain)
