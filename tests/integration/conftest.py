from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration import toy


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.make_data(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="session")
def teacher(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.make_teacher(tmp_path_factory.mktemp("models") / "teacher", data)
