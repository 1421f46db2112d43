"""Registries: lazy rows, clear refusals, and every row that is shipped leads somewhere."""

from __future__ import annotations

import dataclasses
import sys

import pytest

from cktk.config.options import options_of
from cktk.errors import RegistryError
from cktk.registry import ALL_REGISTRIES, EVALUATIONS, Registry

ROWS = [(registry, name) for registry in ALL_REGISTRIES for name in registry.names()]
IDS = [f"{registry.kind}-{name}" for registry, name in ROWS]


@dataclasses.dataclass
class Options:
    """Options."""


def make() -> str:
    return "made"


@pytest.mark.parametrize(("registry", "name"), ROWS, ids=IDS)
def test_every_shipped_row_resolves(registry: Registry, name: str) -> None:
    config = registry.config(name)
    assert dataclasses.is_dataclass(config)
    assert (config.__doc__ or "").strip(), "the first docstring line is the group's title in --help"
    for option in options_of(config):
        assert option.meta("help"), f"{option.flag} has no help"
        # YAML null is allowed exactly where the default is null, so that every default can be written down.
        assert option.required or option.optional or option.field.default is not None
    assert callable(registry.target(name))


@pytest.mark.parametrize(("registry", "name"), ROWS, ids=IDS)
def test_every_default_passes_its_own_checks(registry: Registry, name: str) -> None:
    for option in options_of(registry.config(name)):
        default = option.field.default
        if option.required or default is None:
            continue
        raw = [str(item) for item in default] if isinstance(default, tuple) else str(default)
        assert option.convert(raw) == default


def test_rows_are_lazy() -> None:
    registry = Registry("thing", {"odd": ("wave:Wave_read", "wave:open"), "gone": ("no_such_module:X", "no:x")})
    assert registry.names() == ["gone", "odd"]
    assert registry.target("odd") is sys.modules["wave"].open
    with pytest.raises(ModuleNotFoundError):
        registry.config("gone")


def test_unknown_names_get_the_nearest_and_the_whole_list() -> None:
    registry = Registry("criterion", {"cka_kd": ("a:b", "a:c"), "kl_kd": ("a:b", "a:c")})
    with pytest.raises(RegistryError) as caught:
        registry.target("cka-kd")
    message = str(caught.value)
    assert "--criterion: unknown name 'cka-kd'; did you mean cka_kd?" in message
    assert "known: cka_kd, kl_kd" in message and "--user-dir" in message


def test_a_plug_in_registers_once() -> None:
    registry = Registry("thing", {"shipped": ("somewhere.configs:A", "somewhere.things:B")})
    assert registry.register("mine", Options)(make) is make
    assert registry.config("mine") is Options and registry.target("mine") is make
    with pytest.raises(RegistryError, match=f"--thing mine is registered twice: by {__name__} and by {__name__}"):
        registry.register("mine", Options)(make)
    with pytest.raises(RegistryError, match=f"by somewhere.things and by {__name__}; rename one"):
        registry.register("shipped", Options)(make)


def test_kinds_are_distinct() -> None:
    # A task has its training and its metrics, between which no command chooses.
    kinds = [registry.kind for registry in ALL_REGISTRIES if registry is not EVALUATIONS]
    assert len(set(kinds)) == len(kinds)
