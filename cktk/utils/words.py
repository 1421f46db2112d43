"""Words that several error messages share."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

_SHOWN_NAMES = 100


def nearest(name: str, known: Sequence[str]) -> str | None:
    """The one of ``known`` that was probably meant by ``name``: ``name`` and a further part (en_XX), or alike."""
    longer = [other for other in known if other.startswith(name) and not other[len(name) :][:1].isalnum()]
    alike = longer or difflib.get_close_matches(name, known, n=1)
    return alike[0] if alike else None


def alternatives(name: str, known: Iterable[str]) -> str:
    """``did you mean x? known: x, y`` for a ``name`` that is not among ``known``."""
    names = list(known)
    near = nearest(name, names)
    more = ", ..." if len(names) > _SHOWN_NAMES else ""
    return (f"did you mean {near}? " if near else "") + f"known: {', '.join(names[:_SHOWN_NAMES])}{more}"


def unknown_name(name: str, known: Iterable[str]) -> str:
    """``unknown name 'z'; did you mean x? known: x, y``."""
    return f"unknown name {name!r}; {alternatives(name, known)}"
