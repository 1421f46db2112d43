"""cktk-generate: output for lines, or for a split of a data folder; or a data folder with outputs as its targets."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from cktk.config.command import Command, Settings
from cktk.data.context_config import InputConfig
from cktk.data.preprocessing.rewrite_config import NewTargetsConfig
from cktk.errors import ConfigError
from cktk.generation.configs import GenerateConfig, SearchConfig
from cktk.plugins import load_plugins
from cktk_cli import lines, streams
from cktk_cli.interactive import converse
from cktk_cli.live import LiveLines, live_lines
from cktk_cli.outputs import Here, take_counts
from cktk_cli.progress import SentenceBar
from cktk_cli.run import run_command
from cktk_cli.task import (
    MODEL_SECTIONS,
    TEXT_SECTIONS,
    check_scoring,
    open_split,
    score_texts,
    task_component,
    writes_texts,
)
from cktk_cli.timing import Timing, summary
from cktk_cli.workers import Workers


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
    if config.interactive:
        converse(settings)
        return
    scores, timing = config.print_scores or search.nbest > 1, Timing()
    live: LiveLines | None = None
    label, rows = "generating", lines.count(config.input)
    if config.data_bin:
        label, rows = config.gen_subset, lines.rows_of_split(config.data_bin, config.gen_subset)
        windows = streams.split_windows(config, range(rows))
    else:
        live = live_lines(config.input, config.buffer_size)
        windows = streams.input_windows(config, live)
    several = config.workers > 1
    with Workers(settings, config.workers, live=live is not None) if several else Here(settings) as crew:
        try:
            with SentenceBar(label, rows, beside_output=config.output is None) as bar:
                found = crew.work(windows, bar)
                best = streams.write(found, config.output, timing, scores=scores, keep=config.scoring is not None)
        except KeyboardInterrupt:  # the usual end of a stream that has none
            if config.output is None:
                timing.report()
            raise
        timing.report()
        if config.scoring:
            where = sys.stderr if config.output is None else sys.stdout
            references = list(lines.read(config.reference)) if config.reference else crew.ask("references")
            print(score_texts(settings, best, references), file=where)


def _check(settings: Settings, config: GenerateConfig) -> None:
    check_scoring(settings, config.scoring)
    _check_workers(settings, config.workers)
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


def _check_workers(settings: Settings, workers: int) -> None:
    search = settings.section(SearchConfig)
    for flag, given, why in (
        ("--context-size", settings.section(InputConfig).context_size > 0, "a sentence waits for those before it"),
        ("--sampling of --backend ctranslate2", _draws_by_batch(search), "what it draws depends on the batch"),
    ):
        if given and workers > 1:
            raise ConfigError(f"--workers and {flag} exclude each other: {why}; leave --workers out")


def _draws_by_batch(search: SearchConfig) -> bool:
    return search.sampling and search.backend == "ctranslate2"


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
        ("--print-alignment", config.print_alignment),
        ("--nbest", search.nbest > 1),
        ("--workers", config.workers > 1),
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
    summary(take_counts(split.translator), time.perf_counter() - started)
    fate = f"{report.dropped_empty} of them left out" if report.dropped_empty else "all of them kept"
    print(f"{dest}: {report.lines} rows, {report.empty} empty outputs ({fate})", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
