"""A training run from its settings: `train`, and all objects that it needs put together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

from cktk.architectures.loading import write_model
from cktk.assemble.describe import describe_matching
from cktk.assemble.models import Models, freeze, make_models
from cktk.assemble.objective import make_schedule, make_stages, make_step, make_updater
from cktk.assemble.recorded_teacher import RecordedTeacher
from cktk.config.command import Settings
from cktk.data.batch_config import BatchingConfig
from cktk.data.iterators import PlannedBatches
from cktk.data.mixtures.corpora import Corpora
from cktk.distributed import world as distributed
from cktk.distributed.world import World
from cktk.engine.callbacks import MetricLog, ProgressBar
from cktk.engine.checkpoint import Checkpoint, CheckpointStore, read_checkpoint
from cktk.engine.configs import CheckpointConfig, ModelsConfig, RunConfig, UpdateConfig, ValidationConfig
from cktk.engine.dry_run import dry_run
from cktk.engine.ema import WeightAverage
from cktk.engine.run_directory import claimed, record
from cktk.engine.step import Step
from cktk.engine.teacher import Teacher
from cktk.engine.trainer import Parts, Trainer
from cktk.engine.validation import Validator
from cktk.errors import ConfigError
from cktk.metrics.writers import JsonlWriter, TensorBoardWriter, Writer
from cktk.protocols import Batch, Side
from cktk.registry import TASKS
from cktk.tasks.base import ChecksModels, SeveralCorpora, Task, TaskBuilder
from cktk.utils.log import logger, setup_logging
from cktk.utils.rng import seed_everything_from

#: How much of the data `--init pca` looks at: some ten rows for each dimension of a large teacher.
_SAMPLE_TOKENS = 16_384


def train(settings: Settings) -> None:
    """Train as ``settings`` say, from the beginning or from the newest whole checkpoint of the run directory."""
    config = settings.section(RunConfig)
    world = distributed.start(config.device)
    setup_logging(world.rank)
    try:
        if config.dry_run:
            trainer, matching = build(settings, world, None)
            dry_run(trainer.parts, matching)
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
    trainer, matching = build(settings, world, checkpoint)
    if checkpoint and trainer.finished():
        logger.info("nothing to do: %s is already at the end that the limits set", checkpoint.folder)
        return
    for line in matching:
        logger.info("%s", line)
    if world.is_main:
        # Only now, when everything could be built, does the run directory get its first file.
        record(run, settings.to_yaml())
        trainer.watch(_log(config, checkpoint), ProgressBar(trainer.fraction_done()))
    trainer.run()


def build(settings: Settings, world: World, checkpoint: Checkpoint | None) -> tuple[Trainer, list[str]]:
    """All objects of a run, with ``checkpoint`` restored where there is one, and what is matched in words."""
    run, updates = settings.section(RunConfig), settings.section(UpdateConfig)
    validation = settings.section(ValidationConfig)
    data = Corpora.open(settings.section(ModelsConfig).data)
    if world.is_main and settings.section(ModelsConfig).verify_data:
        data.verify()
    if not validation.disable_validation and validation.valid_subset not in data.splits:
        raise ConfigError(
            f"--valid-subset {validation.valid_subset}: {data.path} has the splits {', '.join(data.splits)}; "
            "choose one, or use --disable-validation"
        )
    seed_everything_from(run.seed)
    models = make_models(settings, data, world, checkpoint)
    task = _task(settings, data, models)
    if models.start is not None:
        logger.info("looking at a sample of the data for --init")
        models.start(_sample(task, settings, list(models.shape(models.student).sides)))
    if isinstance(models.teacher, RecordedTeacher):
        splits = ["train", *([] if validation.disable_validation else [validation.valid_subset])]
        models.teacher.check(settings, data.single("--teacher-cache"), task, splits)
    if checkpoint is None:
        inherited = models.teacher if models.teacher is not None else models.student
        settings_of = getattr(inherited, "generation_config", None)  # encoders have none
        models.family.set_generation(models.student, settings_of, task.target_template)
    source = task.iterator("train", settings.section(BatchingConfig), True, run.seed, world.rank, world.size)
    schedule = make_schedule(settings)
    step, teacher = make_step(settings, models, world)
    for line in (*models.describe(), *task.describe()):
        logger.info("%s", line)
    if (rows := settings.section(BatchingConfig).train_subset) is not None:
        logger.info("train: %d of these rows (--train-subset), drawn by --seed %d", rows, run.seed)
    freeze(models.family, models.student, updates, head=step.all_needs().student_head)
    updater = make_updater(settings, step, teacher, world)
    validator = _validator(settings, task, models, step, teacher, world)
    parts = Parts(
        updater=updater,
        data=source,
        schedule=schedule,
        validator=validator,
        store=CheckpointStore(Path(run.save_dir)),
        save_student=partial(write_model, models.student, models.tokenizer),
        average=WeightAverage(step.student, updates.ema_decay) if updates.store_ema else None,
        world=world,
        stages=make_stages(models, step, updates),
    )
    trainer = Trainer(parts, updates, settings.section(CheckpointConfig), validation)
    if checkpoint:
        trainer.restore(checkpoint)
        logger.info("continuing from %s (update %d)", checkpoint.folder, trainer.update)
    return trainer, list(describe_matching(settings, models, step))


def _sample(task: Task, settings: Settings, sides: Sequence[Side]) -> list[Batch]:
    """Micro-batches of an epoch until they hold `_SAMPLE_TOKENS` on each of ``sides``; the same on all ranks."""
    batching = replace(settings.section(BatchingConfig), num_workers=0)
    source = task.iterator("train", batching, True, settings.section(RunConfig).seed, 0, 1)
    sample: list[Batch] = []
    seen = dict.fromkeys(sides, 0)
    while min(seen.values()) < _SAMPLE_TOKENS and (found := source.next_update(1)):
        sample += found
        for side in sides:
            seen[side] += int(found[0].rows(side).sum())
    return sample


def _checkpoint(run: Path, config: CheckpointConfig) -> Checkpoint | None:
    newest = CheckpointStore(run).newest()
    if newest is None and config.restore_file:
        return read_checkpoint(Path(config.restore_file))
    return newest


def _task(settings: Settings, data: Corpora, models: Models) -> Task:
    name, config = settings.component("task")
    make: TaskBuilder = TASKS.target(name)
    for side in getattr(make, "sides", ()):
        if side not in models.shape(models.student).sides:
            raise ConfigError(f"--task {name} needs models with a {side}, which a {models.family.model_type} has not")
    if isinstance(make, ChecksModels):
        scores_labels = getattr(settings.component("criterion")[1], "ce_weight", 1.0) > 0
        make.check_models(config, models.shape(models.student).sides, scores_labels)
    return make(
        config,
        data,
        pad=models.student.config.pad_token_id,
        decoder_start=models.family.decoder_start(models.student.config),
        max_positions=models.max_positions,
    )


def _validator(
    settings: Settings, task: Task, models: Models, step: Step, teacher: Teacher | None, world: World
) -> Validator | None:
    config, batching = settings.section(ValidationConfig), settings.section(BatchingConfig)
    if config.disable_validation:
        return None
    scorer = task.scorer(models.student, models.tokenizer, config.valid_subset, world, batching.token_budget)
    if isinstance(models.teacher, RecordedTeacher):
        teacher = models.teacher.on_split(config.valid_subset, step.all_needs())
    passes = {name: partial(_one_pass, start) for name, start in _passes(settings, task, world).items()}
    validator = Validator(step, teacher, passes, world, scorer, getattr(task, "validation_sums", {}))
    # What is wrong with the split or the metric is told now and not at the end of the first epoch.
    validator.check(config.best_checkpoint_metric)
    return validator


def _passes(settings: Settings, task: Task, world: World) -> dict[str, Callable[[], PlannedBatches]]:
    """What starts a pass over the validation split of each corpus, by name ("" where there are no several)."""
    split, batching = settings.section(ValidationConfig).valid_subset, settings.section(BatchingConfig)
    names = task.corpora(split) if isinstance(task, SeveralCorpora) else []
    if len(names) > 1:
        assert isinstance(task, SeveralCorpora)
        return {name: partial(task.corpus_pass, name, split, batching, world.rank, world.size) for name in names}
    seed = settings.section(RunConfig).seed
    return {"": partial(task.iterator, split, batching, False, seed, world.rank, world.size)}


def _one_pass(make: Callable[[], PlannedBatches]) -> Iterator[Batch]:
    """This rank's micro-batches of one pass over a split."""
    batches = make()
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
