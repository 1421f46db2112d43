"""One small registry class and the tables of what cktk ships.

A row names two lazy targets, ``module:attribute``: a torch-free config dataclass and the component itself. Nothing is
imported until a row is asked for, so ``import cktk`` and ``--help`` stay fast.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from cktk.errors import RegistryError
from cktk.utils.words import unknown_name


class Entry(NamedTuple):
    """Where a component lives: targets are ``"module:attribute"`` strings or the objects themselves."""

    config: str | type
    target: str | Callable[..., Any]


class Registry:
    """Names of one kind of component.

    ``kind`` is the flag that chooses from the registry, without its dashes (``criterion`` for ``--criterion``).
    """

    def __init__(self, kind: str, table: Mapping[str, tuple[str, str]]) -> None:
        self.kind = kind
        self._entries = {name: Entry(*row) for name, row in table.items()}

    def names(self) -> list[str]:
        """All registered names, sorted."""
        return sorted(self._entries)

    def config(self, name: str) -> type:
        """The config dataclass of ``name``."""
        found = _resolve(self._entry(name).config)
        assert isinstance(found, type)
        return found

    def target(self, name: str) -> Callable[..., Any]:
        """The component registered as ``name``."""
        found: Callable[..., Any] = _resolve(self._entry(name).target)
        assert callable(found)
        return found

    def register(self, name: str, config: type) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Decorator for plug-ins: ``@CRITERIA.register("my_kd", MyConfig)``. A name that is taken is refused."""

        def add(target: Callable[..., Any]) -> Callable[..., Any]:
            if name in self._entries:
                raise RegistryError(
                    f"--{self.kind} {name} is registered twice: by {_where(self._entries[name].target)} "
                    f"and by {_where(target)}; rename one of them"
                )
            self._entries[name] = Entry(config, target)
            return target

        return add

    def _entry(self, name: str) -> Entry:
        if name in self._entries:
            return self._entries[name]
        raise RegistryError(
            f"--{self.kind}: {unknown_name(name, self.names())} "
            "(plug-ins are loaded with --user-dir or the entry point group cktk.plugins)"
        )


def _resolve(target: str | Any) -> Any:
    if not isinstance(target, str):
        return target
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _where(target: str | Callable[..., Any]) -> str:
    return target.partition(":")[0] if isinstance(target, str) else target.__module__


CRITERIA = Registry(
    "criterion",
    {
        "cross_entropy": ("cktk.criteria.configs:CrossEntropyConfig", "cktk.criteria.compose:cross_entropy"),
        "kl_kd": ("cktk.criteria.configs:KlKdConfig", "cktk.criteria.compose:kl_kd"),
        "cka_kd": ("cktk.criteria.configs:CkaKdConfig", "cktk.criteria.compose:cka_kd"),
        "linear_kd": ("cktk.criteria.configs:LinearKdConfig", "cktk.criteria.compose:linear_kd"),
        "cosine_kd": ("cktk.criteria.configs:CosineKdConfig", "cktk.criteria.compose:cosine_kd"),
        "procrustes_kd": ("cktk.criteria.configs:ProcrustesKdConfig", "cktk.criteria.compose:procrustes_kd"),
        "gram_kd": ("cktk.criteria.configs:GramKdConfig", "cktk.criteria.compose:gram_kd"),
        "attention_kd": ("cktk.criteria.configs:AttentionKdConfig", "cktk.criteria.compose:attention_kd"),
        "internal_kd": ("cktk.criteria.configs:InternalKdConfig", "cktk.criteria.internal.criterion:internal_kd"),
    },
)

ARCHITECTURES = Registry(
    "arch",
    {
        "bart": ("cktk.architectures.configs:StudentConfig", "cktk.architectures.families.bart:BartFamily"),
        "mbart": ("cktk.architectures.configs:StudentConfig", "cktk.architectures.families.mbart:MBartFamily"),
        "marian": ("cktk.architectures.configs:StudentConfig", "cktk.architectures.families.marian:MarianFamily"),
        "bert": ("cktk.architectures.configs:EncoderConfig", "cktk.architectures.families.bert:BertFamily"),
        "roberta": ("cktk.architectures.configs:EncoderConfig", "cktk.architectures.families.roberta:RobertaFamily"),
        "distilbert": (
            "cktk.architectures.configs:EncoderConfig",
            "cktk.architectures.families.distilbert:DistilBertFamily",
        ),
        "t5": ("cktk.architectures.configs:StudentConfig", "cktk.architectures.families.t5:T5Family"),
        "mt5": ("cktk.architectures.configs:StudentConfig", "cktk.architectures.families.t5:MT5Family"),
    },
)

TASKS = Registry(
    "task",
    {
        "translation": ("cktk.tasks.configs:TranslationConfig", "cktk.tasks.translation:TranslationTask"),
        "summarization": ("cktk.tasks.configs:SummarizationConfig", "cktk.tasks.summarization:SummarizationTask"),
        "glue": ("cktk.tasks.configs:GlueConfig", "cktk.tasks.glue:GlueTask"),
        "pretraining": ("cktk.tasks.pretraining_config:PretrainingConfig", "cktk.tasks.pretraining:PretrainingTask"),
    },
)

#: Metrics of a task and their options, which `cktk-generate` and `cktk-evaluate` choose by ``--task``.
EVALUATIONS = Registry(
    "task",
    {
        "translation": ("cktk.evaluation.configs:BleuConfig", "cktk.evaluation.bleu:translation_scorer"),
        "summarization": ("cktk.evaluation.configs:RougeConfig", "cktk.evaluation.rouge:rouge_scorer"),
        "glue": ("cktk.evaluation.configs:GlueMetricsConfig", "cktk.evaluation.glue:score_answers"),
    },
)

OPTIMIZERS = Registry(
    "optimizer",
    {
        "adam": ("cktk.optim.configs:AdamConfig", "cktk.optim.optimizers:adam"),
        "adamw": ("cktk.optim.configs:AdamConfig", "cktk.optim.optimizers:adamw"),
    },
)

LR_SCHEDULERS = Registry(
    "lr-scheduler",
    {
        "inverse_sqrt": ("cktk.optim.configs:InverseSqrtConfig", "cktk.optim.schedules:InverseSqrt"),
        "linear": ("cktk.optim.configs:DecayConfig", "cktk.optim.schedules:Linear"),
        "cosine": ("cktk.optim.configs:DecayConfig", "cktk.optim.schedules:Cosine"),
        "polynomial": ("cktk.optim.configs:PolynomialConfig", "cktk.optim.schedules:Polynomial"),
        "constant": ("cktk.optim.configs:WarmupConfig", "cktk.optim.schedules:Constant"),
    },
)

LAYOUTS = Registry(
    "task",
    {
        "translation": (
            "cktk.data.preprocessing.layout_configs:TranslationDataConfig",
            "cktk.data.preprocessing.layouts:translation",
        ),
        "summarization": (
            "cktk.data.preprocessing.layout_configs:SummarizationDataConfig",
            "cktk.data.preprocessing.layouts:summarization",
        ),
        "glue": ("cktk.data.preprocessing.layout_configs:GlueDataConfig", "cktk.data.preprocessing.layouts:glue"),
        "pretraining": (
            "cktk.data.preprocessing.layout_configs:PretrainingDataConfig",
            "cktk.data.preprocessing.layouts:pretraining",
        ),
    },
)

SOURCES = Registry(
    "source",
    {
        "text": ("cktk.data.preprocessing.configs:TextSourceConfig", "cktk.data.sources.sources:TextSource"),
        "tsv": ("cktk.data.preprocessing.configs:DelimitedSourceConfig", "cktk.data.sources.tables:TsvSource"),
        "csv": ("cktk.data.preprocessing.configs:DelimitedSourceConfig", "cktk.data.sources.tables:CsvSource"),
        "jsonl": ("cktk.data.preprocessing.configs:TableSourceConfig", "cktk.data.sources.tables:JsonlSource"),
        "parquet": ("cktk.data.preprocessing.configs:TableSourceConfig", "cktk.data.sources.tables:ParquetSource"),
        "datasets": (
            "cktk.data.preprocessing.configs:DatasetsSourceConfig",
            "cktk.data.sources.hub_source:DatasetsSource",
        ),
        "glue": ("cktk.data.preprocessing.configs:GlueSourceConfig", "cktk.data.sources.glue_files:GlueSource"),
    },
)

TOKENIZERS = Registry(
    "train-tokenizer",
    {
        "unigram": (
            "cktk.data.preprocessing.configs:UnigramTokenizerConfig",
            "cktk.data.tokenization.unigram:train_unigram",
        )
    },
)

ALL_REGISTRIES = (CRITERIA, ARCHITECTURES, TASKS, EVALUATIONS, OPTIMIZERS, LR_SCHEDULERS, SOURCES, TOKENIZERS)
