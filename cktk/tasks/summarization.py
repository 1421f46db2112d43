"""Summarization: a document and its summary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cktk.data.context_config import InputConfig
from cktk.data.mixtures.corpora import Corpora
from cktk.data.prompts import prompt_ids
from cktk.data.shards import DataFolder
from cktk.data.tokenization.tokenizers import open_tokenizer
from cktk.distributed.world import World
from cktk.errors import ConfigError
from cktk.evaluation.rouge import LINE_BREAK, ROUGE, score_summaries
from cktk.tasks.configs import SummarizationConfig
from cktk.tasks.pairs import PairCorpus, text_side
from cktk.tasks.scoring import OutputScorer
from cktk.tasks.sequence import SequenceTask


class SummarizationTask(SequenceTask):
    """Batches for sequence-to-sequence models from documents (column ``source``) and summaries (column ``target``).

    Both are cut so that, with the tokens around them, they keep to the maximum positions of ``config`` and to
    ``max_positions``, the most that the model takes. Raises `DataError` for a folder without these columns,
    `ConfigError` for positions that leave no room for text.
    """

    line_break = LINE_BREAK

    def __init__(
        self,
        config: SummarizationConfig,
        data: Corpora | DataFolder,
        *,
        pad: int,
        decoder_start: int | None,
        max_positions: int | None = None,
    ) -> None:
        self._config = config
        folder = data if isinstance(data, DataFolder) else data.single("--task summarization")
        prompt: tuple[int, ...] = ()
        if config.source_prompt:  # opening a tokenizer takes a moment, which training without prompt does without
            languages = [folder.languages.get(column, "") for column in ("source", "target")]
            prompt = prompt_ids(open_tokenizer(folder.tokenizer_path), config.source_prompt, *languages)
        limits = (config.max_source_positions, config.max_target_positions)
        source, target = (min(limit, max_positions or limit) for limit in limits)
        corpus = PairCorpus(
            folder.path.name,
            folder,
            text_side(folder, "source", "source", source, prompt),
            text_side(folder, "target", "target", target),
        )
        super().__init__(config, corpus, pad=pad, decoder_start=decoder_start)

    @staticmethod
    def output_config(
        data: DataFolder,
        inputs: InputConfig,
        languages: tuple[str | None, str | None],
        *,
        max_source_positions: int,
        max_target_positions: int,
    ) -> SummarizationConfig:
        """See `WritesTexts.output_config`."""
        if inputs.context_size:
            raise ConfigError("--context-size: documents to summarise have no sentences before them; leave it out")
        for role, asked in zip(("source", "target"), languages, strict=True):
            if asked not in (None, data.languages.get(role, "")):
                raise ConfigError(
                    f"--{role}-lang {asked}: {data.path} was made with another --lang, or none; leave it out"
                )
        return SummarizationConfig(
            source_prompt=inputs.source_prompt,
            max_source_positions=max_source_positions,
            max_target_positions=max_target_positions,
        )

    def describe(self) -> list[str]:
        """See `Task.describe`."""
        lines = [self.describe_split("train", "documents with summaries")]
        if blank := self.rows("train").blank():
            lines.append(f"train: {blank} documents are empty; cktk-preprocess --empty-lines drop leaves them out")
        return lines

    def scorer(
        self, model: Any, tokenizer: Any, split_name: str, world: World, max_tokens: int | None
    ) -> OutputScorer | None:
        """What a validation calls for ROUGE of ``split_name``; None where it is not wanted."""
        config = self._config
        if not config.eval_rouge:
            return None
        return OutputScorer(
            self.rows(split_name),
            self.decoding_start,
            model,
            tokenizer,
            config.search,
            self._score,
            world,
            first_rows=config.eval_rouge_documents,
            max_tokens=max_tokens,
            line_break=self.line_break,
        )

    def _score(self, hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, float]:
        """ROUGE by the names that logs have for it."""
        config = self._config
        scores = score_summaries(hypotheses, references, stemmer=config.rouge_stemmer, lsum=config.rouge_lsum)
        return {name: getattr(scores, name) for name in ROUGE}
