"""Settings of cktk-trim-vocab. Torch-free, so that ``--help`` stays fast."""

from __future__ import annotations

from dataclasses import dataclass

from cktk.config.options import option
from cktk.errors import ConfigError


@dataclass(frozen=True)
class TrimConfig:
    """Vocabulary"""

    model: str = option(help="teacher to trim: model folder or hub name", metavar="PATH")
    dest_dir: str = option(help="folder of the trimmed teacher; must not exist", metavar="DIR")
    data_bin: str | None = option(None, help="data folder whose tokens are kept", metavar="DIR")
    keep_languages: tuple[str, ...] = option(
        (),
        help="language codes to keep besides the data's, such as ro_RO or ro; the tokenizer's others are dropped",
        metavar="LANG,..",
    )
    min_count: int = option(1, help="keep tokens that occur at least so often in the data, all splits", minimum=1)
    size: int | None = option(
        None, help="keep at most so many tokens, the data's most frequent ones (default: all of them)", minimum=1
    )
    dest_data: str | None = option(None, help="write the data folder in the new vocabulary there, too", metavar="DIR")
    student: str | None = option(None, help="trained student of this teacher to trim in the same way", metavar="PATH")
    dest_student: str | None = option(None, help="folder of the trimmed student; must not exist", metavar="DIR")
    restore: str | None = option(
        None,
        help="instead of trimming, give this trimmed (and perhaps trained) model the vocabulary of --model back",
        metavar="PATH",
    )
    allow_bin_weights: bool = option(False, help="read models whose weights are a pickled .bin file")

    def __post_init__(self) -> None:
        if (self.data_bin is None) == (self.restore is None):
            raise ConfigError("give either --data-bin DIR, whose tokens are kept, or --restore PATH")
        if (self.student is None) != (self.dest_student is None):
            raise ConfigError("--student and --dest-student go together: give both or neither")
        if self.restore is not None:
            given = (self.dest_data, self.student, self.size, self.keep_languages or None)
            if any(value is not None for value in given) or self.min_count > 1:
                raise ConfigError("--restore takes --model, --dest-dir and --allow-bin-weights only")
