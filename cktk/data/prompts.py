"""Texts such as ``Translate from English to Spanish:`` that stand before every source of a task."""

from __future__ import annotations

from typing import Any


def prompt_ids(tokenizer: Any, prompt: str) -> tuple[int, ...]:
    """The tokens that ``prompt`` adds before a text, without special tokens.

    Texts are stored as tokens of their own, so a prompt is cut off from an example that begins with it. Where text
    behind it would have been cut into other tokens than alone (byte-level BPE), these are the prompt's own tokens.
    """
    if not prompt:
        return ()
    alone = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer(f"{prompt}a", add_special_tokens=False)["input_ids"]
    if alone and whole[-len(alone) :] == alone:
        return tuple(whole[: -len(alone)])
    return tuple(tokenizer(prompt, add_special_tokens=False)["input_ids"])
