"""From a command line to typed settings, one path for every command.

Defaults < ``--arch`` (a name that stands for several values) < ``--preset`` < YAML ``base:`` chain < YAML < flags.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, Protocol, TypeVar

import yaml

from cktk.config.flags import Parser, add_flag, hyphenated, unknown_argument
from cktk.config.options import Option, Raw, options_of
from cktk.config.presets import Preset
from cktk.config.yaml_file import Written, read_run_file
from cktk.errors import ConfigError
from cktk.utils.words import unknown_name

ConfigT = TypeVar("ConfigT")


class ConfigTable(Protocol):
    """What a command needs of a registry."""

    def names(self) -> list[str]: ...

    def config(self, name: str) -> type: ...


@dataclasses.dataclass(frozen=True)
class Component:
    """A flag that chooses from a registry; the flags of what was chosen join the command's.

    Where neither flag nor run file chooses, ``infer`` may, from the options that are written there. A name in
    ``presets`` stands for the choice in its values, under the component's own name, and for values of options.
    ``further`` gives sections that come with a choice, by the config of its row.
    """

    flag: str
    registry: ConfigTable
    default: str | None
    help: str
    infer: Callable[[Mapping[str, Raw]], str | None] | None = None
    presets: Mapping[str, Preset] = dataclasses.field(default_factory=dict)
    further: Callable[[type], Sequence[type]] = lambda _: ()

    @property
    def name(self) -> str:
        return self.flag.replace("-", "_")

    def names(self) -> list[str]:
        """Everything that the flag takes."""
        return [*self.registry.names(), *(name for name in self.presets if name not in self.registry.names())]

    def sections(self, name: str) -> list[type]:
        """The sections whose flags join those of a command when ``name`` of the registry is chosen."""
        config = self.registry.config(name)
        return [config, *self.further(config)]

    def read(self, name: str | None) -> tuple[str | None, dict[str, str]]:
        """What is chosen by ``name``, one of `names` or None: a name of the registry, and values of options."""
        if name is None or name in self.registry.names():
            return name, {}
        values = dict(self.presets[name].values)
        return values.pop(self.name), values


class Settings:
    """The typed values of one command line."""

    def __init__(self, values: dict[str, Any], sections: Sequence[type], components: Sequence[Component]) -> None:
        self.values = values
        self._sections = tuple(sections)
        self._components = {component.flag: component for component in components}

    def section(self, config: type[ConfigT]) -> ConfigT:
        """An instance of ``config`` filled with this command line's values."""
        return config(**{option.name: self.values[option.name] for option in options_of(config)})

    def component(self, flag: str) -> tuple[str, Any]:
        """The name chosen by ``--flag`` and its filled config."""
        component = self._components[flag]
        name = self.values[component.name]
        return name, self.section(component.registry.config(name))

    def to_yaml(self) -> str:
        """All values, fully resolved, as a run file that gives the same settings again."""
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in self.values.items()}
        return yaml.safe_dump(plain, sort_keys=True, allow_unicode=True)

    def free_on_resume(self) -> set[str]:
        """Names of the options that may differ when a run is continued; a preset counts by its values alone."""
        options = (option for config in self._sections for option in options_of(config))
        return {"preset", *(option.name for option in options if option.meta("resume") == "free")}


class Command:
    """A command's flags: its sections, and the registries that it lets the user choose from.

    ``load_plugins`` is called with the value of ``--user-dir`` (or None) before any registry is read. With ``presets``
    the command has a flag ``--preset``, whose values for options that nothing chosen declares are left out.
    """

    def __init__(
        self,
        prog: str,
        description: str,
        sections: Sequence[type],
        components: Sequence[Component] = (),
        load_plugins: Callable[[str | None], None] | None = None,
        presets: Mapping[str, Preset] | None = None,
    ) -> None:
        self.prog = prog
        self.description = description
        self.sections = tuple(sections)
        self.components = tuple(components)
        self.load_plugins = load_plugins
        self.presets = presets or {}

    def parse(self, argv: Sequence[str] | None = None) -> Settings:
        """Parse ``argv`` (default: the process's) and the run file it names; raises `ConfigError`."""
        arguments = [hyphenated(argument) for argument in (sys.argv[1:] if argv is None else argv)]
        early, others = self._early_parser().parse_known_args(arguments)
        written = read_run_file(_only_one(early.config)) if early.config else {}
        user_dir = early.user_dir or (written["user_dir"].raw if "user_dir" in written else None)
        if self.load_plugins:
            self.load_plugins(str(user_dir) if user_dir else None)
        given = {**{name: value.raw for name, value in written.items()}, **_glance(others)}
        preset_name, preset = self._preset(early, written)
        chosen: dict[str, str | None] = {}
        presets: dict[str, Written] = {}
        for component in self.components:
            name = self._choose(
                component, early, written, given, preset.resolve({**given, **chosen}).get(component.name)
            )
            chosen[component.name], sizes = component.read(name)
            presets |= {option: Written(text, f"--{component.flag} {name}") for option, text in sizes.items()}
        sections = [*self.sections, *self._chosen_sections(chosen)]
        table = _option_table(sections)
        named = preset.resolve({**given, **chosen})
        presets |= {name: Written(text, f"--preset {preset_name}") for name, text in named.items()}
        flags = self._parse_flags(table, arguments, presets)
        self._refuse_unknown_keys(written, table)
        values: dict[str, Any] = {**chosen, "user_dir": user_dir}
        if self.presets:
            values["preset"] = preset_name
        values.update(_typed_values(table, {**presets, **written, **flags}))
        return Settings(values, sections, self.components)

    def _early_parser(self) -> argparse.ArgumentParser:
        parser = Parser(self.prog, add_help=False)
        parser.add_argument("--config", action="append")
        parser.add_argument("--user-dir")
        if self.presets:
            parser.add_argument("--preset")
        for component in self.components:
            parser.add_argument("--" + component.flag)
        return parser

    def _preset(self, early: argparse.Namespace, written: Mapping[str, Written]) -> tuple[str | None, Preset]:
        """The name and the values of the chosen preset; none and no values where there is none."""
        name, where = written.get("preset", (None, "")) if self.presets else (None, "")
        if getattr(early, "preset", None) is not None:
            name, where = early.preset, "--preset"
        if name is None:
            return None, Preset("", {})
        if str(name) not in self.presets:
            raise ConfigError(f"{where}: {unknown_name(str(name), self.presets)}")
        return str(name), self.presets[str(name)]

    def _choose(
        self,
        component: Component,
        early: argparse.Namespace,
        written: Mapping[str, Written],
        given: Mapping[str, Raw],
        preset: str | None,
    ) -> str | None:
        name = getattr(early, component.name)
        where = f"--{component.flag}"
        if name is None and component.name in written:
            name, where = written[component.name]
        if name is None and component.infer is not None:
            name = component.infer(given)
        name = name or preset or component.default
        if name is not None and name not in component.names():
            raise ConfigError(
                f"{where}: {unknown_name(str(name), component.names())} "
                "(plug-ins are loaded with --user-dir or the entry point group cktk.plugins)"
            )
        return name

    def _chosen_sections(self, chosen: Mapping[str, str | None]) -> list[type]:
        chosen_of = ((component, chosen[component.name]) for component in self.components)
        configs = [config for component, name in chosen_of if name is not None for config in component.sections(name)]
        return list(dict.fromkeys(configs))

    def _parse_flags(
        self, table: Mapping[str, _Owned], arguments: list[str], presets: Mapping[str, Written]
    ) -> dict[str, Written]:
        parser = Parser(self.prog, description=self.description, argument_default=argparse.SUPPRESS)
        general = parser.add_argument_group("general")
        general.add_argument("--config", metavar="FILE", help="run file in YAML with the same names as the flags")
        general.add_argument("--user-dir", metavar="DIR", help="folder or file of Python plug-ins to import")
        if self.presets:
            general.add_argument("--preset", metavar="NAME", help=self._preset_help())
        for component in self.components:
            general.add_argument("--" + component.flag, metavar="NAME", help=_component_help(component))
        groups: dict[type, Any] = {}
        for option in table.values():
            owner = option.owner
            if owner not in groups:
                groups[owner] = parser.add_argument_group((owner.__doc__ or owner.__name__).strip().splitlines()[0])
            preset = presets.get(option.option.name)
            add_flag(groups[owner], option.option, None if preset is None else str(preset.raw))
        known, unknown = parser.parse_known_args(arguments)
        if unknown:
            name = unknown[0].partition("=")[0]
            if choice := self._not_chosen(name[2:].replace("-", "_")):
                raise ConfigError(f"{name} belongs to {choice}, which was not chosen")
            flags = [option.option.flag for option in table.values()]
            raise ConfigError(unknown_argument(unknown[0], flags))
        written = {}
        for name, text in vars(known).items():
            if name in table:
                several = [part for item in text for part in item.split(",")] if isinstance(text, list) else None
                written[name] = Written(several or str(text), table[name].option.flag)
        return written

    def _refuse_unknown_keys(self, written: Mapping[str, Written], table: Mapping[str, _Owned]) -> None:
        known = {*table, "user_dir", *(component.name for component in self.components)}
        known |= {"preset"} if self.presets else set()
        for name, value in written.items():
            if name in known:
                continue
            if owner := self._not_chosen(name):
                raise ConfigError(f"{value.where}: {name} belongs to {owner}, which was not chosen")
            raise ConfigError(f"{value.where}: {unknown_name(name, sorted(known))}")

    def _preset_help(self) -> str:
        known = ", ".join(f"{name} ({preset.summary})" for name, preset in self.presets.items())
        return f"named settings, which run file and flags override: {known}"

    def _not_chosen(self, name: str) -> str | None:
        """The choices that have an option ``name``, as ``--flag this or that``."""
        for component in self.components:
            names = component.registry.names()
            having = [
                other
                for other in names
                if any(name == option.name for config in component.sections(other) for option in options_of(config))
            ]
            if having:
                return f"--{component.flag} {' or '.join(having)}"
        return None


@dataclasses.dataclass(frozen=True)
class _Owned:
    option: Option
    owner: type


def _option_table(sections: Sequence[type]) -> dict[str, _Owned]:
    table: dict[str, _Owned] = {}
    for config in sections:
        for option in options_of(config):
            if option.name in table:
                raise ConfigError(
                    f"{option.flag} is declared by {table[option.name].owner.__name__} and by {config.__name__}; "
                    "rename it in the plug-in"
                )
            table[option.name] = _Owned(option, config)
    return table


def _typed_values(table: Mapping[str, _Owned], written: Mapping[str, Written]) -> dict[str, Any]:
    values = {}
    for name, owned in table.items():
        option = owned.option
        if name in written:
            raw, where = written[name]
            label = where if where == option.flag else f"{where}: {name}"
            try:
                values[name] = option.convert(raw)
            except ValueError as error:
                raise ConfigError(f"{label}: {error}") from None
        elif option.required:
            what = option.name.upper() if option.meta("positional") else option.flag
            raise ConfigError(f"{what} is required: {option.meta('help')}")
        else:
            values[name] = option.field.default
    return values


def _only_one(configs: Sequence[str]) -> Path:
    if len(configs) > 1:
        raise ConfigError(
            f"--config is given twice, {configs[0]} and {configs[1]}; name one as the `base:` of the other"
        )
    return Path(configs[0])


def _glance(arguments: Sequence[str]) -> dict[str, Raw]:
    """The options among ``arguments`` as written, before it is known which ones there are."""
    given: dict[str, Raw] = {}
    for argument, following in zip_longest(arguments, arguments[1:], fillvalue=""):
        if argument.startswith("--"):
            flag, equals, text = argument[2:].partition("=")
            given[flag.replace("-", "_")] = text if equals else following
    return given


def _component_help(component: Component) -> str:
    default = f" (default: {component.default})" if component.default else ""
    known = component.registry.names()
    others = [name for name in component.names() if name not in known]
    sizes = f"; with sizes: {', '.join(others)}" if others else ""
    return f"{component.help}: {', '.join(known)}{default}{sizes}"
