"""Plug-ins come in by entry point or by --user-dir, and a broken one is never passed over."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cktk.errors import ConfigError
from cktk.plugins import load_plugins
from cktk.registry import CRITERIA

PLUGIN = """
from dataclasses import dataclass
from cktk.config.options import option
from cktk.registry import CRITERIA

@dataclass(frozen=True)
class MineConfig:
    \"\"\"My criterion.\"\"\"

    strength: float = option(1.0, help="how strong")

@CRITERIA.register("{name}", MineConfig)
def mine(config, matching):
    return None
"""


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo what a plug-in adds, so that tests do not see one another's."""
    monkeypatch.setattr(CRITERIA, "_entries", dict(CRITERIA._entries))
    monkeypatch.setattr(sys, "modules", dict(sys.modules))


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    """A distribution in ``folder`` with one entry point, as pip would lay it down."""
    (folder / "third_party.py").write_text(source, encoding="utf-8")
    info = folder / "third_party-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: third-party\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[cktk.plugins]\nthird = third_party\n")
    monkeypatch.syspath_prepend(str(folder))


def test_a_file_given_as_user_dir_registers(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(PLUGIN.format(name="mine_file"))
    load_plugins(str(tmp_path / "mine.py"))
    assert "mine_file" in CRITERIA.names()
    assert CRITERIA.config("mine_file").__name__ == "MineConfig"


def test_a_folder_given_as_user_dir_registers_once_and_may_import_its_own_modules(tmp_path: Path) -> None:
    folder = tmp_path / "my_plugins"
    folder.mkdir()
    (folder / "__init__.py").write_text("from . import inner\n")
    (folder / "inner.py").write_text(PLUGIN.format(name="mine_folder"))
    load_plugins(str(folder))
    load_plugins(str(folder))
    assert "mine_folder" in CRITERIA.names()


def test_entry_points_are_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, PLUGIN.format(name="mine_entry"))
    load_plugins(None)
    assert "mine_entry" in CRITERIA.names()


def test_a_broken_entry_point_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, "raise RuntimeError('out of tune')")
    with pytest.raises(ConfigError, match=r"plug-in third \(third_party\) cannot be loaded: RuntimeError: out of tune"):
        load_plugins(None)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("import no_such_module_here", "ModuleNotFoundError"),
        ("def broken(:\n", "SyntaxError"),
        ("1 / 0", "ZeroDivision"),
        ("import sys; sys.exit(3)", "SystemExit"),
    ],
)
def test_a_broken_user_dir_raises_every_time(tmp_path: Path, source: str, words: str) -> None:
    (tmp_path / "bad.py").write_text(source)
    for _ in range(2):
        with pytest.raises(ConfigError, match=f"bad.py cannot be loaded: {words}"):
            load_plugins(str(tmp_path / "bad.py"))


def test_a_taken_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "clash.py").write_text(PLUGIN.format(name="cka_kd"))
    with pytest.raises(ConfigError, match="--criterion cka_kd is registered twice"):
        load_plugins(str(tmp_path / "clash.py"))


def test_a_user_dir_that_holds_nothing_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(ConfigError, match="give a Python file, or a folder with an __init__.py"):
            load_plugins(str(path))


def test_two_files_of_one_name_are_two_plug_ins(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.py").write_text(PLUGIN.format(name=f"mine_in_{folder}"))
        load_plugins(str(tmp_path / folder / "mine.py"))
    assert {"mine_in_a", "mine_in_b"} <= set(CRITERIA.names())


def test_a_command_line_can_choose_a_plug_in(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(PLUGIN.format(name="mine_cli"))
    script = (
        "import sys\n"
        "from cktk.config.command import Command, Component\n"
        "from cktk.plugins import load_plugins\n"
        "from cktk.registry import CRITERIA\n"
        "command = Command('p', 'd', [], [Component('criterion', CRITERIA, None, 'loss')], load_plugins)\n"
        "settings = command.parse(sys.argv[1:])\n"
        "print(settings.component('criterion')[1].strength)\n"
    )
    flags = ["--user-dir", str(tmp_path / "mine.py"), "--criterion", "mine_cli", "--strength", "2.5"]
    run = subprocess.run([sys.executable, "-c", script, *flags], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "2.5"
