"""The walls of the house: which part may import which. docs/architecture.md shows the same table in words."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

#: Parts of a layer do not import one another; every part may import all layers above it in this list.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("cktk.errors", "cktk.protocols"),
    ("cktk.utils",),
    ("cktk.registry", "cktk.config", "cktk.plugins"),
    ("cktk.distributed", "cktk.optim", "cktk.data", "cktk.metrics"),
    ("cktk.criteria", "cktk.architectures", "cktk.generation", "cktk.evaluation"),
    ("cktk.tasks", "cktk.engine", "cktk.export"),
    ("cktk.assemble", "cktk.hub", "cktk.report"),
    ("cktk_cli",),
)
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}
HEAVY = (
    "torch",
    "transformers",
    "datasets",
    "sentencepiece",
    "tokenizers",
    "pyarrow",
    "sacrebleu",
    "rouge_score",
    "nltk",
    "numpy",
    "matplotlib",
)


def modules() -> dict[str, Path]:
    """Dotted names of all modules of the product, with their files."""
    found = {}
    for package in ("cktk", "cktk_cli"):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()
CONFIG_MODULES = [
    name
    for name in MODULES
    if name.startswith("cktk.config.")
    or name.rpartition(".")[2]
    in (
        "configs",
        "batch_config",
        "cache_config",
        "trim_config",
        "plan_config",
        "mixture_config",
        "pretraining_config",
        "rewrite_config",
        "presets",
        "registry",
        "plugins",
    )
]


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything that a module imports, at any depth, ``from a import b`` as ``a.b``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__"):
                yield node.lineno, str(node.args[0].value)


def part_of(name: str) -> str | None:
    """The part of the house that a dotted name belongs to; None outside of it."""
    if name.split(".")[0] == "cktk_cli":
        return "cktk_cli"
    part = ".".join(name.split(".")[:2])
    return part if part in LEVEL else None


def violations(module: str, source: str) -> list[str]:
    """What ``module`` imports and may not."""
    own, found = part_of(module), []
    for line, name in imports(ast.parse(source)):
        if name.startswith("."):
            found.append(f"{module}:{line} imports {name}: write the absolute name")
        other = part_of(name)
        if own is None or other is None or other == own:
            continue
        if LEVEL[other] >= LEVEL[own]:
            found.append(f"{module}:{line} imports {name}: {own} stands no higher than {other}")
    return found


def test_every_module_belongs_to_a_part() -> None:
    homeless = [name for name in MODULES if name != "cktk" and part_of(name) is None]
    assert homeless == [], "add these to LAYERS and to docs/architecture.md"


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_downward(module: str) -> None:
    assert violations(module, MODULES[module].read_text(encoding="utf-8")) == []


class RunTime(ast.NodeTransformer):
    """Drops what only type checkers read."""

    def visit_If(self, node: ast.If) -> ast.AST | None:
        return None if getattr(node.test, "id", "") == "TYPE_CHECKING" else self.generic_visit(node)


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Each way from a module back to itself that a depth-first walk meets."""
    found, finished = [], set()

    def visit(name: str, way: list[str]) -> None:
        if name in way:
            found.append([*way[way.index(name) :], name])
        elif name not in finished:
            for other in sorted(graph.get(name, ())):
                visit(other, [*way, name])
            finished.add(name)

    for name in graph:
        visit(name, [])
    return found


def test_no_module_imports_itself_by_a_detour() -> None:
    graph = {}
    for module, path in MODULES.items():
        tree = RunTime().visit(ast.parse(path.read_text(encoding="utf-8")))
        names = {name for _, name in imports(tree)}
        # ``from a.b import c`` names the module a.b.c or something in a.b.
        graph[module] = {name if name in MODULES else name.rpartition(".")[0] for name in names} & MODULES.keys()
    assert sum(map(len, graph.values())) > len(graph)
    assert circles(graph) == []


def test_circles_are_seen() -> None:
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": {"d"}, "d": {"b"}}) == [["b", "c", "d", "b"]]


def test_package_root_imports_nothing() -> None:
    assert list(imports(ast.parse(MODULES["cktk"].read_text(encoding="utf-8")))) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("cktk.criteria.cka.cka", "import cktk.engine.loop"),
        ("cktk.criteria.cka.cka", "from cktk.architectures.families import bart"),
        ("cktk.criteria.cka.cka", "from cktk import architectures"),
        ("cktk.data.shards", "def late():\n    from cktk.tasks.translation import TranslationTask"),
        ("cktk.utils.files", "import importlib\nimportlib.import_module('cktk.config')"),
        ("cktk.optim.schedules", "from . import configs"),
        ("cktk.engine.loop", "from cktk_cli.run import run_command"),
    ],
)
def test_the_walk_sees_a_breach(module: str, source: str) -> None:
    assert len(violations(module, source)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("cktk.engine.loop", "from cktk.criteria.cka.cka import Cka\nfrom cktk.engine.step import Step\nimport torch"),
        ("cktk.data.shards", "from cktk import __version__\nfrom cktk.errors import DataError"),
        ("cktk_cli.train", "from cktk.assemble import assemble\nfrom cktk_cli.run import run_command"),
    ],
)
def test_the_walk_lets_good_imports_pass(module: str, source: str) -> None:
    assert violations(module, source) == []


@pytest.mark.parametrize("module", CONFIG_MODULES)
def test_config_modules_name_no_heavy_library(module: str) -> None:
    roots = {name.split(".")[0] for _, name in imports(ast.parse(MODULES[module].read_text(encoding="utf-8")))}
    assert roots.isdisjoint(HEAVY)


def loaded_after(code: str, names: tuple[str, ...]) -> list[str]:
    """Which of ``names`` a fresh interpreter has loaded after running ``code``."""
    script = f"{code}\nimport sys\nprint(*(n for n in {names!r} if n in sys.modules), sep=',', end='', file=sys.stderr)"
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in run.stderr.split(",") if name]


def test_import_cktk_loads_next_to_nothing() -> None:
    assert loaded_after("import cktk", (*HEAVY, "yaml", "argparse", "cktk.registry")) == []


def test_all_config_modules_load_without_heavy_libraries() -> None:
    assert loaded_after("\n".join(f"import {name}" for name in CONFIG_MODULES), HEAVY) == []


def test_the_probe_sees_what_is_loaded() -> None:
    assert loaded_after("import numpy", HEAVY) == ["numpy"]


@pytest.mark.parametrize(
    "command",
    [
        "preprocess",
        "cache_teacher",
        "train",
        "generate",
        "evaluate",
        "average_checkpoints",
        "trim_vocab",
        "plan",
        "export",
        "report",
    ],
)
def test_help_loads_no_heavy_library(command: str) -> None:
    code = f"from cktk_cli.{command} import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n    pass"
    assert loaded_after(code, HEAVY) == []
