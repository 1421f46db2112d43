"""What a model sees of a text: the template around it, the prompt, and earlier sentences of its document before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from cktk.data.batching import Int64s
from cktk.data.context_config import ContextConfig
from cktk.data.tokenization.tokenizers import end_token
from cktk.errors import ConfigError
from cktk.protocols import Template

Ids = Sequence[int] | npt.NDArray[Any]

#: The document of a text that belongs to none.
NO_DOCUMENT = -1


@dataclass(frozen=True, kw_only=True)
class Frame:
    """What goes around a text, and how many tokens of text, context included, have room between.

    Prefix of the template, ``prompt``, earlier sentences with ``separator`` behind each, the text, and the suffix.
    """

    template: Template
    room: int
    prompt: tuple[int, ...] = ()
    separator: int | None = None

    @property
    def special(self) -> int:
        """How many tokens stand around every text."""
        return len(self.template.prefix) + len(self.prompt) + len(self.template.suffix)

    def framed(self, text: Ids, earlier: Sequence[Ids] = ()) -> Int64s:
        """``text`` with all that goes around it; it is cut at its end if there is no room for it."""
        parts = (self.template.prefix, self.prompt, self.context(earlier), text[: self.room], self.template.suffix)
        # An empty prefix is an array of floats to numpy, hence the cast.
        return np.concatenate(parts, dtype=np.int64, casting="unsafe")

    def place(self, framed: Ids, tokens: int) -> range:
        """Where in ``framed`` ids a text of so many ``tokens`` stands, without what goes around it."""
        end = len(framed) - len(self.template.suffix)
        return range(end - min(tokens, self.room), end)

    def context(self, earlier: Sequence[Ids]) -> list[int]:
        """``earlier`` sentences with the separator behind each."""
        if not earlier:
            return []
        assert self.separator is not None, "sentences of context need a separator"
        return [token for sentence in earlier for token in (*map(int, sentence), self.separator)]


@dataclass(frozen=True)
class Context:
    """Up to ``size`` sentences of the same document before each source, and what of them stands before the target."""

    size: int
    separator: int
    target: Literal["none", "given", "generated"] = "none"

    @classmethod
    def of(cls, config: ContextConfig, tokenizer: Any) -> Context | None:
        """What ``config`` asks for; raises `ConfigError` for a separator that is no token, or ends a target."""
        if not config.context_size:
            return None
        end, name = end_token(tokenizer), config.context_separator
        if name is not None and name not in tokenizer.get_vocab():
            raise ConfigError(
                f"--context-separator {name}: the tokenizer has no such token; give one that it has, such as "
                f"{_specials(tokenizer)}"
            )
        separator = end if name is None else int(tokenizer.convert_tokens_to_ids(name))
        assert separator is not None
        if config.context_target != "none" and separator in (end, tokenizer.pad_token_id):
            raise ConfigError(
                f"--context-target {config.context_target}: the end token cannot part sentences of a target; give "
                f"another --context-separator, such as {_specials(tokenizer)}"
            )
        return cls(config.context_size, separator, config.context_target)

    def earlier(
        self, lengths: Sequence[Int64s], rooms: Sequence[int], documents: Int64s, first: int
    ) -> tuple[Int64s, Int64s]:
        """How many sentences are shown before each row from row ``first`` on, and how many its document would give.

        ``lengths`` (R,) are those of the texts on each side that shows context, ``rooms`` of these sides. Whole
        sentences are shown, the latest ones that have room on all sides together with the row's own text.
        """
        rows = np.arange(first, len(documents))
        shown, there = np.zeros_like(rows), np.zeros_like(rows)
        totals = [side[first:].copy() for side in lengths]
        near = documents[first:] != NO_DOCUMENT
        fits = np.ones_like(near)
        for back in range(1, self.size + 1):
            at = np.maximum(rows - back, 0)
            near &= (rows >= back) & (documents[at] == documents[rows])
            for total, side, room in zip(totals, lengths, rooms, strict=True):
                total += side[at] + 1
                fits &= total <= room
            there += near
            shown += near & fits
        return shown, there


def _specials(tokenizer: Any) -> str:
    reserved = {tokenizer.eos_token, tokenizer.sep_token, tokenizer.pad_token, tokenizer.bos_token, tokenizer.unk_token}
    found = [token for token in tokenizer.all_special_tokens if token not in reserved]
    return ", ".join(found[:3]) or "a piece that texts do not hold"


def check_room(role: str, positions: int, template: Template, prompt: Sequence[int]) -> int:
    """The tokens that are left for text of ``positions``; raises `ConfigError` if these are none."""
    special = len(template.prefix) + len(template.suffix)
    if positions > special + len(prompt):
        return positions - special - len(prompt)
    raise ConfigError(
        f"--max-{role}-positions {positions} leaves no room for text beside "
        + (f"{len(prompt)} tokens of --{role}-prompt and " if prompt else "")
        + f"{special} special tokens; raise it"
        + (" (up to the model's own limit) or shorten the prompt" if prompt else "")
    )
