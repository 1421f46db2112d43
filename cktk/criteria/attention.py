"""Attention blocks matched: scores, probabilities, and the relations of queries, keys and values."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cktk.criteria.base import HiddenLoss
from cktk.criteria.configs import AttentionMatch
from cktk.criteria.score_match import Products, Visible, divergence, squared_error
from cktk.errors import ConfigError
from cktk.protocols import (
    AttentionKind,
    AttentionPair,
    AttentionStates,
    LayerPair,
    ModelOutput,
    ModelShape,
    Side,
    Term,
    Unit,
)

_KINDS: dict[Side, tuple[AttentionKind, ...]] = {"encoder": ("encoder",), "decoder": ("decoder", "cross")}


def attention_pairs(pairs: tuple[LayerPair, ...]) -> tuple[AttentionPair, ...]:
    """The attention blocks in matched layers: encoder, then decoder, then cross attention.

    A decoder layer holds two blocks, since every decoder here attends to an encoder; embeddings (index 0) hold none.
    """
    return tuple(
        AttentionPair(kind, pair.student, pair.teacher)
        for side, kinds in _KINDS.items()
        for kind in kinds
        for pair in pairs
        if pair.side == side and pair.student and pair.teacher
    )


class AttentionLoss(HiddenLoss):
    """Distances of matched attention blocks, one for each of ``matches``, summed over pairs.

    - ``scores``: squared error of the scaled scores before the softmax (TinyBERT), T5's position bias among them,
      `squared_error`;
    - ``probabilities``: KL(teacher || student) of the attention before dropout, `divergence`;
    - ``queries``, ``keys``, ``values``: KL(teacher || student) of their relations softmax(X X' / sqrt(d_r)) in
      ``relation_heads`` heads of width d_r (MiniLMv2, Wang et al. 2021), of any widths and numbers of
      attention heads. Relations have no causal mask: they compare positions that are all given, nothing is predicted
      from them, and with it the first rows would have nothing to compare.

    Pads are neither rows nor columns. Values are sums over query rows of means over heads; relations of keys and values
    in cross attention have the encoder's rows.

    ``relation_heads`` defaults to the teacher's heads of that kind. Raises `ConfigError` where it has to divide both
    widths and does not.
    """

    def __init__(
        self,
        attention: tuple[AttentionPair, ...],
        matches: tuple[AttentionMatch, ...],
        relation_heads: int | None,
        student: ModelShape,
        teacher: ModelShape,
    ) -> None:
        super().__init__(attention=attention)
        self.matches = tuple(dict.fromkeys(matches))
        relations = {"queries", "keys", "values"} & {*self.matches}
        kinds = dict.fromkeys(pair.kind for pair in attention if relations)
        self._relation_heads = {kind: _relation_heads(relation_heads, kind, student, teacher) for kind in kinds}

    def terms(self, student: ModelOutput, teacher: ModelOutput) -> list[Term]:
        """One term per unit, source or target token: the sum over matches, pairs and rows.

        Logged are each pair as ``match/kind attention i<-j``, and their mean as ``attention/match/kind``.
        """
        found: dict[Unit, dict[str, dict[str, Tensor]]] = {}
        for match in self.matches:
            for pair in self.attention:
                own, target = student.attention[pair.kind, pair.student], teacher.attention[pair.kind, pair.teacher]
                group = found.setdefault(_unit(match, pair.kind), {}).setdefault(f"attention/{match}/{pair.kind}", {})
                group[f"{match}/{pair}"] = self._distance(match, pair.kind, own, target)
        return [_term(unit, groups) for unit, groups in found.items()]

    def _distance(
        self, match: AttentionMatch, kind: AttentionKind, own: AttentionStates, target: AttentionStates
    ) -> Tensor:
        """Sum over rows of the mean over heads."""
        if match == "scores" or match == "probabilities":
            compare = squared_error if match == "scores" else divergence
            return compare(_scores(own), _scores(target), Visible(own.query_rows, own.key_rows, own.causal))
        heads = self._relation_heads[kind]
        rows = own.key_rows if _unit(match, kind) == "source_token" else own.query_rows
        return divergence(_relations(own, match, heads), _relations(target, match, heads), Visible(rows, rows, False))


def _unit(match: AttentionMatch, kind: AttentionKind) -> Unit:
    """What the rows are: positions of the source or of the target."""
    of_source = kind == "encoder" or (kind == "cross" and match in ("keys", "values"))
    return "source_token" if of_source else "target_token"


def _term(unit: Unit, groups: dict[str, dict[str, Tensor]]) -> Term:
    parts: dict[str, Tensor] = {}
    for name, values in groups.items():
        parts[name] = torch.stack([*values.values()]).detach().mean()
        parts |= {pair: value.detach() for pair, value in values.items()}
    total = torch.stack([value for values in groups.values() for value in values.values()]).sum()
    return Term("attention", total, unit, parts=parts)


def _scores(block: AttentionStates) -> Products:
    return Products(block.query, block.key, block.heads, block.scale, block.bias)


def _relations(block: AttentionStates, match: AttentionMatch, heads: int) -> Products:
    rows = {"queries": block.query, "keys": block.key, "values": block.value}[match]
    return Products(rows, rows, heads, (rows.shape[-1] / heads) ** -0.5)


def _relation_heads(wanted: int | None, kind: AttentionKind, student: ModelShape, teacher: ModelShape) -> int:
    side: Side = "encoder" if kind == "encoder" else "decoder"
    heads = wanted or teacher.sides[side].heads
    widths = {"student": student.attention_width(side), "teacher": teacher.attention_width(side)}
    for model, width in widths.items():
        if width % heads:
            common = math.gcd(*widths.values())
            choice = ", ".join(str(number) for number in range(1, common + 1) if common % number == 0)
            default = "" if wanted else " (the teacher's)"
            raise ConfigError(
                f"--relation-heads {heads}{default} does not divide the {model}'s attention width {width}; "
                f"give a number that divides both widths: {choice}"
            )
    return heads
