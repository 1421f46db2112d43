"""Settings of the teacher cache. Torch-free, so that ``--help`` stays fast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cktk.config.options import option
from cktk.errors import ConfigError

#: Tokens a position where neither --top-k nor --samples is given.
DEFAULT_TOP_K = 64


@dataclass(frozen=True)
class TeacherCacheConfig:
    """Cache"""

    data: str = option(help="folder that cktk-preprocess wrote", positional=True)
    teacher: str = option(help="model folder or hub name")
    cache_dir: str = option(help="folder of the cache; an unfinished one is continued", metavar="DIR")
    splits: tuple[str, ...] = option(("train", "valid"), help="splits of the data folder to go through")
    top_k: int | None = option(
        None,
        minimum=1,
        metavar="K",
        help=f"keep the K most probable tokens of each position (default: {DEFAULT_TOP_K} unless --samples is given)",
    )
    samples: int | None = option(
        None, minimum=1, metavar="K", help="keep K tokens drawn from each position's distribution instead"
    )
    temperature: float = option(1.0, above=0.0, help="divides the teacher's logits; training has to use the same")
    seed: int = option(1, minimum=0, help="seed of the draws of --samples")
    logits_memory: int = option(256, minimum=1, metavar="MIB", help="MiB for the rows of logits that exist at one time")
    allow_bin_weights: bool = option(False, help="read models whose weights are a pickled .bin file")
    verify_data: bool = option(True, help="compare the data folder with its checksums first")
    device: str = option("auto", help="auto, cpu, cuda or cuda:N")
    nproc_per_node: int = option(
        1, minimum=1, help="processes to start on this machine with torchrun; each takes whole shards"
    )
    fp16: bool = option(False, help="run the teacher in mixed precision with float16")
    bf16: bool = option(False, help="run the teacher in mixed precision with bfloat16")

    def __post_init__(self) -> None:
        if self.top_k is not None and self.samples is not None:
            raise ConfigError("--top-k and --samples exclude each other; choose one")
        if self.fp16 and self.bf16:
            raise ConfigError("--fp16 and --bf16 exclude each other; choose one")
        if len(set(self.splits)) < len(self.splits):
            raise ConfigError(f"--splits {','.join(self.splits)}: names a split twice; leave one out")

    @property
    def k(self) -> int:
        """Tokens that are kept of each position."""
        return self.top_k or self.samples or DEFAULT_TOP_K

    @property
    def precision(self) -> str:
        """The type that the teacher computes in."""
        return "float16" if self.fp16 else "bfloat16" if self.bf16 else "float32"


@dataclass(frozen=True)
class CachedStatesConfig:
    """Hidden states"""

    hidden_states: bool = option(
        False, help="also keep the teacher states that a student of the depth below is matched with"
    )
    encoder_layers: int | None = option(
        None, minimum=1, metavar="N", help="encoder layers of the student (default: the teacher's)"
    )
    decoder_layers: int | None = option(
        None, minimum=1, metavar="N", help="decoder layers of the student (default: the teacher's)"
    )
    layer_map: str = option("uniform", metavar="MAP", help="student layers and their teacher layers, as in cktk-train")
    match_embeddings: bool = option(True, help="keep the embedding outputs, too")
    states_dtype: Literal["bfloat16", "float32"] = option("bfloat16", help="type that states are kept in")

    def __post_init__(self) -> None:
        given = {"--encoder-layers": self.encoder_layers, "--decoder-layers": self.decoder_layers}
        flags = [flag for flag, value in given.items() if value is not None]
        if flags and not self.hidden_states:
            raise ConfigError(f"{flags[0]} chooses the states of --hidden-states; add it, or leave {flags[0]} out")
