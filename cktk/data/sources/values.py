"""What the cells of a column mean that are not texts: labels, numbers, and names of documents."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from cktk.data.manifest import Kind
from cktk.errors import DataError

#: The value of a label that is not known.
UNKNOWN_LABEL = -1

_MOST_LABELS = 1000

#: What mends a cell of a published task, whose labels are not the user's to choose.
_PUBLISHED = "mend the row, or choose another --label-column"

#: What mends a label that is a fraction.
_NO_CLASS = "add --regression"


class Classes:
    """What is stored of classes: their numbers, and `UNKNOWN_LABEL`."""

    kind: ClassVar[Kind] = "integer"

    def unknown(self, values: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Which of ``values`` are not known."""
        return np.equal(values, UNKNOWN_LABEL)


@dataclass(frozen=True)
class Labels(Classes):
    """Classes, by their name or their number; empty, null and -1 (unless it is a name) are labels that are not known.

    Blanks around a label do not count. Where the data says which names its numbers stand for, these are ``coded``.
    ``published`` are the labels of a benchmark.
    """

    names: tuple[str, ...]
    coded: tuple[str, ...] | None = None
    published: bool = False
    absent: ClassVar[int] = UNKNOWN_LABEL

    def counted_in(self, declared: tuple[str, ...], where: str) -> Labels:
        """The same for data whose numbers stand for the names ``declared``.

        Where the names are known to the data, they are those. Else they are new ones for as many classes, in the order
        of the data. Raises `DataError` beginning with ``where`` for names that are neither.
        """
        known, asked = set(declared), set(self.names)
        if known <= asked or asked <= known or self.published:
            return replace(self, coded=declared)
        moved = [name for name in known & asked if declared.index(name) != self.names.index(name)]
        if len(declared) != len(self.names) or moved:
            raise DataError(
                f"{where}: --label-names {','.join(self.names)} does not fit its classes {', '.join(declared)}: give "
                "these names in any order, or a new name for each in this order"
            )
        return replace(self, coded=self.names)

    def read(self, cell: object, where: str) -> int:
        """The number of the label ``cell``; raises `DataError` for one outside of the declared set."""
        if self.coded is not None and isinstance(cell, int):
            cell = self.coded[cell] if 0 <= cell < len(self.coded) else None
        text = _label_text(cell, where, _PUBLISHED if self.published else _NO_CLASS)
        if not text:
            return UNKNOWN_LABEL
        if text in self.names:
            return self.names.index(text)
        if text == str(UNKNOWN_LABEL):
            return UNKNOWN_LABEL
        # Numbers stand for names, unless the names are numbers: then it would be unclear what they count.
        if text.isdecimal() and int(text) < len(self.names) and not any(map(_is_number, self.names)):
            return int(text)
        known = ", ".join(self.names)
        mend = _PUBLISHED if self.published else "mend the row, or see --label-names"
        raise DataError(f"{where}: label {text!r} is not one of {known}; {mend}")


@dataclass(frozen=True)
class UndeclaredLabels(Classes):
    """Classes whose set is still to be found: a cell is read as its text, for `names_of`."""

    absent: ClassVar[str] = ""

    def read(self, cell: object, where: str) -> str:
        """The label as text, "" where it is empty or null; raises `DataError` for what cannot be a label."""
        return _label_text(cell, where, _NO_CLASS)


@dataclass(frozen=True)
class Numbers:
    """Numbers; empty, null, NaN and ``stand_in`` are values that are not known.

    ``published`` are the scores of a benchmark. Others than from the first of ``bounds`` to the second are refused.
    """

    stand_in: float | None = None
    published: bool = False
    bounds: tuple[float, float] = (-math.inf, math.inf)
    kind: ClassVar[Kind] = "number"
    absent: ClassVar[float] = math.nan

    def read(self, cell: object, where: str) -> float:
        """``cell`` as a number; raises `DataError` for anything else, for infinity and for one out of bounds."""
        if cell is None or cell == "":
            return math.nan
        try:
            number = float(cell) if isinstance(cell, str | int | float) else math.inf
        except (ValueError, OverflowError):
            number = math.inf
        mend = _PUBLISHED if self.published else "mend the row, or leave out --regression"
        if math.isinf(number):
            raise DataError(f"{where}: {cell!r} is not a number; {mend}")
        if math.isnan(number) or number == self.stand_in:
            return math.nan
        low, high = self.bounds
        if not low <= number <= high:
            raise DataError(f"{where}: {cell!r} is not from {low:g} to {high:g}; {mend}")
        return number

    def unknown(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
        """Which of ``values`` are not known."""
        return np.isnan(values)


@dataclass(frozen=True)
class Documents:
    """Names of documents, which become numbers: a new one wherever the name changes.

    A row without a name is a document of its own.
    """

    kind: ClassVar[Kind] = "integer"
    absent: ClassVar[str] = ""

    def read(self, cell: object, where: str) -> str:
        """The name, as text."""
        if cell is None or isinstance(cell, str | int):
            return "" if cell is None else str(cell)
        raise DataError(f"{where}: a document's name is text or a whole number, not {type(cell).__name__}")

    def unknown(self, values: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """None is unknown: each row has a document."""
        return np.zeros(len(values), bool)


#: How the cells of a column of values are read.
Values = Labels | UndeclaredLabels | Numbers | Documents


def _label_text(cell: object, where: str, mend: str) -> str:
    if cell is None:
        return ""
    if isinstance(cell, str):
        return cell.strip()
    if isinstance(cell, float) and not cell.is_integer():
        if math.isnan(cell):
            return ""
        raise DataError(f"{where}: label {cell} is a number and not a class; {mend}")
    if isinstance(cell, bool | int | float):
        return str(int(cell))
    raise DataError(f"{where}: a label is text or a whole number, not {type(cell).__name__}")


def names_of(cells: Iterable[str]) -> tuple[str, ...]:
    """The different labels among ``cells``, as `UndeclaredLabels` reads them: numbers by size, others by name.

    Raises `DataError` where there are fewer than two or more than a thousand, -1 is among them, or all have a decimal
    point.
    """
    found: set[str] = set()
    for cell in cells:
        if cell:
            found.add(cell)
        if len(found) > _MOST_LABELS:
            raise DataError(
                f"the train split has more than {_MOST_LABELS:,} different labels; --regression takes numbers, "
                "--label-names names classes"
            )
    unknown = str(UNKNOWN_LABEL)
    if unknown in found and len(found) > 1:
        raise DataError(
            "the train split holds the label -1 beside others: -1 means unknown; give all classes with --label-names, "
            "and where -1 is a class, it too (--label-names=-1,1)"
        )
    if not found - {unknown}:
        raise DataError("the train split has no label (-1 means unknown); give --label-names, or label some of it")
    if all(map(_is_fraction, found)):
        raise DataError(
            f"the labels of the train split are numbers such as {min(found)}; add --regression, or where they are "
            "classes, give all of them with --label-names"
        )
    if len(found) == 1:
        raise DataError(
            f"the train split has the label {min(found)!r} alone (empty and -1 mean unknown), and classes are 2 or "
            "more; give all of them with --label-names"
        )
    return tuple(sorted(found, key=int) if all(map(_is_number, found)) else sorted(found))


def _is_number(name: str) -> bool:
    return name.removeprefix("-").isdecimal()


def _is_fraction(name: str) -> bool:
    try:
        float(name)
    except ValueError:
        return False
    return "." in name
