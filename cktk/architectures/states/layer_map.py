"""Which teacher layer a student layer is matched with, or takes its weights from. Integer arithmetic throughout."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from cktk.errors import ConfigError
from cktk.protocols import LayerPair, ModelShape, Side
from cktk.utils.words import alternatives

SIDES: tuple[Side, Side] = ("encoder", "decoder")

_COLUMNS = 15  # of the table, so that it fits a terminal of 80 characters
_BY_SIDE = "write sides as 'encoder=1:4,2:8;decoder=uniform'"


def uniform_layers(student_layers: int, teacher_layers: int) -> list[int]:
    """For student layers 1, 2, ... the teacher layers ceil(j L_T / L_S), counted from 1: the last ones are paired.

    A student deeper than its teacher shares teacher layers. Used for matching states.
    """
    return [-(-layer * teacher_layers // student_layers) for layer in range(1, student_layers + 1)]


def truncated_layers(student_layers: int, teacher_layers: int) -> list[int]:
    """For student layers 0, 1, ... the teacher layers floor(i L_T / L_S), counted from 0. Used by ``truncate``."""
    return [layer * teacher_layers // student_layers for layer in range(student_layers)]


def spread_layers(student_layers: int, teacher_layers: int) -> list[int]:
    """For student layers 0, 1, ... evenly spread teacher layers, counted from 0, with the first and the last kept.

    6 of 12 gives 0 2 4 7 9 11, DistilBERT's and distilBART's choice; a deeper student repeats layers. Used by ``copy``
    and ``checkpoint``. A single layer is the first one.
    """
    if student_layers == 1:
        return [0]
    steps = student_layers - 1
    return [(2 * layer * (teacher_layers - 1) + steps) // (2 * steps) for layer in range(student_layers)]


def layer_pairs(
    student: ModelShape, teacher: ModelShape, layer_map: str = "uniform", *, embeddings: bool = True
) -> tuple[LayerPair, ...]:
    """The pairs that ``layer_map`` gives, in ``hidden_states`` indices: encoder first, then by student layer.

    On a side with L_S student and L_T teacher layers, counted from 1, the map is one of

    - ``uniform``: layer j with layer ceil(j L_T / L_S);
    - ``skip:k``: layer j with layer j k;
    - ``first:k``, ``last:k``: the first or last k layers of both, in order;
    - pairs ``student:teacher`` such as ``1:4,2:8``; a layer may be in several.

    It holds for every side that both models have. ``encoder=1:4,2:8;decoder=last:2`` gives each side its own map; a
    side that is left out has no pairs at all. With ``embeddings`` the outputs of the embeddings (index 0) are a further
    pair on each side of the map. Raises `ConfigError` for a map that cannot be read, or names layers that do not exist.
    """
    depths = {
        side: (student.sides[side].layers, teacher.sides[side].layers)
        for side in SIDES
        if side in student.sides and side in teacher.sides
    }
    pairs = []
    for side, own_map in _maps_by_side(layer_map, tuple(depths)).items():
        matched = _SideMap(layer_map, side, *depths[side]).read(own_map)
        pairs += [LayerPair(side, 0, 0)] if embeddings else []
        pairs += [LayerPair(side, own, teachers) for own, teachers in sorted(matched)]
    return tuple(pairs)


def layer_table(pairs: Iterable[LayerPair]) -> str:
    """The pairs as aligned text, two lines for up to 15 pairs of a side; state 0 is called ``emb``."""
    lines = []
    known = tuple(pairs)
    for side in SIDES:
        matched = [pair for pair in known if pair.side == side]
        for start in range(0, len(matched), _COLUMNS):
            for model in ("student", "teacher"):
                states = [getattr(pair, model) for pair in matched[start : start + _COLUMNS]]
                lines.append(f"{side:<8} {model:<8}" + "".join(f"{state or 'emb':>4}" for state in states))
    return "\n".join(lines)


def _maps_by_side(layer_map: str, sides: tuple[Side, ...]) -> dict[Side, str]:
    """The map of each side that has one, encoder first; ``sides`` are those of the models."""
    if "=" not in layer_map and ";" not in layer_map:
        return dict.fromkeys(sides, layer_map.strip())
    found: dict[str, str] = {}
    for part in layer_map.split(";"):
        side, equals, own_map = (word.strip() for word in part.partition("="))
        if not equals:
            raise _refusal(layer_map, f"{part.strip()!r} names no side; {_BY_SIDE}")
        if side not in sides:
            unknown = f"unknown side {side!r}; {alternatives(side, sides)}"
            raise _refusal(layer_map, f"the models have no {side}; leave it out" if side in SIDES else unknown)
        if side in found:
            raise _refusal(layer_map, f"the {side} is there twice; join its pairs with commas")
        found[side] = own_map
    return {side: found[side] for side in sides if side in found}


@dataclass(frozen=True)
class _SideMap:
    """Reads the map of one side of models that have ``student`` and ``teacher`` layers there."""

    layer_map: str
    side: Side
    student: int
    teacher: int

    def read(self, text: str) -> list[tuple[int, int]]:
        """(student layer, teacher layer), counted from 1."""
        if not text[:1].isalpha():
            return self._explicit(text)
        word, colon, number = (part.strip() for part in text.partition(":"))
        counted: dict[str, Callable[[int], list[tuple[int, int]]]] = {
            "skip": self._skip,
            "last": self._last,
            "first": self._first,
        }
        if word in counted:
            if not re.fullmatch("[0-9]{1,9}", number) or not int(number):
                raise self._refusal(f"{word} needs a whole number from 1 on, such as {word}:2")
            return counted[word](int(number))
        if word != "uniform":
            known = alternatives(word, ("uniform", "skip:K", "last:K", "first:K"))
            raise self._refusal(f"unknown map {word!r}; {known}, or pairs such as 1:4,2:8")
        if colon:
            raise self._refusal("uniform takes no number")
        return list(enumerate(uniform_layers(self.student, self.teacher), start=1))

    def _skip(self, step: int) -> list[tuple[int, int]]:
        if self.student * step > self.teacher:
            most = self.teacher // self.student
            raise self._refusal(
                f"student layer {self.student} would need teacher layer {self.student * step}, but the teacher has "
                f"{_layers(self.teacher)}; use {f'at most skip:{most}' if most else 'uniform'}"
            )
        return [(layer, layer * step) for layer in range(1, self.student + 1)]

    def _first(self, number: int) -> list[tuple[int, int]]:
        self._check_depth("first", number)
        return [(layer, layer) for layer in range(1, number + 1)]

    def _last(self, number: int) -> list[tuple[int, int]]:
        self._check_depth("last", number)
        return [(self.student - back, self.teacher - back) for back in reversed(range(number))]

    def _check_depth(self, word: str, number: int) -> None:
        for model, layers in (("student", self.student), ("teacher", self.teacher)):
            if number > layers:
                most = min(self.student, self.teacher)
                raise self._refusal(f"the {model} has {_layers(layers)}; use at most {word}:{most}")

    def _explicit(self, text: str) -> list[tuple[int, int]]:
        pairs: list[tuple[int, int]] = []
        for part in (part.strip() for part in text.split(",")):
            match = re.fullmatch(r"([0-9]{1,9})\s*:\s*([0-9]{1,9})", part)
            if match is None:
                raise self._refusal(f"{part!r} is no pair student:teacher; write pairs as 1:4,2:8")
            pair = (int(match[1]), int(match[2]))
            for model, layer, layers in (("student", pair[0], self.student), ("teacher", pair[1], self.teacher)):
                if layer == 0:
                    raise self._refusal(f"{part}: layers count from 1; embeddings are matched by --match-embeddings")
                if layer > layers:
                    raise self._refusal(f"{part}: there is no {model} layer {layer}; the {model} has {_layers(layers)}")
            if pair in pairs:
                raise self._refusal(f"the pair {part} is there twice; leave one out")
            pairs.append(pair)
        return pairs

    def _refusal(self, words: str) -> ConfigError:
        return _refusal(self.layer_map, f"{self.side}: {words}")


def _refusal(layer_map: str, words: str) -> ConfigError:
    return ConfigError(f"--layer-map {layer_map!r}: {words}")


def _layers(number: int) -> str:
    return f"layers 1 to {number}" if number > 1 else "one layer"
