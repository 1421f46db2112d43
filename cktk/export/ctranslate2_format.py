"""Folders of CTranslate2: writing one from a student, and knowing one.

CTranslate2's own converter reads attributes of BART's configuration that transformers 5 no longer has, takes the norms
of mBART's and the scale of mT5's head from elsewhere than the model, and lets a vocabulary be shorter than the model.
Here its loaders are given a model whose configuration says what they read, and the vocabulary is listed id by id. What
is written is CTranslate2's, with the student's configuration and tokenizer beside: ``config.json`` holds the keys of
both, which no other key shares, so that Auto classes open configuration and tokenizer of the folder.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np

from cktk.architectures.families.family import family_of
from cktk.architectures.loading import make_readable
from cktk.data.tokenization.tokenizers import language_codes, probe_templates
from cktk.errors import CheckpointError, ConfigError
from cktk.export.optional import load
from cktk.generation.special_tokens import SpecialTokens
from cktk.protocols import DecoderLayout
from cktk.utils.files import read_json

WEIGHTS = "model.bin"

#: CTranslate2's loaders by model type.
_LOADERS = {"bart": "BartLoader", "marian": "BartLoader", "mbart": "BartLoader", "t5": "T5Loader", "mt5": "T5Loader"}

#: A key that every ``config.json`` of CTranslate2's encoder-decoders has, and none of transformers.
_OWN_KEY = "add_source_bos"


def is_ctranslate2(folder: Path | str) -> bool:
    """Whether ``folder`` holds a model of CTranslate2."""
    config = Path(folder) / "config.json"
    return (Path(folder) / WEIGHTS).is_file() and config.is_file() and _OWN_KEY in read_json(config)


def write_ctranslate2(model: Any, tokenizer: Any, folder: Path, quantization: str = "float32") -> None:
    """Write ``model`` with its tokenizer for CTranslate2 into the existing ``folder``.

    ``quantization`` is one of CTranslate2's. Raises `ConfigError` for a model that it does not take.
    """
    converters = load("ctranslate2", "ctranslate2.converters.transformers")
    config = model.config
    layout = _layout(config)
    activation = config.activation_function if hasattr(config, "activation_function") else config.dense_act_fn
    known = converters._SUPPORTED_ACTIVATIONS
    if activation not in known:
        raise ConfigError(
            f"--format ctranslate2 knows no activation {activation!r}, only {', '.join(sorted(known))}: use another "
            "format"
        )
    spec = getattr(converters, _LOADERS[config.model_type])().get_model_spec(_described(model, layout))
    _set_heads(spec, config)
    tokens = token_table(tokenizer, config.vocab_size)
    spec.register_source_vocabulary(tokens)
    spec.register_target_vocabulary(tokens)
    _set_config(spec.config, model, tokenizer, tokens)
    spec.validate()
    spec.optimize(quantization=quantization)
    spec.save(str(folder))
    model.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    make_readable(folder)


def token_table(tokenizer: Any, size: int) -> list[str]:
    """The text of each of ``size`` ids, all different; ids without a token get a name of their own."""
    named = {index: token for token, index in tokenizer.get_vocab().items()}
    taken = set(named.values())
    table = []
    for index in range(size):
        name = named.get(index)
        if name is None:
            name = f"<unused_{index}>"
            while name in taken:
                name += ">"
        table.append(name)
    return table


def _layout(config: Any) -> DecoderLayout:
    if config.model_type not in _LOADERS:
        raise ConfigError(
            f"--format ctranslate2 takes {', '.join(sorted(_LOADERS))} models, not {config.model_type}: use another "
            "format"
        )
    return family_of(config.model_type, "the model").decoder_layout(config)


def _described(model: Any, layout: DecoderLayout) -> Any:
    """``model`` with the attributes of a configuration that the loaders ask for; modules are shared, not copied."""
    described = copy.copy(model)
    described.config = copy.deepcopy(model.config)
    if layout.position_bias is None:
        described.config.normalize_before = layout.pre_norm
        described.config.normalize_embedding = layout.embedding_norm is not None
    else:
        described.config.tie_word_embeddings = layout.head_scale != 1.0  # they scale the head of tied models
    return described


def _set_heads(spec: Any, config: Any) -> None:
    """The loaders give both sides the encoder's number of heads, and heads the width of the model together."""
    count, width = np.dtype("int16").type, np.dtype("int32").type
    for side, part in (("encoder", spec.encoder), ("decoder", spec.decoder)):
        part.num_heads = count(getattr(config, f"{side}_attention_heads", None) or config.num_heads)
    if not hasattr(config, "d_kv") or config.d_kv * config.num_heads == config.d_model:
        return
    for layer in (*spec.encoder.layer, *spec.decoder.layer):
        for attention in (layer.self_attention, getattr(layer, "attention", None)):
            if attention is not None:
                vars(attention)["head_dim"] = width(config.d_kv)  # only decoders without encoder may set it


def _set_config(config: Any, model: Any, tokenizer: Any, tokens: list[str]) -> None:
    fixed = family_of(model.config.model_type, "the model").decoder_start(model.config)
    special = SpecialTokens.of(model, fixed if model.generation_config.decoder_start_token_id is None else None, None)
    for key, value in model.config.to_diff_dict().items():
        if key not in ("dtype", "torch_dtype"):
            config.add_attribute(key, value)
    config.eos_token = tokens[special.eos]
    config.bos_token = tokenizer.bos_token or config.eos_token
    config.unk_token = tokenizer.unk_token if tokenizer.unk_token in tokens else config.eos_token
    start = special.start if fixed is not None else _start_of_all(tokenizer, special.eos)
    config.decoder_start_token = None if start is None else tokens[start]


def _start_of_all(tokenizer: Any, eos: int) -> int | None:
    """mBART's first token: ``eos``, or None where it is the language, which whoever translates has to give."""
    tokenizer = copy.deepcopy(tokenizer)  # probing sets its languages
    language = next(iter(language_codes(tokenizer)), "")
    start = probe_templates(tokenizer, [language])["target"][language].decoding_start(None).token
    return eos if start in (eos, None) else None


def open_model(folder: Path | str, device: str = "cpu", threads: int = 0) -> Any:
    """The ``ctranslate2.Translator`` of ``folder``, with so many threads for one batch (0: CTranslate2's choice).

    ``device`` is a torch device's name. Raises `CheckpointError` for a damaged folder.
    """
    ctranslate2 = load("ctranslate2")
    kind, _, index = device.partition(":")
    try:
        return ctranslate2.Translator(str(folder), device=kind, device_index=int(index or 0), intra_threads=threads)
    except (RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"{folder}: CTranslate2 cannot open this folder on {device}: {reason}") from error
