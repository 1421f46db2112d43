"""Texts such as ``Translate from English to Spanish:`` that stand before every source of a task."""

from __future__ import annotations

import re
from typing import Any

from cktk.data.languages import english_name
from cktk.errors import ConfigError


def names_languages(prompt: str) -> bool:
    """Whether ``{source}`` or ``{target}`` in ``prompt`` stands for a language."""
    return "{source}" in prompt or "{target}" in prompt


def prompt_ids(tokenizer: Any, prompt: str, source_lang: str = "", target_lang: str = "") -> tuple[int, ...]:
    """The tokens that ``prompt`` adds before a text, without special tokens.

    ``{source}`` and ``{target}`` become the names of the languages. Texts are stored as tokens of their own, so a
    prompt is cut off from an example that begins with it. Where text behind it would be cut into other tokens than
    alone (byte-level BPE), these are the prompt's own tokens. Raises `ConfigError` where a language is not known, and
    for other words in braces.
    """
    if not prompt:
        return ()
    _check_words(prompt)
    for role, lang in (("source", source_lang), ("target", target_lang)):
        if f"{{{role}}}" in prompt and not lang:
            raise ConfigError(
                f"--source-prompt: {{{role}}} stands for a language that is not known here; write its name, or give "
                f"--{role}-lang"
            )
        prompt = prompt.replace(f"{{{role}}}", english_name(lang))
    alone = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer(f"{prompt}a", add_special_tokens=False)["input_ids"]
    if alone and whole[-len(alone) :] == alone:
        return tuple(whole[: -len(alone)])
    return tuple(tokenizer(prompt, add_special_tokens=False)["input_ids"])


def _check_words(prompt: str) -> None:
    """Refuse words in braces that stand for nothing."""
    for word in re.findall(r"\{\s*\w+\s*\}", prompt):
        if word not in ("{source}", "{target}"):
            raise ConfigError(
                f"--source-prompt: {word} stands for nothing; write {{source}} or {{target}}, the names of the "
                "languages, or leave out the braces"
            )
