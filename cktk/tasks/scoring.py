"""Translation quality of the student in training: beam search over the validation split, shared among ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cktk.data.shards import Split
from cktk.distributed.world import World
from cktk.evaluation.bleu import score_translations
from cktk.generation.beam import BeamSearch
from cktk.generation.configs import SearchConfig
from cktk.tasks.translation import TranslationTask


class TranslationScorer:
    """sacreBLEU and chrF of the first ``sentences`` rows of a split (0: all); the same values on all ranks.

    References are the decoded target ids of the split.
    """

    def __init__(
        self,
        task: TranslationTask,
        split: Split,
        model: Any,
        tokenizer: Any,
        search: SearchConfig,
        world: World,
        sentences: int = 0,
    ) -> None:
        self._task, self._split, self._model, self._tokenizer = task, split, model, tokenizer
        self._search, self._world = search, world
        self._rows = range(min(sentences or len(split), len(split)))

    def __call__(self) -> dict[str, float]:
        """Translate this rank's share, gather all, and score."""
        mine = self._rows[self._world.rank :: self._world.size]
        sources = [self._task.source_inputs(self._split, row) for row in mine]
        found = BeamSearch(self._model, self._search).generate(
            sources, forced_bos=self._task.forced_bos, decoder_start=self._task.decoder_start
        )
        shares = self._world.gather_sequences([list(best[0].tokens) for best in found])
        hypotheses = [ids for _, ids in sorted(_numbered(shares, self._world.size))]
        references = [self._task.reference_ids(self._split, row).tolist() for row in self._rows]
        decode: Callable[[list[list[int]]], list[str]] = self._decode
        scores = score_translations(decode(hypotheses), decode(references))
        return {"bleu": scores.bleu, "chrf": scores.chrf}

    def _decode(self, sequences: list[list[int]]) -> list[str]:
        return [self._tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in sequences]


def _numbered(shares: list[list[list[int]]], size: int) -> list[tuple[int, list[int]]]:
    """(row, ids) of every rank's share: rank r has rows r, r + size, ..."""
    return [(rank + size * place, ids) for rank, share in enumerate(shares) for place, ids in enumerate(share)]
