"""Settings of the tasks."""

from __future__ import annotations

from dataclasses import dataclass

from cktk.config.options import option


@dataclass(frozen=True)
class TranslationConfig:
    """translation"""

    source_lang: str | None = option(
        None,
        help="language to translate from: either one of the data folder's two (default: the one it was made with)",
    )
    target_lang: str | None = option(None, help="language to translate into (default: the data folder's other one)")
    max_source_positions: int = option(
        1024, minimum=1, help="tokens of a source, special ones included; what is beyond is cut (at most the model's)"
    )
    max_target_positions: int = option(
        1024, minimum=1, help="tokens of a target, special ones included; what is beyond is cut (at most the model's)"
    )
