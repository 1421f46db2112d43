"""From settings to a training run: every object is made here, once, from plain arguments."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cktk.architectures.adapter import Seq2SeqAdapter
from cktk.architectures.initialise import initialise
from cktk.architectures.layer_map import SIDES, layer_count, layer_pairs, layer_table
from cktk.architectures.loading import load_model, load_tokenizer, write_model
from cktk.architectures.spec import StudentSpec
from cktk.architectures.vocabulary import check_student, check_vocabularies, folder_vocabulary
from cktk.config.command import Settings
from cktk.data.batch_config import BatchingConfig
from cktk.data.iterators import MicroBatches
from cktk.data.shards import DataFolder
from cktk.distributed import world as distributed
from cktk.distributed.world import World
from cktk.engine.callbacks import MetricLog, ProgressBar
from cktk.engine.checkpoint import Checkpoint, CheckpointStore, read_checkpoint
from cktk.engine.configs import CheckpointConfig, ModelsConfig, RunConfig, UpdateConfig, ValidationConfig
from cktk.engine.dry_run import dry_run
from cktk.engine.ema import WeightAverage
from cktk.engine.run_directory import claimed, record
from cktk.engine.step import Autocast, FrozenTeacher, Step
from cktk.engine.trainer import Parts, Trainer
from cktk.engine.update import Updater
from cktk.engine.validation import Validator
from cktk.errors import ConfigError
from cktk.metrics.writers import JsonlWriter, TensorBoardWriter, Writer
from cktk.protocols import Batch, LayerPair, Side
from cktk.registry import ARCHITECTURES, CRITERIA, LR_SCHEDULERS, OPTIMIZERS, TASKS
from cktk.utils.log import logger, setup_logging
from cktk.utils.rng import seed_everything_from


@dataclass
class Models:
    """The student, its teacher, and how their layers are paired."""

    family: Any
    student: Any
    teacher: Any | None
    pairs: tuple[LayerPair, ...]
    tokenizer: Any


def train(settings: Settings) -> None:
    """Train as ``settings`` say, from the beginning or from the newest whole checkpoint of the run directory."""
    config = settings.section(RunConfig)
    world = distributed.start(config.device)
    setup_logging(world.rank)
    try:
        if config.dry_run:
            trainer, models = build(settings, world, None)
            dry_run(trainer.parts, layer_table(models.pairs))
            return
        run, free = Path(config.save_dir), settings.free_on_resume()
        with claimed(run, settings.to_yaml(), free) if world.is_main else nullcontext():
            world.barrier()
            _train_in(run, settings, world)
    finally:
        distributed.stop()


def _train_in(run: Path, settings: Settings, world: World) -> None:
    """Train in the run directory ``run``, which this process holds."""
    config = settings.section(RunConfig)
    checkpoint = _checkpoint(run, settings.section(CheckpointConfig))
    trainer, models = build(settings, world, checkpoint)
    if checkpoint and trainer.finished():
        logger.info("nothing to do: %s is already at the end that the limits set", checkpoint.folder)
        return
    if models.pairs:
        logger.info("layer map (student state <- teacher state):\n%s", layer_table(models.pairs))
    if world.is_main:
        # Only now, when everything could be built, does the run directory get its first file.
        record(run, settings.to_yaml())
        trainer.watch(_log(config, checkpoint), ProgressBar(trainer.fraction_done()))
    trainer.run()


def build(settings: Settings, world: World, checkpoint: Checkpoint | None) -> tuple[Trainer, Models]:
    """All objects of a run, with ``checkpoint`` restored where there is one."""
    run, updates = settings.section(RunConfig), settings.section(UpdateConfig)
    validation = settings.section(ValidationConfig)
    data = DataFolder(settings.section(ModelsConfig).data)
    if world.is_main and settings.section(ModelsConfig).verify_data:
        data.verify()
    seed_everything_from(run.seed)
    models = _models(settings, data, world, checkpoint)
    task = _task(settings, data, models)
    if checkpoint is None:
        inherited = models.teacher if models.teacher is not None else models.student
        models.family.set_generation(models.student, inherited.generation_config, task.target_template)
    batching = settings.section(BatchingConfig)
    source = task.iterator("train", batching, True, run.seed, world.rank, world.size)
    _report(models, task, data)
    step, teacher = _step(settings, models, world)
    _freeze(models.student, updates)
    updater = _updater(settings, step, teacher, world)
    optimizer_config = settings.component("optimizer")[1]
    scheduler, schedule_config = settings.component("lr-scheduler")
    schedule = LR_SCHEDULERS.target(scheduler)(schedule_config, optimizer_config.lr, updates.max_update or None)
    validator = None
    if not validation.disable_validation:
        passes = partial(task.iterator, validation.valid_subset, batching, False, run.seed, world.rank, world.size)
        scorer = task.scorer(models.student, models.tokenizer, validation.valid_subset, world)
        validator = Validator(step, teacher, partial(_one_pass, passes), world, scorer)
        # What is wrong with the split or the metric is told now and not at the end of the first epoch.
        validator.check(validation.best_checkpoint_metric)
    parts = Parts(
        updater=updater,
        data=source,
        schedule=schedule,
        validator=validator,
        store=CheckpointStore(Path(run.save_dir)),
        save_student=partial(write_model, models.student, models.tokenizer),
        average=WeightAverage(step.student, updates.ema_decay) if updates.store_ema else None,
        world=world,
    )
    trainer = Trainer(parts, updates, settings.section(CheckpointConfig), validation)
    if checkpoint:
        trainer.restore(checkpoint)
        logger.info("continuing from %s (update %d)", checkpoint.folder, trainer.update)
    return trainer, models


def _checkpoint(run: Path, config: CheckpointConfig) -> Checkpoint | None:
    newest = CheckpointStore(run).newest()
    if newest is None and config.restore_file:
        return read_checkpoint(Path(config.restore_file))
    return newest


def _models(settings: Settings, data: DataFolder, world: World, checkpoint: Checkpoint | None) -> Models:
    config = settings.section(ModelsConfig)
    name, student_config = settings.component("arch")
    family = ARCHITECTURES.target(name)()
    teacher: Any = None
    if config.teacher:
        teacher = load_model(config.teacher, allow_bin_weights=config.allow_bin_weights)
        size = teacher.config.vocab_size
        check_vocabularies(
            folder_vocabulary(f"the teacher {config.teacher}", config.teacher, size),
            folder_vocabulary(f"the data {data.path}", data.tokenizer_path, data.vocab_size, data.fingerprint),
        )
    elif settings.component("criterion")[0] != "cross_entropy":
        raise ConfigError(f"--criterion {settings.component('criterion')[0]} needs a --teacher")
    student: Any = _student(settings, family, student_config, teacher, data, checkpoint)
    pairs: tuple[LayerPair, ...] = ()
    if teacher is not None:
        check_student(student.config, teacher.config)
        pairs = layer_pairs(student.config, teacher.config)
        teacher.to(world.device)
    return Models(family, student.to(world.device), teacher, pairs, load_tokenizer(data.tokenizer_path))


def _student(
    settings: Settings, family: Any, config: Any, teacher: Any | None, data: DataFolder, checkpoint: Checkpoint | None
) -> Any:
    spec = StudentSpec.of(config)
    weights = settings.section(CheckpointConfig).finetune_from_model
    if checkpoint or weights:
        student = load_model(checkpoint.folder / "student" if checkpoint else str(weights))
        _refuse_other_shape(student, spec, str(checkpoint.folder if checkpoint else weights))
        if spec.dropout is not None:
            student.config.dropout = spec.dropout
            student = _rebuilt(family, student)
        return student
    if teacher is not None:
        base = teacher.config
    else:
        ids = {"pad": data.pad, "bos": data.bos, "eos": data.eos}
        base = family.base_config(vocab_size=data.vocab_size, max_positions=config.max_positions, spec=spec, **ids)
    student = family.student(base, spec)
    earlier = load_model(config.init_checkpoint) if config.init_checkpoint else None
    initialise(student, spec.init, teacher=teacher, checkpoint=earlier)
    return student


def _refuse_other_shape(student: Any, spec: StudentSpec, path: str) -> None:
    config = student.config
    for flag, asked, found in (
        ("--width", spec.width, config.d_model),
        ("--encoder-layers", spec.encoder_layers, config.encoder_layers),
        ("--decoder-layers", spec.decoder_layers, config.decoder_layers),
        ("--ffn-width", spec.ffn_width, config.encoder_ffn_dim),
        ("--heads", spec.heads, config.encoder_attention_heads),
    ):
        if asked is not None and asked != found:
            raise ConfigError(
                f"{flag} {asked}: the student in {path} has {found}; leave the flag out, or use --init checkpoint"
            )


def _rebuilt(family: Any, student: Any) -> Any:
    """The same weights in a model made anew, since modules read the configuration's dropout when they are made."""
    rebuilt = family.build(student.config)
    rebuilt.load_state_dict(student.state_dict())
    rebuilt.generation_config = student.generation_config
    return rebuilt


def _task(settings: Settings, data: DataFolder, models: Models) -> Any:
    name, config = settings.component("task")
    return TASKS.target(name)(
        config,
        data,
        pad=models.student.config.pad_token_id,
        decoder_start=models.family.decoder_start(models.student.config),
        max_positions=min(m.config.max_position_embeddings for m in (models.student, models.teacher) if m is not None),
    )


def _step(settings: Settings, models: Models, world: World) -> tuple[Step, FrozenTeacher | None]:
    run = settings.section(RunConfig)
    dtype = torch.float16 if run.fp16 else torch.bfloat16 if run.bf16 else None
    autocast = Autocast(world.device.type, dtype)
    name, config = settings.component("criterion")
    widths: dict[Side, tuple[int, int]] = {}
    if models.teacher is not None:
        widths = dict.fromkeys(SIDES, (models.student.config.d_model, models.teacher.config.d_model))
    criterion = CRITERIA.target(name)(config, models.pairs, widths).to(world.device)
    teacher = None
    if models.teacher is not None:
        teacher = FrozenTeacher(models.teacher, Seq2SeqAdapter(models.teacher), criterion.needs(), autocast)
    adapter = Seq2SeqAdapter(models.student)
    return Step(models.student, adapter, criterion, teacher, autocast, world.all_reduce), teacher


def _freeze(student: Any, config: UpdateConfig) -> None:
    embeddings = {id(p) for name, p in student.named_parameters() if ".embed_" in name or "shared" in name}
    if config.freeze_embeddings:
        for parameter in student.parameters():
            if id(parameter) in embeddings:
                parameter.requires_grad_(False)
    if config.freeze_encoder:
        # The embeddings are the decoder's and the head's too, and --freeze-embeddings says whether they train.
        for parameter in student.get_encoder().parameters():
            if id(parameter) not in embeddings:
                parameter.requires_grad_(False)


def _updater(settings: Settings, step: Step, teacher: FrozenTeacher | None, world: World) -> Updater:
    run, updates = settings.section(RunConfig), settings.section(UpdateConfig)
    name, config = settings.component("optimizer")
    trained = [(name, parameter) for name, parameter in step.named_parameters() if parameter.requires_grad]
    optimizer = OPTIMIZERS.target(name)(config, trained)
    scaler = torch.amp.GradScaler(world.device.type, enabled=run.fp16)
    return Updater(world.wrap(step), step, teacher, optimizer, scaler, world, updates.clip_norm, run.seed)


def _one_pass(make: Any) -> Iterator[Batch]:
    """This rank's micro-batches of one pass over a split."""
    batches: MicroBatches = make()
    while found := batches.next_update(1):
        yield from found


def _log(config: RunConfig, checkpoint: Checkpoint | None) -> MetricLog:
    run = Path(config.save_dir)
    own = checkpoint is not None and checkpoint.folder.parent == run
    state = checkpoint.state if checkpoint is not None and own else {"log": None, "update": None}
    log = JsonlWriter(run / "log.jsonl", keep_bytes=state["log"]["bytes"] if state["log"] else 0)
    others: list[Writer] = [JsonlWriter(run / "speed.jsonl")]
    if config.tensorboard:
        purge = None if state["update"] is None else state["update"] + 1
        others.append(TensorBoardWriter(run / "tensorboard", purge_step=purge))
    metrics = MetricLog(log, others, config.log_interval)
    if state["log"]:
        metrics.load_state_dict(state["log"])
    return metrics


def _report(models: Models, task: Any, data: DataFolder) -> None:
    """Say what is about to be trained, and on what."""
    for name, model in (("teacher", models.teacher), ("student", models.student)):
        if model is not None:
            sizes = "+".join(str(layer_count(model.config, side)) for side in SIDES)
            millions = model.num_parameters() / 1e6
            logger.info(
                "%s: %s %s x %d, %.2f M parameters",
                name,
                model.config.model_type,
                sizes,
                model.config.d_model,
                millions,
            )
    split = data.split("train")
    cut = task.truncated(split)
    logger.info(
        "train: %d pairs %s-%s, %d sources and %d targets are cut to the maximum positions",
        len(split),
        task.source_lang,
        task.target_lang,
        cut["source"],
        cut["target"],
    )
