"""Two processes with uneven shares make the update of one full batch, whatever the loss is made of."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.distributed.normalisation_worker import SIZES
from tests.unit.engine import parts
from tests.unit.engine.test_normalisation import CASES, LENGTHS, expected, make

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, torch.Tensor]]:
    """What both processes did to the weights, by case and name."""
    folder = tmp_path_factory.mktemp("ranks")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.distributed.normalisation_worker", str(folder)]
    workers = [
        subprocess.Popen([*command, rank], env=environment, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        for rank in ("0", "1")
    ]
    try:
        for worker in workers:
            _, errors = worker.communicate(timeout=180)
            assert worker.returncode == 0, errors
    finally:
        for worker in workers:
            worker.kill()
    return [load_file(folder / f"rank{rank}.safetensors") for rank in (0, 1)]


@pytest.mark.distributed
@pytest.mark.parametrize("case", CASES)
def test_two_uneven_processes_make_the_update_of_the_full_batch(
    case: str, ranks: list[dict[str, torch.Tensor]]
) -> None:
    updater, criterion, config = make(case)
    gradients, loss = expected(updater, criterion, config, parts.batch(LENGTHS), SIZES)
    for found in ranks:
        assert found[f"{case}|loss"].item() == pytest.approx(loss, rel=1e-10)
        for name, gradient in gradients.items():
            torch.testing.assert_close(found[f"{case}|{name}"], gradient, rtol=1e-8, atol=1e-10, msg=name)
