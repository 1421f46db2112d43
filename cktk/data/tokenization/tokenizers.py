"""Hugging Face tokenizers: opening and saving them, and finding out what they put around a text."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from cktk.data.tokenization.encoder import ROLES, Role, knows_languages
from cktk.errors import DataError
from cktk.protocols import PairTemplate, Template
from cktk.utils.words import alternatives


def open_tokenizer(name: str | Path) -> PreTrainedTokenizerBase:
    """Open a tokenizer folder or hub name; raises `DataError` if there is none, or it lacks a pad or end token."""
    # A hub name is "owner/name" or "name": for anything else the hub need not be asked, which can take a minute.
    if not Path(name).exists() and (str(name).count("/") > 1 or str(name)[0] in "./~"):
        raise DataError(f"--tokenizer {name}: no such folder")
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(str(name))
    except Exception as error:  # transformers raises many kinds: of files, of the network, of parsers
        reason = str(error).strip().partition("\n")[0]
        raise DataError(f"--tokenizer {name}: no tokenizer can be opened there ({reason})") from error
    if tokenizer.pad_token_id is None or end_token(tokenizer) is None:
        missing = "padding" if tokenizer.pad_token_id is None else "end-of-text"
        raise DataError(f"--tokenizer {name}: it has no {missing} token; use the tokenizer of an encoder-decoder model")
    if getattr(tokenizer, "separate_vocabs", False):  # of some MarianMT models
        raise DataError(f"--tokenizer {name}: has a vocabulary for each side; use a tokenizer with one vocabulary")
    return tokenizer  # type: ignore[no-any-return]


def end_token(tokenizer: Any) -> int | None:
    """Id of the token that ends a text (BERT's tokenizers name it [SEP])."""
    found: int | None = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    return found


def fingerprint(folder: Path) -> str:
    """SHA-256 of what decides the ids of the tokenizer saved in ``folder``: ``tokenizer.json``, else all files."""
    single = folder / "tokenizer.json"
    files = [single] if single.is_file() else sorted(path for path in folder.rglob("*") if path.is_file())
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def describe(tokenizer: Any, folder: Path) -> dict[str, Any]:
    """The manifest's entry for a tokenizer that was saved in ``folder``."""
    vocabulary = tokenizer.get_vocab()
    return {
        "fingerprint": fingerprint(folder),
        "vocab_size": max(vocabulary.values()) + 1,
        "pad": tokenizer.pad_token_id,
        "bos": tokenizer.bos_token_id,
        "eos": end_token(tokenizer),
        "unk": tokenizer.unk_token_id,
    }


def probe_templates(tokenizer: Any, languages: Sequence[str]) -> dict[Role, dict[str, Template]]:
    """What the tokenizer puts around a source and around a target text, for each of ``languages``.

    Found by encoding a text with and without special tokens. Changes the tokenizer's current languages. Raises
    `DataError` for a language that a multilingual tokenizer does not know.
    """
    check_languages(tokenizer, languages)
    return {role: {lang: _probe(tokenizer, role, lang) for lang in languages} for role in ROLES}


def probe_pair(tokenizer: Any, lang: str) -> PairTemplate:
    """What the tokenizer puts around two texts of language ``lang`` that it joins, and whether it tells them apart.

    Raises `DataError` for a tokenizer that joins texts in another way than `PairTemplate` says.
    """
    if knows_languages(tokenizer):
        tokenizer.src_lang = lang
    one, other = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in "ab")
    joined = tokenizer("a", "b")
    whole, types = joined["input_ids"], joined.get("token_type_ids")
    first = _place(one, whole, 0)
    second = _place(other, whole, first + len(one)) if first is not None else None
    if first is not None and second is not None:
        parts = (whole[:first], whole[first + len(one) : second], whole[second + len(other) :])
        told_apart = bool(types) and any(types)
        if not told_apart or types == [0] * second + [1] * (len(whole) - second):
            prefix, middle, suffix = map(tuple, parts)
            return PairTemplate(prefix, middle, suffix, told_apart)
    raise DataError(
        f"--tokenizer: {type(tokenizer).__name__} joins two texts in a way of its own; use another tokenizer"
    )


def _place(part: list[int], whole: list[int], start: int) -> int | None:
    """Where ``part`` begins in ``whole``, from ``start`` on."""
    places = range(start, len(whole) - len(part) + 1)
    return next((place for place in places if whole[place : place + len(part)] == part), None)


def _probe(tokenizer: Any, role: Role, lang: str) -> Template:
    if knows_languages(tokenizer):
        setattr(tokenizer, "src_lang" if role == "source" else "tgt_lang", lang)
    key = "text" if role == "source" else "text_target"
    inner = tokenizer(**{key: "a"}, add_special_tokens=False)["input_ids"]
    whole = tokenizer(**{key: "a"})["input_ids"]
    if (start := _place(inner, whole, 0)) is not None:
        return Template(tuple(whole[:start]), tuple(whole[start + len(inner) :]))
    raise DataError(
        f"--tokenizer: {type(tokenizer).__name__} encodes a text differently with and without special tokens; "
        "use another tokenizer"
    )


def language_codes(tokenizer: Any) -> list[str]:
    """The languages that a multilingual tokenizer knows, by its own codes; none for others."""
    if not knows_languages(tokenizer):
        return []
    if spelt := getattr(tokenizer, "lang_code_to_token", None):  # M2M-100 spells a language's token differently: __en__
        return list(spelt)
    # mBART's table lists the languages of its class; a trimmed vocabulary may hold fewer.
    if table := getattr(tokenizer, "lang_code_to_id", None):
        vocabulary = tokenizer.get_vocab()
        return [code for code in table if code in vocabulary]
    return [token for token in tokenizer.all_special_tokens if not token.startswith("<")]


def check_languages(tokenizer: Any, languages: Sequence[str], flags: str = "--source-lang/--target-lang") -> None:
    """Raise `DataError` for a language that a multilingual tokenizer does not know; others take any, or none.

    ``flags`` is what chooses the languages.
    """
    codes = language_codes(tokenizer)
    for lang in languages if knows_languages(tokenizer) else ():
        if not lang:
            raise DataError(
                f"{flags} is needed: {type(tokenizer).__name__} marks the language of a text; known: {', '.join(codes)}"
            )
        if lang not in codes:
            raise DataError(
                f"{flags}: {type(tokenizer).__name__} has no language {lang!r}; "
                f"{alternatives(lang, codes)} "
                "(files and columns may still be named without the part after the underscore)"
            )
