"""What is put before each source. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cktk.config.options import option
from cktk.errors import ConfigError


@dataclass(frozen=True)
class PromptConfig:
    """prompt"""

    source_prompt: str = option(
        "",
        help='text before every source, e.g. "Translate from English to Spanish: "; counts in its positions. {source} '
        "and {target} in it stand for the English names of the languages",
    )


@dataclass(frozen=True)
class ContextConfig:
    """context"""

    context_size: int = option(
        0, minimum=0, help="sentences of the same document, at most, that stand before each source"
    )
    context_target: Literal["none", "given", "generated"] = option(
        "none",
        help="their translations before each target: none; given = read but not scored, and forced when generating "
        "(the model's own); generated = scored, and generated and cut off again",
    )
    context_separator: str | None = option(
        None,
        metavar="TOKEN",
        help="token of the vocabulary behind each sentence of the context (default: the end token, which --context-"
        "target rules out)",
    )

    def __post_init__(self) -> None:
        for flag, given in (
            ("--context-target", self.context_target != "none"),
            ("--context-separator", self.context_separator is not None),
        ):
            if given and not self.context_size:
                raise ConfigError(f"{flag} says how context is shown, and there is none; give --context-size too")


@dataclass(frozen=True)
class InputConfig(PromptConfig, ContextConfig):
    """prompt and context"""
