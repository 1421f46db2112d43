"""Opening students, and building new ones, in one call each; `hubconf.py` offers these through torch.hub."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig

from cktk.architectures.configs import HeadKind
from cktk.architectures.ensemble import member_paths, open_members, writing_family
from cktk.architectures.families.encoder_family import EncoderFamily
from cktk.architectures.families.family import Family, registered_family
from cktk.architectures.folders import model_folder
from cktk.architectures.initialisation.initialise import initialise
from cktk.architectures.loading import load_config, load_model, load_tokenizer
from cktk.architectures.presets import STUDENTS
from cktk.architectures.spec import StudentSpec
from cktk.architectures.vocabulary import check_vocabularies, folder_vocabulary
from cktk.config.options import checked
from cktk.data.context_config import InputConfig
from cktk.data.shards import DataFolder
from cktk.errors import CheckpointError, ConfigError
from cktk.export.ctranslate2_backend import open_ctranslate2
from cktk.export.ctranslate2_format import is_ctranslate2
from cktk.generation.configs import ModelConfig, SearchBatchConfig, SearchConfig
from cktk.generation.translator import Engine, Translator
from cktk.registry import TASKS
from cktk.tasks.decoding import SplitGenerator, WritesTexts, split_generator


def student_folder(path: str | Path) -> Path:
    """The model folder that ``path`` means: itself, the student of a checkpoint, or the best (else last) of a run.

    A hub name is returned as it is. Raises `CheckpointError` for a folder without a model.
    """
    return Path(model_folder(path))


def resolve_device(name: str) -> torch.device:
    """The torch device called ``name``; ``auto`` is the first GPU if there is one. Raises `CheckpointError`."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"--device {name}: cannot be used ({reason}); try --device cpu") from error
    return device


def student(
    path: str | Path,
    *,
    task: str = "translation",
    source_lang: str | None = None,
    target_lang: str | None = None,
    device: str = "auto",
    max_source_positions: int | None = None,
    max_tokens: int | None = None,
    batch_size: int | None = None,
    allow_bin_weights: bool = False,
    precision: str = "float32",
    inputs: InputConfig | None = None,
    **options: Any,
) -> Translator:
    """A student ready to translate or summarise: ``student(path).translate(["Hello."])``.

    ``path`` is a student folder, a checkpoint folder, a run directory or a hub name; several with colons between write
    together, by the mean of their probabilities. ``precision`` is float32, float16 or bfloat16. ``task`` says how a
    line break inside of an output is written: as a space, or with "summarization" as ``<n>``. ``options`` are the
    fields of `SearchConfig` (``beam``, ``lenpen``, ...) and, without ``inputs``, of `InputConfig`: ``source_prompt``
    and the context of ``context_size`` sentences before each (texts are then the sentences of a document up to the
    next blank one). Raises `CheckpointError` if there is no such model, or a damaged one, `ConfigError` for options
    that are not in their range, for a task whose models write no texts, and for models that do not write together, and
    `RegistryError` for a task that is not known.
    """
    line_break = _writing_task(task).line_break
    shown = {option.name: options.pop(option.name) for option in fields(InputConfig) if option.name in options}
    search, inputs = checked(SearchConfig, **options), inputs or checked(InputConfig, **shown)
    path, *further = member_paths(path)
    config = load_config(path)
    family = writing_family(path, config)
    where = resolve_device(device)
    model, engine = _opened(path, search, where, allow_bin_weights)
    if further and engine is not None:
        raise ConfigError("--backend ctranslate2 takes one model; give one --path, or use --backend cktk")
    others = open_members(path, further, device=where, allow_bin_weights=allow_bin_weights)
    if precision != "float32":
        _convert([model, *(other for other, _ in others)], precision, search)
    found = Translator(
        model,
        load_tokenizer(path),
        search,
        layout=family.decoder_layout(model.config),
        decoder_start=family.decoder_start(model.config),
        source_lang=source_lang,
        target_lang=target_lang,
        max_source_positions=max_source_positions,
        max_tokens=max_tokens,
        batch_size=batch_size,
        inputs=inputs,
        engine=engine,
        others=others,
    )
    found.line_break = line_break
    return found


def _opened(
    path: str | Path, search: SearchConfig, device: torch.device, allow_bin_weights: bool
) -> tuple[Any, Engine | None]:
    """The model, and what searches in the place of our own decoder."""
    if search.backend == "ctranslate2":
        return open_ctranslate2(path, search, device=str(device), allow_bin_weights=allow_bin_weights)
    if is_ctranslate2(model_folder(path)):
        raise CheckpointError(f"{path}: holds a model of CTranslate2; add --backend ctranslate2 (backend=...)")
    return load_model(path, allow_bin_weights=allow_bin_weights, device=device), None


def _convert(models: Sequence[Any], precision: str, search: SearchConfig) -> None:
    if precision not in ("float16", "bfloat16"):
        raise ConfigError(f"precision {precision}: unknown; choose float32, float16 or bfloat16")
    if search.quantization != "none" or search.backend != "cktk":
        flag = "--quantization int8" if search.quantization != "none" else f"--backend {search.backend}"
        raise ConfigError(f"--fp16 and --bf16 do not go with {flag}; leave one out")
    for model in models:
        model.to(getattr(torch, precision))


def _writing_task(name: str) -> WritesTexts:
    """The row ``name`` of `TASKS`."""
    kind = TASKS.target(name)
    if not isinstance(kind, WritesTexts):
        raise ConfigError(f"task {name}: its models write no texts; give translation or summarization")
    return kind


def open_translator(
    path: str | Path,
    model: ModelConfig,
    search: SearchConfig,
    batches: SearchBatchConfig,
    inputs: InputConfig | None = None,
    task: str = "translation",
) -> Translator:
    """`student` with the options of the command line."""
    return student(
        path,
        task=task,
        source_lang=model.source_lang,
        target_lang=model.target_lang,
        device=model.device,
        max_source_positions=model.max_source_positions,
        max_tokens=batches.max_tokens,
        batch_size=batches.batch_size,
        allow_bin_weights=model.allow_bin_weights,
        precision=model.precision,
        inputs=inputs,
        **vars(search),
    )


def open_split(
    path: str | Path,
    data_bin: str,
    model: ModelConfig,
    search: SearchConfig,
    batches: SearchBatchConfig,
    inputs: InputConfig | None = None,
    task: str = "translation",
) -> SplitGenerator:
    """A student and a data folder made with the same tokenizer; for translation in the direction asked for.

    Raises `ConfigError` if their tokenizers differ, besides what opening either raises, `student` and
    `split_generator`.
    """
    data, first = DataFolder(data_bin), member_paths(path)[0]
    check_vocabularies(
        folder_vocabulary(f"the model {first}", first, load_config(first).vocab_size),
        folder_vocabulary(f"the data {data_bin}", data.tokenizer_path, data.vocab_size, data.fingerprint),
    )
    translator = open_translator(path, model, search, batches, inputs, task)
    return split_generator(
        _writing_task(task),
        translator,
        data,
        inputs=inputs,
        source_lang=model.source_lang,
        target_lang=model.target_lang,
    )


def _standard_config(family: Family, spec: StudentSpec, vocab_size: int | None, max_positions: int) -> PreTrainedConfig:
    """A configuration of ``spec``'s sizes with the special tokens of the family's published models."""
    standard = family.config_class()
    return family.base_config(
        vocab_size=vocab_size or standard.vocab_size,
        pad=standard.pad_token_id,
        bos=getattr(standard, "bos_token_id", None),
        eos=standard.eos_token_id,
        max_positions=max_positions,
        spec=spec,
    )


def build_student(
    arch: str,
    *,
    width: int | None = None,
    encoder_layers: int | None = None,
    decoder_layers: int | None = None,
    ffn_width: int | None = None,
    heads: int | None = None,
    head_width: int | None = None,
    teacher: str | Path | None = None,
    init: str = "random",
    init_checkpoint: str | Path | None = None,
    vocab_size: int | None = None,
    max_positions: int = 1024,
    head: HeadKind | None = None,
    labels: int | None = None,
    allow_bin_weights: bool = False,
) -> Any:
    """A new Hugging Face model of family ``arch`` with this width and depth.

    ``arch`` may also be a name such as ``bart_6x640`` (see `cktk.architectures.presets`), which stands for sizes; those
    given here go before it. With a ``teacher`` (folder or hub name) vocabulary, positions and special tokens are the
    teacher's, and ``init`` may take weights from it; otherwise sizes are those given and special tokens those of the
    family's published models. ``init_checkpoint`` is the earlier student of ``init="checkpoint"``. An encoder-only
    model takes no ``decoder_layers``; it ends in ``head``, the teacher's by default, a classifier in one of ``labels``
    classes. Raises `ConfigError` where these do not fit.
    """
    preset = dict(STUDENTS[arch].values) if arch in STUDENTS else {"arch": arch}
    family = registered_family(preset.pop("arch"))
    named = {size: int(text) for size, text in preset.items()}
    if not isinstance(family, EncoderFamily) and (head is not None or labels is not None):
        raise ConfigError(f"{arch} models have one kind of head: leave head and labels out")
    earlier = None
    if init_checkpoint is not None:
        earlier = load_model(init_checkpoint, allow_bin_weights=allow_bin_weights)
        family.check_type(earlier.config, f"the model {init_checkpoint}")
    spec = StudentSpec(
        width=named.get("width") if width is None else width,
        encoder_layers=named.get("encoder_layers") if encoder_layers is None else encoder_layers,
        decoder_layers=named.get("decoder_layers") if decoder_layers is None else decoder_layers,
        ffn_width=named.get("ffn_width") if ffn_width is None else ffn_width,
        heads=heads,
        head_width=head_width,
        init=init,
        head=head,
        labels=labels,
    )
    if earlier is not None and init == "checkpoint":
        spec = spec.like(family.shape(earlier.config))
    if teacher is None:
        model = family.student(_standard_config(family, spec, vocab_size, max_positions), spec)
        initialise(model, init, checkpoint=earlier)
        family.set_generation(model)
        return model
    source = load_model(teacher, allow_bin_weights=allow_bin_weights)
    model = family.student(source.config, spec)
    initialise(model, init, teacher=source, checkpoint=earlier)
    family.set_generation(model, getattr(source, "generation_config", None))
    return model
