"""What cktk-generate and cktk-evaluate do for --task glue: files for the leaderboard, and rows of its table."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from cktk.config.command import Settings
from cktk.data.batch_config import BatchingConfig
from cktk.errors import ConfigError
from cktk.evaluation.configs import EvaluateConfig
from cktk.generation.configs import GenerateConfig, ModelConfig, SearchBatchConfig
from cktk.utils.files import atomic_file
from cktk_cli.progress import SentenceBar
from cktk_cli.task import refuse


def predict(settings: Settings) -> None:
    """Write the model's predictions for a split into the folder ``--output``, one file a test set.

    A file has the lines ``index<TAB>prediction`` of GLUE's leaderboard, and its name there.
    """
    config = settings.section(GenerateConfig)
    if config.data_bin is None:
        raise ConfigError("--task glue predicts the rows of a data folder; give one of cktk-preprocess --task glue")
    if config.output is None:
        raise ConfigError("--task glue writes one file a test set: give --output DIR")
    refuse(
        "--task glue",
        {
            "--input": config.input != "-",
            "--prefix": config.prefix is not None,
            "--scoring": config.scoring is not None,
            "--reference": config.reference is not None,
            "--print-scores": config.print_scores,
            "--print-alignment": config.print_alignment,
            "--buffer-size": config.buffer_size != GenerateConfig.buffer_size,
            "--workers": config.workers > 1,
            **_of_writers(settings),
        },
    )
    folder = Path(config.output)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--output {folder}: is a file; --task glue writes into a folder")
    from cktk.evaluation.glue import predictions

    model = _open(settings, config.path, config.data_bin)
    for split, name in model.prediction_files(config.gen_subset).items():
        found = _answer(model, set(), split)
        lines = predictions(found.found, model.task.labels, model.task.benchmark)
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_file(folder / name, "w", encoding="utf-8", newline="\n") as stream:
            stream.write("index\tprediction\n")
            stream.writelines(f"{index}\t{line}\n" for index, line in enumerate(lines))
        print(f"{folder / name}: {len(lines)} predictions in {found.seconds:.1f} s", file=sys.stderr)


def evaluate(settings: Settings) -> None:
    """Score models on data folders and print a row of GLUE's table for as many models as there are data folders."""
    config = settings.section(EvaluateConfig)
    if config.hypothesis is not None or config.reference is not None:
        given = "--reference" if config.hypothesis is None else "--hypothesis"
        raise ConfigError(f"{given} has no meaning with --task glue, whose data folders hold the labels; leave it out")
    refuse("--task glue", _of_writers(settings))
    data = [path for path in (config.data_bin or "").split(",") if path]
    if not data or not config.path:
        raise ConfigError("give one data folder or several, DATA,.., and as many models a row with --path DIR,..")
    if len(config.path) % len(data):
        raise ConfigError(
            f"--path names {len(config.path)} models for {len(data)} data folders: give each folder its own, in the "
            "order of the folders, and for more rows as many again"
        )
    # transformers takes seconds to import: only after the flags have been looked at.
    from cktk.assemble.answering import scored_split

    split = scored_split(data, config.gen_subset)
    if config.gen_subset is None and split != "test":
        print(f"--gen-subset {split}: a test split without labels cannot be scored", file=sys.stderr)
    width, told = len(data), set[str]()
    groups = [config.path[start : start + width] for start in range(0, len(config.path), width)]
    rows = [
        {"name": name, **_row(group, data, split, told, settings)}
        for name, group in zip(_names(groups), groups, strict=True)
    ]
    if config.json:
        print(json.dumps(rows, ensure_ascii=False, indent=2))
    else:
        _print_table(rows)


def _names(groups: Sequence[Sequence[str]]) -> list[str]:
    """What rows are called: runs/cka-cola and runs/cka-sst2 are runs/cka together, where that tells rows apart."""
    shared = [os.path.commonprefix(list(paths)).rstrip("-_/.") for paths in groups]  # noqa: RUF071
    told_apart = len(set(shared)) == len(shared)
    return [
        paths[0] if len(paths) == 1 else name if name and told_apart else f"{paths[0]}, ..."
        for paths, name in zip(groups, shared, strict=True)
    ]


def _row(paths: Sequence[str], data: Sequence[str], split: str, told: set[str], settings: Settings) -> dict[str, Any]:
    """The scores of one model a data folder, and their averages over the tasks of GLUE."""
    tasks = []
    for path, folder in zip(paths, data, strict=True):
        model = _open(settings, path, folder)
        tasks.append(model.score(split, partial(_answer, model, told)))
    row: dict[str, Any] = {"tasks": tasks, "tasks_of_glue": sum("score" in task for task in tasks)}
    for average, score in (("average", "score"), ("paper_average", "paper_score")):
        if row["tasks_of_glue"]:
            row[average] = fmean(task[score] for task in tasks if score in task)
    return row


def _open(settings: Settings, path: str, data: str) -> Any:
    # transformers takes seconds to import: only after the flags have been looked at.
    from cktk.assemble.answering import SentenceModel

    model, batches = settings.section(ModelConfig), settings.section(SearchBatchConfig)
    return SentenceModel(
        path,
        data,
        device=model.device,
        max_positions=model.max_source_positions,
        batching=BatchingConfig(max_tokens=batches.max_tokens, batch_size=batches.batch_size),
        allow_bin_weights=model.allow_bin_weights,
    )


def _of_writers(settings: Settings) -> dict[str, bool]:
    """Which flags are given that only models that write texts heed."""
    model = settings.section(ModelConfig)
    return {
        "--source-lang": model.source_lang is not None,
        "--target-lang": model.target_lang is not None,
        "--fp16": model.fp16,
        "--bf16": model.bf16,
    }


def _answer(model: Any, told: set[str], split: str) -> Any:
    """The model's answers to a split; warns of rows that are cut unless that was ``told`` before, of another model."""
    with SentenceBar(f"{model.title} {split}", len(model.data.split(split))) as bar:
        found = model.answer(split, bar)
    warning = f"warning: {found.truncated} rows of {model.title} {split} were over-long and cut"
    if found.truncated and warning not in told:
        print(warning, file=sys.stderr)
        told.add(warning)
    return found


def _print_table(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    averaged = rows[0]["tasks_of_glue"]
    table = Table("name", *(task["task"] for task in rows[0]["tasks"]), *(("average",) if averaged else ()))
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        cells = [
            "/".join(f"{found[metric]:.1f}" for found in task["splits"].values() for metric in task["metrics"])
            for task in row["tasks"]
        ]
        table.add_row(row["name"], *cells, *([f"{row['average']:.1f}"] if averaged else ()))
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table)
    kinds: dict[str, list[str]] = {}
    for task in rows[0]["tasks"]:
        splits = ", ".join(task["splits"])
        kinds.setdefault(f"{'/'.join(task['metrics'])} on {splits}", []).append(task["task"])
    for kind, names in kinds.items():
        console.print(f"{', '.join(names)}: {kind}", highlight=False)
    if averaged:
        console.print(f"average of {averaged} of GLUE's 8 tasks as on its leaderboard, without WNLI", highlight=False)
