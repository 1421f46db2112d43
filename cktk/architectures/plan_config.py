"""Settings of cktk-plan. Torch-free, so that ``--help`` stays fast."""

from __future__ import annotations

from dataclasses import dataclass

from cktk.config.options import option
from cktk.errors import ConfigError


@dataclass(frozen=True)
class PlanConfig:
    """Plan"""

    teacher: str = option(help="model folder or hub name; only its configuration is read", metavar="PATH")
    max_params: str | None = option(None, help="most parameters of a student, such as 80M", metavar="N")
    compression: float | None = option(
        None, help="at least so many times fewer parameters than the teacher", above=1, metavar="X"
    )
    max_latency_ms: float | None = option(
        None,
        help="most milliseconds for one sentence of --length tokens into as many, alone in its batch, measured here",
        above=0,
        metavar="MS",
    )
    measure: int = option(
        4, help="run so many of the students, from the top, to see how fast they are; 0 runs none", minimum=0
    )
    length: int = option(40, help="tokens of a sentence on each side, for operations and speed", minimum=1)
    beam: int = option(4, help="beam size of the measured search", minimum=1)
    batch_size: int = option(16, help="sentences of a measured batch", minimum=1)
    max_tokens: int = option(
        4096, help="--max-tokens of the training that memory is estimated for and commands are written for", minimum=1
    )
    data: str = option("data-bin", help="data folder to put into the commands", metavar="DIR")
    json: bool = option(False, help="print JSON instead of a table")

    def __post_init__(self) -> None:
        if self.max_params is None and self.compression is None and self.max_latency_ms is None:
            raise ConfigError("give a budget: --max-params 80M, --compression 5 or --max-latency-ms 200 (or several)")
        if self.max_latency_ms is not None and not self.measure:
            raise ConfigError("--max-latency-ms has to run students: let --measure be 1 or more")
