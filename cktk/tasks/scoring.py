"""Translation quality of the student in training: beam search over the validation split, shared among ranks."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from cktk.data.shards import Split
from cktk.distributed.world import World
from cktk.evaluation.bleu import score_translations
from cktk.generation.beam import DEFAULT_BATCH_SIZE, BeamSearch
from cktk.generation.configs import SearchConfig
from cktk.generation.translator import decode_line
from cktk.protocols import DecodingStart
from cktk.tasks.configs import TranslationConfig


class TranslationRows(Protocol):
    """What the scorer asks of a `TranslationTask`."""

    @property
    def decoding_start(self) -> DecodingStart: ...

    def is_blank(self, split: Split, index: int) -> bool: ...

    def source_inputs(self, split: Split, index: int) -> npt.NDArray[np.int64]: ...

    def reference_ids(self, split: Split, index: int) -> npt.NDArray[np.int64]: ...


class TranslationScorer:
    """sacreBLEU and chrF of a split's first rows (``config.eval_bleu_sentences``); the same values on all ranks.

    References are the decoded target ids; a row without source text is translated by nothing, as `cktk-generate` does.
    A batch of the search holds at most ``max_tokens`` (sentences x longest source), as in training, and no more
    sentences than `cktk-generate` takes, since short ones have as many logits each as long ones.
    """

    def __init__(
        self,
        task: TranslationRows,
        split: Split,
        model: Any,
        tokenizer: Any,
        config: TranslationConfig,
        world: World,
        max_tokens: int | None,
    ) -> None:
        self._task, self._split, self._tokenizer, self._world = task, split, tokenizer, world
        self._max_tokens = max_tokens
        self._search = BeamSearch(
            model,
            SearchConfig(
                beam=config.eval_beam,
                lenpen=config.eval_lenpen,
                max_len_a=config.eval_max_len_a,
                max_len_b=config.eval_max_len_b,
            ),
        )
        self._rows = range(min(config.eval_bleu_sentences or len(split), len(split)))

    def __call__(self) -> dict[str, float]:
        """Translate this rank's share, gather all, and score."""
        rank, size = self._world.rank, self._world.size
        shares = self._world.gather_sequences(self._translate(self._rows[rank::size]))
        # Rank r had rows r, r + size, ...
        numbered = [(r + size * i, ids) for r, share in enumerate(shares) for i, ids in enumerate(share)]
        hypotheses = [ids for _, ids in sorted(numbered)]
        references = [self._task.reference_ids(self._split, row).tolist() for row in self._rows]
        scores = score_translations(self._decode(hypotheses), self._decode(references))
        return {"bleu": scores.bleu, "chrf": scores.chrf}

    def _translate(self, rows: range) -> list[list[int]]:
        """Ids of the best hypothesis of each row."""
        found: dict[int, list[int]] = {row: [] for row in rows}
        written = [row for row in rows if not self._task.is_blank(self._split, row)]
        sources = [self._task.source_inputs(self._split, row) for row in written]
        start = self._task.decoding_start
        hypotheses = self._search.generate(
            sources,
            max_tokens=self._max_tokens,
            batch_size=DEFAULT_BATCH_SIZE,
            forced_bos=start.forced_bos,
            decoder_start=start.token,
        )
        found.update({row: list(best[0].tokens) for row, best in zip(written, hypotheses, strict=True)})
        return list(found.values())

    def _decode(self, sequences: list[list[int]]) -> list[str]:
        return [decode_line(self._tokenizer, ids) for ids in sequences]
