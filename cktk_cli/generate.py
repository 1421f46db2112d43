"""cktk-generate: output for lines, or for a split of a data folder; or a data folder with outputs as its targets."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cktk.config.command import Command, Settings
from cktk.data.preprocessing.rewrite_config import NewTargetsConfig
from cktk.errors import ConfigError
from cktk.generation.configs import GenerateConfig, SearchConfig
from cktk.plugins import load_plugins
from cktk_cli import lines, streams
from cktk_cli.progress import SentenceBar
from cktk_cli.run import run_command
from cktk_cli.task import (
    MODEL_SECTIONS,
    TEXT_SECTIONS,
    check_scoring,
    open_split,
    open_translator,
    score_texts,
    task_component,
    writes_texts,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    command = Command(
        "cktk-generate",
        "Translate or summarise lines (one text each) or a split of a data folder. Writes one output per line, in "
        "input order; a blank line gives a blank line. With --dest-dir the outputs become the targets of a new data "
        "folder; with --task glue the output are predictions.",
        [GenerateConfig, *MODEL_SECTIONS],
        [task_component(argv, of_texts=(*TEXT_SECTIONS, NewTargetsConfig))],
        load_plugins=load_plugins,
    )
    return run_command(command, generate, argv)


def generate(settings: Settings) -> None:
    """Generate, write, and report on stderr; a score goes to stdout if the outputs went to a file."""
    if not writes_texts(settings):
        from cktk_cli.glue import predict

        predict(settings)
    elif settings.section(NewTargetsConfig).dest_dir is not None:
        _write_targets(settings)
    else:
        _write_lines(settings)


def _write_lines(settings: Settings) -> None:
    config, search = settings.section(GenerateConfig), settings.section(SearchConfig)
    _check(settings, config)
    split: Any = None
    if config.data_bin:
        split = open_split(settings, config.path, config.data_bin)
        found, translator = _split_outputs(config, split), split.translator
    else:
        translator = open_translator(settings, config.path)
        found = streams.line_outputs(config, translator)
    started = time.perf_counter()
    scores = config.print_scores or search.nbest > 1
    best = streams.write(found, config.output, scores=scores, keep=config.scoring is not None)
    streams.summary(translator.counts, time.perf_counter() - started)
    if config.scoring:
        where = sys.stderr if config.output is None else sys.stdout
        references = list(lines.read(config.reference)) if config.reference else split.references(config.gen_subset)
        print(score_texts(settings, best, references), file=where)


def _check(settings: Settings, config: GenerateConfig) -> None:
    check_scoring(settings, config.scoring)
    if config.scoring and not config.data_bin and config.reference is None:
        raise ConfigError(f"--scoring {config.scoring} needs --reference FILE where no data folder is given")
    if config.data_bin and config.input != "-":
        raise ConfigError(f"--input {config.input} and the data folder {config.data_bin} exclude each other; give one")
    if config.reference is not None and not config.scoring:
        raise ConfigError("--reference is only looked at with --scoring; add it")
    for flag, name in (("--input", config.input), ("--prefix", config.prefix), ("--reference", config.reference)):
        if name not in (None, "-") and not Path(str(name)).exists():
            raise ConfigError(f"{flag} {name}: no such file")
    if config.prefix is None and config.reference is None:
        return
    rows, what = lines.count(config.input), config.input
    if config.data_bin:
        rows, what = lines.rows_of_split(config.data_bin, config.gen_subset), f"the {config.gen_subset} split"
    lines.check_paired("--prefix", config.prefix, rows, what)
    lines.check_paired("--reference", config.reference, rows, what)


def _split_outputs(config: GenerateConfig, split: Any) -> Iterator[Any]:
    prefixes = None if config.prefix is None else list(lines.read(config.prefix))
    with SentenceBar(config.gen_subset, len(split.data.split(config.gen_subset))) as bar:
        yield from split.translate(config.gen_subset, prefixes, bar)


def _write_targets(settings: Settings) -> None:
    """Sequence-level distillation: a data folder whose split has the outputs as its targets."""
    config, new = settings.section(GenerateConfig), settings.section(NewTargetsConfig)
    search = settings.section(SearchConfig)
    if config.data_bin is None:
        raise ConfigError("--dest-dir needs a data folder to take sources and all other splits from; give one")
    for flag, given in (
        ("--input", config.input != "-"),
        ("--output", config.output is not None),
        ("--prefix", config.prefix is not None),
        ("--scoring", config.scoring is not None),
        ("--print-scores", config.print_scores),
        ("--nbest", search.nbest > 1),
    ):
        if given:
            raise ConfigError(f"{flag} and --dest-dir exclude each other; give one")
    from cktk.tasks.sequence_kd import write_targets

    dest, split = Path(str(new.dest_dir)), open_split(settings, config.path, config.data_bin)
    started = time.perf_counter()
    with SentenceBar(config.gen_subset, len(split.data.split(config.gen_subset))) as bar:
        report = write_targets(
            split,
            dest,
            config.gen_subset,
            search,
            config.path,
            bar,
            drop_empty=new.empty_hypotheses == "drop",
            part_rows=config.buffer_size,
        )
    if report is None:
        print(f"nothing to do: {dest} is finished already", file=sys.stderr)
        return
    streams.summary(split.translator.counts, time.perf_counter() - started)
    fate = f"{report.dropped_empty} of them left out" if report.dropped_empty else "all of them kept"
    print(f"{dest}: {report.lines} rows, {report.empty} empty outputs ({fate})", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
