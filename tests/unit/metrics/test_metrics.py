from __future__ import annotations

import json
from pathlib import Path

from cktk.metrics.meters import Meters
from cktk.metrics.writers import JsonlWriter, TensorBoardWriter


def test_averages_survive_json() -> None:
    meters = Meters()
    meters.add("ce", 0.1, 1)
    meters.add("ce", 0.7, 3)
    meters.add("empty", 0.0, 0)
    again = Meters()
    again.load_state_dict(json.loads(json.dumps(meters.state_dict())))
    for one in (meters, again):
        one.add("ce", 1 / 3, 1)
    assert again.averages() == meters.averages()
    assert meters.averages() == {"ce": (0.1 + 0.7 + 1 / 3) / 5, "empty": 0.0}
    meters.reset()
    assert meters.averages() == {}


def test_a_log_is_cut_back_to_where_the_checkpoint_stood(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = JsonlWriter(path, keep_bytes=0)
    log.write("train", 1, {"loss": 2.5})
    position = log.position()
    log.write("train", 2, {"loss": 2.0})
    log.close()
    again = JsonlWriter(path, keep_bytes=position)
    again.write("train", 2, {"loss": 1.5})
    again.close()
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert records == [{"group": "train", "update": n, "loss": x} for n, x in ((1, 2.5), (2, 1.5))]
    JsonlWriter(path).close()
    assert len(path.read_text().splitlines()) == 2
    JsonlWriter(path, keep_bytes=10**6).close()
    assert len(path.read_text().splitlines()) == 2


def test_tensorboard_writes_scalars(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for purge, updates in ((None, (1, 2, 3)), (3, (3,))):
        writer = TensorBoardWriter(tmp_path, purge_step=purge)
        for update in updates:
            writer.write("train", update, {"loss": update + (10 if purge else 0)})
        writer.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(1, 1.0), (2, 2.0), (3, 13.0)]
