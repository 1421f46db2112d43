"""Quality of the student's output in training: beam search over the validation split, shared among ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from cktk.architectures.families.family import family_of
from cktk.distributed.world import World
from cktk.generation.beam import DEFAULT_BATCH_SIZE, BeamSearch
from cktk.generation.configs import SearchConfig
from cktk.generation.context import Beginning, ContextualSearch
from cktk.generation.translator import decode_line
from cktk.protocols import DecodingStart, Hypothesis
from cktk.tasks.pairs import PairRows

#: (hypotheses, references) -> figures by name.
Score = Callable[[Sequence[str], Sequence[str]], dict[str, float]]


class OutputScorer:
    """What ``score`` says of the outputs for a split's first rows (``first_rows``, 0: all); the same on all ranks.

    References are the decoded target ids; a row without source text gives an empty output, as with `cktk-generate`.
    A batch of the search holds at most ``max_tokens`` (sentences x longest source), as in training, and no more
    sentences than `cktk-generate` takes, since short ones have as many logits each as long ones. ``line_break`` stands
    for a line break inside of a text.
    """

    def __init__(
        self,
        rows: PairRows,
        start: DecodingStart,
        model: Any,
        tokenizer: Any,
        search: SearchConfig,
        score: Score,
        world: World,
        *,
        first_rows: int = 0,
        max_tokens: int | None = None,
        line_break: str = " ",
    ) -> None:
        self._line_break = line_break
        self._rows, self._start, self._tokenizer, self._world = rows, start, tokenizer, world
        self._score, self._max_tokens = score, max_tokens
        search.check_vocabulary(model.config.vocab_size)
        layout = family_of(model.config.model_type, "the student").decoder_layout(model.config)
        # A search reads the weights once, and they change between two validations.
        self._new_search = partial(BeamSearch, model, search, layout)
        self._runs = rows.runs(min(first_rows or len(rows), len(rows)))

    @property
    def figures(self) -> tuple[str, ...]:
        """The names of the figures."""
        return tuple(self._score(["a"], ["a"]))

    def __call__(self) -> dict[str, float]:
        """Generate this rank's share, gather all, and score."""
        rank, size = self._world.rank, self._world.size
        dealt = [[row for run in self._runs[other::size] for row in run] for other in range(size)]
        shares = self._world.gather_sequences(self._generate(dealt[rank]))
        numbered = [pair for rows, share in zip(dealt, shares, strict=True) for pair in zip(rows, share, strict=True)]
        hypotheses = [ids for _, ids in sorted(numbered)]
        references = [self._rows.reference_ids(row).tolist() for row in range(len(hypotheses))]
        return self._score(self._decode(hypotheses), self._decode(references))

    def _generate(self, rows: list[int]) -> list[list[int]]:
        """Ids of the best hypothesis of each row."""
        found: dict[int, list[int]] = {row: [] for row in rows}
        written = [row for row in rows if not self._rows.is_blank(row)]
        outputs = ContextualSearch(self._rows.target, self._rows.context, self._tokenizer.all_special_ids)
        hypotheses = outputs(self._rows, written, None, partial(self._find, self._new_search()))
        found.update({row: list(best[0].tokens) for row, best in zip(written, hypotheses, strict=True)})
        return list(found.values())

    def _find(self, search: BeamSearch, rows: Sequence[int], beginnings: Sequence[Beginning]) -> list[list[Hypothesis]]:
        return search.generate(
            [self._rows.source_ids(row) for row in rows],
            max_tokens=self._max_tokens,
            batch_size=DEFAULT_BATCH_SIZE,
            prefixes=[beginning.ids for beginning in beginnings],
            forced_bos=self._start.forced_bos,
            decoder_start=self._start.token,
            context=[beginning.context for beginning in beginnings],
        )

    def _decode(self, sequences: list[list[int]]) -> list[str]:
        return [decode_line(self._tokenizer, ids, self._line_break) for ids in sequences]


class CorporaScorer:
    """The figures of several corpora: of each as ``bleu/NAME``, and their means; of a single one its own alone."""

    def __init__(self, scorers: Mapping[str, OutputScorer]) -> None:
        self._scorers = scorers

    @property
    def figures(self) -> tuple[str, ...]:
        """The names of the figures."""
        kinds = next(iter(self._scorers.values())).figures
        if len(self._scorers) == 1:
            return kinds
        return kinds + tuple(f"{kind}/{name}" for name in self._scorers for kind in kinds)

    def __call__(self) -> dict[str, float]:
        """All figures; the same on all ranks."""
        figures = {name: scorer() for name, scorer in self._scorers.items()}
        kinds = next(iter(figures.values()))
        means = {kind: sum(found[kind] for found in figures.values()) / len(figures) for kind in kinds}
        if len(figures) == 1:
            return means
        return means | {f"{kind}/{name}": found[kind] for name, found in figures.items() for kind in kinds}
