"""Options of the training engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cktk.config.options import option
from cktk.errors import ConfigError

_LARGER_IS_BETTER = (
    *("bleu", "chrf", "rouge1", "rouge2", "rougeL", "rougeLsum"),
    *("accuracy", "f1", "matthews", "pearson", "spearman"),
)


@dataclass
class RunConfig:
    """Run"""

    save_dir: str = option("checkpoints", help="run directory: checkpoints, logs, resolved config.yaml", resume="free")
    seed: int = option(1, help="seed of initialisation, data order and dropout", minimum=0)
    device: str = option("auto", help="auto, cpu, cuda or cuda:N", resume="free")
    nproc_per_node: int = option(1, help="processes to start on this machine with torchrun", minimum=1, resume="free")
    fp16: bool = option(False, help="mixed precision with float16 and loss scaling")
    bf16: bool = option(False, help="mixed precision with bfloat16")
    log_interval: int = option(100, help="updates between two log lines", minimum=1)
    tensorboard: bool = option(True, help="write TensorBoard logs below the run directory", resume="free")
    dry_run: bool = option(
        False, help="build everything, run one micro-batch, print layer map and memory, write nothing", resume="free"
    )

    def __post_init__(self) -> None:
        if self.fp16 and self.bf16:
            raise ConfigError("--fp16 and --bf16 exclude each other; choose one")


@dataclass
class UpdateConfig:
    """Updates"""

    update_freq: tuple[int, ...] = option(
        (1,),
        help="micro-batches per rank and update; a list gives one number per epoch, the last one staying",
        minimum=1,
        resume="free",
    )
    clip_norm: float = option(1.0, help="clip the global gradient norm to this; 0 does not clip", minimum=0)
    max_epoch: int = option(0, help="stop after this epoch; 0: no limit", minimum=0, resume="free")
    max_update: int = option(0, help="stop after this many updates; 0: no limit", minimum=0, resume="free")
    stop_time_hours: float = option(
        0, help="stop and save after this many hours of training; 0: no limit", minimum=0, resume="free"
    )
    freeze_embeddings: bool = option(False, help="do not train the student's embeddings (nor a head tied to them)")
    freeze_encoder: bool = option(False, help="do not train the student's encoder")
    store_ema: bool = option(False, help="keep an exponential moving average of the weights and validate and save that")
    ema_decay: float = option(0.9999, help="decay of the moving average per update", minimum=0, maximum=1)

    def __post_init__(self) -> None:
        if not (self.max_epoch or self.max_update or self.stop_time_hours):
            raise ConfigError("a run needs an end: give --max-epoch, --max-update or --stop-time-hours")


@dataclass
class CheckpointConfig:
    """Checkpoints"""

    save_interval: int = option(1, help="epochs between two checkpoints", minimum=1, resume="free")
    save_interval_updates: int = option(
        0, help="also checkpoint (and validate) every so many updates; 0: off", minimum=0, resume="free"
    )
    keep_last_epochs: int = option(2, help="checkpoints of epoch ends to keep; -1: all", minimum=-1, resume="free")
    keep_interval_updates: int = option(
        2, help="checkpoints of --save-interval-updates to keep; -1: all", minimum=-1, resume="free"
    )
    restore_file: str | None = option(
        None,
        help="checkpoint folder of another run to go on from, optimizer and data position included; once this run has "
        "checkpoints of its own, these are continued",
        metavar="DIR",
        resume="free",
    )
    finetune_from_model: str | None = option(
        None, help="student or checkpoint folder whose weights (and shape) start a new run", metavar="DIR"
    )
    reset_optimizer: bool = option(False, help="continue without the checkpoint's optimizer state", resume="free")
    reset_dataloader: bool = option(
        False, help="continue with the first epoch of the data instead of the checkpoint's position", resume="free"
    )


@dataclass
class ValidationConfig:
    """Validation"""

    valid_subset: str = option("valid", help="split to validate on")
    disable_validation: bool = option(False, help="do not validate")
    validate_interval: int = option(1, help="epochs between two validations", minimum=1)
    validate_interval_updates: int = option(0, help="also validate every so many updates; 0: off", minimum=0)
    best_checkpoint_metric: str = option(
        "loss", help="figure that chooses checkpoint_best, e.g. loss, ce, bleu, chrf, rouge2, accuracy, spearman"
    )
    maximize_best_checkpoint_metric: bool = option(
        False, help="larger is better (known by itself for bleu, chrf, rouge and the metrics of --task glue)"
    )
    patience: int = option(
        0, help="stop after this many validations without improvement; 0: never", minimum=0, resume="free"
    )

    def __post_init__(self) -> None:
        # "bleu/en" is the figure of one of several corpora.
        if self.best_checkpoint_metric.partition("/")[0] in _LARGER_IS_BETTER:
            self.maximize_best_checkpoint_metric = True


@dataclass
class ModelsConfig:
    """Data and teacher"""

    data: tuple[str, ...] = option(
        help="folder that cktk-preprocess wrote, or several with one tokenizer", positional=True
    )
    teacher: str | None = option(None, help="model folder or hub name to distil from (default: train from scratch)")
    teacher_cache: str | None = option(
        None,
        metavar="DIR",
        help="distil from what cktk-cache-teacher wrote there; --teacher is then only read where --init needs it",
    )
    teacher_states: Literal["device", "host", "recompute"] = option(
        "device",
        help="where the teacher's states of an update wait for its second pass: device = where they are computed; "
        "host = in main memory; recompute = nowhere, the teacher runs twice",
        resume="free",
    )
    teacher_states_dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto", help="round the teacher's states to this; auto: as they are computed"
    )
    allow_bin_weights: bool = option(False, help="read models whose weights are a pickled .bin file")
    verify_data: bool = option(True, help="compare the data folder with its checksums before training", resume="free")
