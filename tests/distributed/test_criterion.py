from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.distributed.criterion_worker import TiedStep, batches
from tests.unit.criteria.states import PAIRS, naive_cka, states, with_gradients

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

    student, teacher = states({"encoder": 32, "decoder": 32})
    student = with_gradients(student)
    losses = [naive_cka(student.hidden[p.side, p.student], teacher.hidden[p.side, p.teacher]) for p in PAIRS]
    torch.stack(losses).sum().backward()
    for found in ranks:
        assert found["cka"].item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-10)
    for (side, layer), state in student.hidden.items():
        pooled = torch.cat([found[f"{side}.{layer}"] for found in ranks])
        assert (pooled - state.grad).norm() <= 1e-10 * state.grad.norm()

    step = TiedStep()
    for rows, labels in batches():
        logits = step.layer(step.embed(rows)).tanh() @ step.embed.weight.T
        (torch.nn.functional.cross_entropy(logits, labels, reduction="sum") / 2).backward()  # DDP averages two ranks
    for name, parameter in step.named_parameters():
        for found in ranks:
            torch.testing.assert_close(found[name], parameter.grad, rtol=1e-10, atol=1e-12)
