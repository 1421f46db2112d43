"""Fields of config dataclasses: how an option is declared, and how its text becomes a checked value.

Flags and YAML go through the same conversion, so ``lr: 1e-4`` is a float and the language code ``no`` a string in both.
"""

from __future__ import annotations

import dataclasses
import re
import types
from collections.abc import Sequence
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from cktk.errors import ConfigError
from cktk.utils.words import unknown_name

T = TypeVar("T")

#: Text of an option as it was written: one scalar, a list of scalars, or null.
Raw = Union[str, "list[str]", None]


def option(
    default: Any = dataclasses.MISSING,
    *,
    help: str,
    choices: Sequence[str] | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    metavar: str | None = None,
    positional: bool = False,
    resume: Literal["same", "free"] = "same",
) -> Any:
    """A dataclass field that becomes a flag and a YAML key.

    ``minimum`` and ``maximum`` are inclusive bounds, ``above`` an exclusive lower one; they hold for each item of a
    list. ``resume="free"`` marks what may change when a run is continued. Without a default the option is required.
    """
    metadata = {
        "help": help,
        "choices": choices,
        "minimum": minimum,
        "maximum": maximum,
        "above": above,
        "metavar": metavar,
        "positional": positional,
        "resume": resume,
    }
    # Keyword-only, so that required options may follow those with a default.
    return dataclasses.field(default=default, metadata=metadata, kw_only=True)


@dataclasses.dataclass(frozen=True)
class Option:
    """One field of a config dataclass, with its type resolved."""

    field: dataclasses.Field[Any]
    kind: Any  # int, float, bool, str or a tuple type
    optional: bool

    @property
    def name(self) -> str:
        return self.field.name

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def required(self) -> bool:
        return self.field.default is dataclasses.MISSING

    def meta(self, key: str) -> Any:
        return self.field.metadata.get(key)

    @property
    def is_list(self) -> bool:
        return get_origin(self.kind) is tuple

    @property
    def choices(self) -> Sequence[str] | None:
        item = get_args(self.kind)[0] if self.is_list else self.kind
        literal = get_args(item) if get_origin(item) is Literal else None
        return self.meta("choices") or literal

    def convert(self, raw: Raw) -> Any:
        """The typed value of ``raw``; raises ValueError with the reason."""
        if raw is None:
            if self.optional:
                return None
            raise ValueError("needs a value, not null")
        if self.is_list:
            wanted = get_args(self.kind)
            items = raw if isinstance(raw, list) else _split_text(raw) if wanted[0] is str else _split_numbers(raw)
            if not items and self.field.default != ():
                raise ValueError("needs at least one value")
            if Ellipsis not in wanted and len(items) != len(wanted):
                raise ValueError(f"takes {len(wanted)} values, not {len(items)}")
            return tuple(self._scalar(wanted[0], item) for item in items)
        if isinstance(raw, list):
            raise ValueError("takes one value, not a list")
        if self.optional and raw.lower() in ("none", "null"):
            return None
        return self._scalar(self.kind, raw)

    def _scalar(self, kind: Any, text: str) -> Any:
        value = _CONVERTERS[kind](text) if kind in _CONVERTERS else text
        self._check(value, text)
        return value

    def check(self, value: Any) -> None:
        """Raise ValueError with the reason where a typed value, or an item of a list, is none of those allowed."""
        for item in value if isinstance(value, tuple) else (value,):
            self._check(item, str(item))

    def _check(self, value: Any, text: str) -> None:
        if self.choices and value not in self.choices:
            raise ValueError(unknown_name(text, self.choices))
        for key, fails, words in _BOUNDS:
            bound = self.meta(key)
            if bound is not None and fails(value, bound):
                raise ValueError(f"{text} is out of range: must be {words} {bound}")


def options_of(config: type) -> tuple[Option, ...]:
    """The options that a config dataclass declares, in order."""
    hints = get_type_hints(config)
    found = []
    for field in dataclasses.fields(config):
        kind, optional = hints[field.name], False
        if get_origin(kind) in (Union, types.UnionType):
            inner = [part for part in get_args(kind) if part is not type(None)]
            kind, optional = inner[0], True
        found.append(Option(field, kind, optional))
    return tuple(found)


def checked(config: type[T], **values: Any) -> T:
    """A ``config`` of values given from Python, under the same checks as flags; raises `ConfigError`."""
    known = {option.name: option for option in options_of(config)}
    for name, value in values.items():
        if name not in known:
            raise ConfigError(unknown_name(name, known))
        if value is None and known[name].optional:
            continue
        try:
            known[name].check(value)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{name}={value!r}: {error}") from error
    return config(**values)


def _split_text(text: str) -> list[str]:
    # Names of files may hold blanks and brackets: only commas part them.
    return [part for item in text.split(",") if (part := item.strip())]


def _split_numbers(text: str) -> list[str]:
    return [part for part in re.split(r"[,\s]+", text.strip().strip("()[]").strip()) if part]


def _int(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        pass
    number = _float(text)  # 4e4 is a whole number too
    if number != int(number):
        raise ValueError(f"{text!r} is not a whole number")
    return int(number)


def _float(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a number") from None
    if number != number or number in (float("inf"), float("-inf")):
        raise ValueError(f"{text!r} is not a finite number")
    return number


def _bool(text: str) -> bool:
    if text.lower() in ("true", "yes", "on", "1"):
        return True
    if text.lower() in ("false", "no", "off", "0"):
        return False
    raise ValueError(f"{text!r} is neither true nor false")


_CONVERTERS: dict[Any, Any] = {int: _int, float: _float, bool: _bool, str: str}
_BOUNDS: tuple[tuple[str, Any, str], ...] = (
    ("minimum", lambda value, bound: value < bound, "at least"),
    ("maximum", lambda value, bound: value > bound, "at most"),
    ("above", lambda value, bound: value <= bound, "above"),
)
