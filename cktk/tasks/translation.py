"""Translation: pairs of data folders become the batches of an encoder-decoder, in either direction or both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cktk.data.context_config import InputConfig
from cktk.data.framing import Context
from cktk.data.mixtures.corpora import Corpora
from cktk.data.prompts import prompt_ids
from cktk.data.shards import DataFolder, Role
from cktk.data.tokenization.tokenizers import open_tokenizer
from cktk.distributed.world import World
from cktk.errors import ConfigError, DataError
from cktk.evaluation.bleu import bleu_and_chrf
from cktk.tasks.configs import TranslationConfig
from cktk.tasks.pairs import PairCorpus, text_side
from cktk.tasks.scoring import CorporaScorer, OutputScorer
from cktk.tasks.sequence import SequenceTask


class TranslationTask(SequenceTask):
    """Batches for sequence-to-sequence models from data folders with the columns ``source`` and ``target``.

    Texts are cut so that, with the tokens around them, they keep to the maximum positions of ``config`` and to
    ``max_positions``, the most that the model takes; sentences of context have what room a text leaves. A folder in one
    direction is a corpus; figures about it bear the folder's name, with the direction where there are both. Raises
    `ConfigError` for languages that a folder does not hold, positions that leave no room for text and a separator that
    is no token, `DataError` for a folder of another kind.

    ``source_lang`` and ``target_lang`` are the direction of the first corpus.
    """

    def __init__(
        self,
        config: TranslationConfig,
        data: Corpora | DataFolder,
        *,
        pad: int,
        decoder_start: int | None,
        max_positions: int | None = None,
    ) -> None:
        self._config = config
        corpora = Corpora.of(data) if isinstance(data, DataFolder) else data
        self._folders = corpora.folders
        # Opening a tokenizer takes a moment, which training without prompt and context does without.
        asked = config.source_prompt or config.context_size
        self._tokenizer: Any = open_tokenizer(corpora.tokenizer_path) if asked else None
        self._context = Context.of(config, self._tokenizer)
        limits = (config.max_source_positions, config.max_target_positions)
        self._limits = tuple(min(limit, max_positions or limit) for limit in limits)
        self._folder_of = {corpus.name: folder for folder in self._folders for corpus in self._directions(folder)}
        made = [corpus for folder in self._folders for corpus in self._directions(folder)]
        super().__init__(config, *made, pad=pad, decoder_start=decoder_start)
        self.source_lang, self.target_lang = self._languages(self.corpus)
        self._check_shares()

    @staticmethod
    def output_config(
        data: DataFolder,  # noqa: ARG004 - building the task compares the languages
        inputs: InputConfig,
        languages: tuple[str | None, str | None],
        *,
        max_source_positions: int,
        max_target_positions: int,
    ) -> TranslationConfig:
        """See `WritesTexts.output_config`."""
        source_lang, target_lang = languages
        return TranslationConfig(
            **vars(inputs),
            source_lang=source_lang,
            target_lang=target_lang,
            max_source_positions=max_source_positions,
            max_target_positions=max_target_positions,
        )

    def shares(self, rows: Mapping[str, int]) -> dict[str, float]:
        """See `SequenceTask.shares`: those of the mixture for each folder, which its directions part equally."""
        of_folders = dict.fromkeys((self._folder_of[name] for name in rows), 0)
        for name, number in rows.items():
            of_folders[self._folder_of[name]] += number
        shares = self._config.shares(of_folders)
        directions = 2 if self._config.bidirectional else 1
        return {name: shares[self._folder_of[name]] / directions for name in rows}

    def row_settings(self) -> dict[str, Any]:
        """See `FixedRows.row_settings`."""
        return {"source_lang": self.source_lang, "target_lang": self.target_lang, **super().row_settings()}

    def describe(self) -> list[str]:
        """See `Task.describe`."""
        trained = [self._corpora[name] for name in self.corpora("train")]
        shares = self.shares({corpus.name: len(corpus.data.split("train")) for corpus in trained})
        lines = [f"{name}: has no train split and is only validated on" for name in self._corpora if name not in shares]
        for corpus in trained:
            share = f"{corpus.name}, {shares[corpus.name]:.3g} of the mixture: " if len(trained) > 1 else ""
            lines.append(share + self.describe_split("train", f"pairs {'-'.join(self._languages(corpus))}", corpus))
            if corpus.source.prompt:
                lines.append(f"prompt of {'-'.join(self._languages(corpus))}: {self._decoded(corpus.source.prompt)!r}")
        if self._context:
            target = {"none": "not shown", "given": "given", "generated": "scored too"}[self._context.target]
            lines.append(
                f"context: up to {self._context.size} sentences of the same document before each source, each ended by "
                f"{self._tokenizer.convert_ids_to_tokens(self._context.separator)}; before the target {target}"
            )
        return lines

    def scorer(
        self, model: Any, tokenizer: Any, split_name: str, world: World, max_tokens: int | None
    ) -> CorporaScorer | None:
        """What a validation calls for BLEU and chrF of ``split_name``; None where they are not wanted."""
        config = self._config
        if not config.eval_bleu:
            return None
        return CorporaScorer(
            {
                name: OutputScorer(
                    self._corpora[name].rows(split_name),
                    self.start_of(self._corpora[name]),
                    model,
                    tokenizer,
                    config.search,
                    bleu_and_chrf,
                    world,
                    first_rows=config.eval_bleu_sentences,
                    max_tokens=max_tokens,
                )
                for name in self.corpora(split_name)
            }
        )

    def _directions(self, folder: str) -> Iterator[PairCorpus]:
        """The corpora of a folder: one, or with ``bidirectional`` two."""
        data, several = self._folders[folder], len(self._folders) > 1
        source, target = _direction(self._config, data)
        for columns in ((source, target), (target, source)) if self._config.bidirectional else ((source, target),):
            languages = [data.languages[column] for column in columns]
            direction = "-".join(languages)
            both = f"{folder}.{direction}" if several else direction
            separator = self._context.separator if self._context else None
            prompt = prompt_ids(self._tokenizer, self._config.source_prompt, *languages)
            yield PairCorpus(
                both if self._config.bidirectional else folder,
                data,
                text_side(data, "source", columns[0], self._limits[0], prompt, separator),
                text_side(data, "target", columns[1], self._limits[1], (), separator),
                self._context,
            )

    def _languages(self, corpus: PairCorpus) -> tuple[str, str]:
        languages = corpus.data.languages
        return languages[corpus.source.column], languages[corpus.target.column]

    def _decoded(self, ids: tuple[int, ...]) -> str:
        return str(self._tokenizer.decode(list(ids)))

    def _check_shares(self) -> None:
        """Tell at the start what is wrong with the weights of a mixture."""
        if trained := [folder for folder, data in self._folders.items() if "train" in data.splits]:
            self._config.shares(dict.fromkeys(trained, 1))


def _direction(config: TranslationConfig, data: DataFolder) -> tuple[Role, Role]:
    """The columns to translate from and into: the languages asked for, and otherwise as the folder was made."""
    made: tuple[Role, Role] = ("source", "target")
    if missing := [column for column in made if column not in data.columns or column not in data.languages]:
        raise DataError(
            f"{data.path}: has no column {missing[0]} with a language (but {', '.join(data.columns)}); translation "
            "needs pairs in two languages: preprocess with --task translation"
        )
    for source, target in (made, (made[1], made[0])):
        asked = ((config.source_lang, source), (config.target_lang, target))
        if all(lang in (None, data.languages[column]) for lang, column in asked):
            return source, target
    flags = {"--source-lang": config.source_lang, "--target-lang": config.target_lang}
    given = " ".join(f"{flag} {lang}" for flag, lang in flags.items() if lang)
    raise ConfigError(
        f"{given}: {data.path} holds {' and '.join(data.languages[column] for column in made)}; translate from one of "
        "them into the other"
    )
