"""Translation: pairs of a data folder become the batches of an encoder-decoder, in either direction."""

from __future__ import annotations

from typing import Any

from cktk.data.prompts import prompt_ids
from cktk.data.shards import DataFolder, Role
from cktk.data.tokenizers import open_tokenizer
from cktk.distributed.world import World
from cktk.errors import ConfigError
from cktk.evaluation.bleu import bleu_and_chrf
from cktk.generation.configs import SearchConfig
from cktk.tasks.configs import TranslationConfig
from cktk.tasks.pairs import PairCorpus, text_side
from cktk.tasks.scoring import OutputScorer
from cktk.tasks.sequence import SequenceTask


class TranslationTask(SequenceTask):
    """Batches for sequence-to-sequence models from a data folder with the columns ``source`` and ``target``.

    Texts are cut so that, with the tokens around them, they keep to the maximum positions of ``config`` and to
    ``max_positions``, the most that the model takes. Raises `ConfigError` for languages that the folder does not hold
    and positions that leave no room for text, `DataError` for a folder of another kind.

    ``source_lang`` and ``target_lang`` are the direction in force.
    """

    def __init__(
        self,
        config: TranslationConfig,
        data: DataFolder,
        *,
        pad: int,
        decoder_start: int | None,
        max_positions: int | None = None,
    ) -> None:
        self._config = config
        columns = _direction(config, data)
        self.source_lang, self.target_lang = (data.languages[column] for column in columns)
        prompt = prompt_ids(open_tokenizer(data.tokenizer_path), config.source_prompt) if config.source_prompt else ()
        limits = (config.max_source_positions, config.max_target_positions)
        source, target = (min(limit, max_positions or limit) for limit in limits)
        corpus = PairCorpus(
            data.path.name,
            data,
            text_side(data, "source", columns[0], source, prompt),
            text_side(data, "target", columns[1], target),
        )
        super().__init__(config, corpus, pad=pad, decoder_start=decoder_start)

    def row_settings(self) -> dict[str, Any]:
        """See `FixedRows.row_settings`."""
        return {"source_lang": self.source_lang, "target_lang": self.target_lang, **super().row_settings()}

    def describe(self) -> list[str]:
        """See `Task.describe`."""
        return [self.describe_split("train", f"pairs {self.source_lang}-{self.target_lang}")]

    def scorer(
        self, model: Any, tokenizer: Any, split_name: str, world: World, max_tokens: int | None
    ) -> OutputScorer | None:
        """What a validation calls for BLEU and chrF of ``split_name``; None where they are not wanted."""
        config = self._config
        if not config.eval_bleu:
            return None
        search = SearchConfig(
            beam=config.eval_beam,
            lenpen=config.eval_lenpen,
            max_len_a=config.eval_max_len_a,
            max_len_b=config.eval_max_len_b,
        )
        return OutputScorer(
            self.rows(split_name),
            self.decoding_start,
            model,
            tokenizer,
            search,
            bleu_and_chrf,
            world,
            first_rows=config.eval_bleu_sentences,
            max_tokens=max_tokens,
        )


def _direction(config: TranslationConfig, data: DataFolder) -> tuple[Role, Role]:
    """The columns to translate from and into: the languages asked for, and otherwise as the folder was made."""
    made: tuple[Role, Role] = ("source", "target")
    for source, target in (made, (made[1], made[0])):
        asked = ((config.source_lang, source), (config.target_lang, target))
        if all(lang in (None, data.languages[column]) for lang, column in asked):
            return source, target
    flags = {"--source-lang": config.source_lang, "--target-lang": config.target_lang}
    given = " ".join(f"{flag} {lang}" for flag, lang in flags.items() if lang)
    raise ConfigError(
        f"{given}: {data.path} holds {' and '.join(data.languages.values())}; translate from one of them into the other"
    )
