from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.distributed.criterion_worker import TiedStep, batches, losses, micro_batches, running
from tests.unit.criteria.pooling import pooled

ROOT = Path(__file__).parents[2]


@pytest.mark.distributed
def test_two_processes_equal_one(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.distributed.criterion_worker", str(tmp_path)]
    workers = [
        subprocess.Popen([*command, rank], env=environment, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        for rank in ("0", "1")
    ]
    for worker in workers:
        _, errors = worker.communicate(timeout=120)
        assert worker.returncode == 0, errors
    ranks = [load_file(tmp_path / f"rank{rank}.safetensors") for rank in (0, 1)]

    for name, loss in losses().items():
        report, gradients = pooled(loss, micro_batches(0))
        for found in ranks:
            assert found[name].item() == pytest.approx(report[loss.name], rel=1e-10)
        for (side, layer), gradient in gradients.items():
            both = torch.cat([found[f"{name}.{side}.{layer}"] for found in ranks])
            assert (both - gradient).norm() <= 1e-10 * gradient.norm()
    for name, tensor in running([micro_batches(seed) for seed in (0, 1)], lambda one: one).items():
        both = [found[f"running.{name}"] for found in ranks]
        for found in both if name.startswith("averages") else [torch.cat(both)]:
            torch.testing.assert_close(found, tensor, rtol=1e-10, atol=1e-12)

    step = TiedStep()
    for rows, labels in batches():
        logits = step.layer(step.embed(rows)).tanh() @ step.embed.weight.T
        (torch.nn.functional.cross_entropy(logits, labels, reduction="sum") / 2).backward()  # DDP averages two ranks
    for name, parameter in step.named_parameters():
        for found in ranks:
            torch.testing.assert_close(found[name], parameter.grad, rtol=1e-10, atol=1e-12)
