"""Options as flags of argparse: how they look in ``--help``, and what is said about bad ones."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from cktk.config.options import Option
from cktk.errors import ConfigError
from cktk.utils.words import nearest


class Parser(argparse.ArgumentParser):
    """A parser that raises `ConfigError` and takes no abbreviations."""

    def __init__(self, prog: str, **settings: Any) -> None:
        super().__init__(prog, allow_abbrev=False, formatter_class=_HelpFormatter, **settings)

    def error(self, message: str) -> NoReturn:
        flag, found, _ = message.removeprefix("argument ").partition(": expected one argument")
        if found:
            raise ConfigError(f"{flag} needs a value (one that begins with a dash is joined to it: {flag}=-VALUE)")
        raise ConfigError(message)


class _HelpFormatter(argparse.HelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32, width=110)


def hyphenated(argument: str) -> str:
    """``--max_tokens=5`` as ``--max-tokens=5``: flags may be written like the names in run files."""
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value if name.startswith("--") else argument


def add_flag(group: Any, option: Option, preset: str | None = None) -> None:
    """Add ``option`` to an argument group; ``preset`` is the value that a preset gives it, if one does."""
    words = _default_words(option) if preset is None else f" (by the preset: {preset})"
    text = (option.meta("help") + words).replace("%", "%%")
    if option.kind is bool:
        group.add_argument(option.flag, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text)
        return
    if option.meta("positional"):
        several = "*" if option.is_list else "?"
        group.add_argument(option.name, nargs=several, metavar=option.name.upper(), help=text)
    else:
        group.add_argument(option.flag, metavar=option.meta("metavar") or _metavar(option), help=text)


def _metavar(option: Option) -> str:
    if option.choices and option.is_list:
        return "NAME,.."
    if option.choices:
        return "{" + ",".join(option.choices) + "}"
    return {int: "N", float: "X", str: "TEXT"}.get(option.kind, "X,..")


def _default_words(option: Option) -> str:
    default = option.field.default
    if option.required:
        return " (required)"
    if default is None or default == "" or (option.kind is bool and not default):
        return ""
    shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
    return f" (default: {shown})"


def unknown_argument(argument: str, flags: Sequence[str]) -> str:
    """What to say about ``argument``, which is none of ``flags``."""
    name = argument.partition("=")[0]
    if not name.startswith("-"):
        return f"unexpected argument {argument!r}"
    near = nearest(name, flags)
    return f"unknown flag {name}" + (f"; did you mean {near}?" if near else "") + " (see --help)"
