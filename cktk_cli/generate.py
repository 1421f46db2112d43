"""cktk-generate: translate lines, or a split of a data folder, with a student."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, Any

from cktk.config.command import Command, Settings
from cktk.data.text import decode_lines
from cktk.errors import ConfigError, DataError
from cktk.generation.configs import GenerateConfig, ModelConfig, SearchBatchConfig, SearchConfig
from cktk.plugins import load_plugins
from cktk.utils.files import atomic_file
from cktk_cli import lines
from cktk_cli.progress import SentenceBar
from cktk_cli.run import run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    command = Command(
        "cktk-generate",
        "Translate lines (one sentence each) or a split of a data folder. Writes one translation per line, in input "
        "order; a blank line gives a blank line.",
        [GenerateConfig, SearchConfig, SearchBatchConfig, ModelConfig],
        load_plugins=load_plugins,
    )
    return run_command(command, generate, argv)


def generate(settings: Settings) -> None:
    """Translate, write, and report on stderr; the score goes to stdout if the translations went to a file."""
    config, search = settings.section(GenerateConfig), settings.section(SearchConfig)
    if config.scoring and not config.data_bin and config.reference is None:
        raise ConfigError("--scoring sacrebleu needs --reference FILE where no data folder is given")
    if config.data_bin and config.input != "-":
        raise ConfigError(f"--input {config.input} and the data folder {config.data_bin} exclude each other; give one")
    if config.reference is not None and not config.scoring:
        raise ConfigError("--reference is only looked at with --scoring sacrebleu; add it")
    if search.nbest > search.beam:
        raise ConfigError(f"--nbest {search.nbest} is more than --beam {search.beam}; raise the beam")
    for flag, name in (("--input", config.input), ("--prefix", config.prefix), ("--reference", config.reference)):
        if name not in (None, "-") and not Path(str(name)).exists():
            raise ConfigError(f"{flag} {name}: no such file")
    _check_lines(config)
    # transformers takes seconds to import: only after the flags and files have been looked at.
    from cktk.hub import open_split, open_translator

    model, batches = settings.section(ModelConfig), settings.section(SearchBatchConfig)
    split: Any = None
    if config.data_bin:
        split = open_split(config.path, config.data_bin, model, search, batches)
        found, translator = _split_translations(config, split), split.translator
    else:
        translator = open_translator(config.path, model, search, batches)
        found = _line_translations(config, translator)
    started = time.perf_counter()
    best = _write(found, config, scores=config.print_scores or search.nbest > 1)
    _summary(translator.counts, time.perf_counter() - started)
    if config.scoring:
        from cktk.evaluation.bleu import score_translations

        where = sys.stderr if config.output is None else sys.stdout
        references = list(lines.read(config.reference)) if config.reference else split.references(config.gen_subset)
        print(score_translations(best, references), file=where)


def _check_lines(config: GenerateConfig) -> None:
    if config.prefix is None and config.reference is None:
        return
    rows, what = lines.count(config.input), config.input
    if config.data_bin:
        rows, what = lines.rows_of_split(config.data_bin, config.gen_subset), f"the {config.gen_subset} split"
    lines.check_paired("--prefix", config.prefix, rows, what)
    lines.check_paired("--reference", config.reference if config.scoring else None, rows, what)


def _write(found: Iterator[Any], config: GenerateConfig, scores: bool) -> list[str]:
    """Write n-best lists as they come; returns the best translations if they are to be scored."""
    best = []
    with _output(config.output) as out:
        for number, translations in enumerate(found, start=1):
            if config.scoring:
                best.append(translations[0].text)
            if not scores:
                out.write(translations[0].text + "\n")
                continue
            for translation in translations:
                out.write(f"{number}\t{translation.score:.4f}\t{translation.text}\n")
    return best


def _split_translations(config: GenerateConfig, split: Any) -> Iterator[Any]:
    prefixes = None if config.prefix is None else list(lines.read(config.prefix))
    with SentenceBar(config.gen_subset, len(split.data.split(config.gen_subset))) as bar:
        yield from split.translate(config.gen_subset, prefixes, bar)


def _line_translations(config: GenerateConfig, translator: Any) -> Iterator[Any]:
    sources = decode_lines(sys.stdin.buffer, "stdin") if config.input == "-" else lines.read(config.input)
    prefixes = None if config.prefix is None else lines.read(config.prefix)
    with SentenceBar("translating", lines.count(config.input)) as bar:
        yield from _windows(translator, sources, prefixes, config, bar)


def _windows(
    translator: Any,
    sources: Iterator[str],
    prefixes: Iterator[str] | None,
    config: GenerateConfig,
    on_progress: Callable[[int], None],
) -> Iterator[Any]:
    """Translate ``--buffer-size`` lines at a time: memory stays bounded however long the input is."""
    seen = 0
    while window := list(islice(sources, config.buffer_size)):
        begin = None if prefixes is None else list(islice(prefixes, len(window)))
        seen += len(window)
        if begin is not None and len(begin) < len(window):
            raise DataError(f"--prefix {config.prefix}: fewer lines than the input; give one line per input line")
        yield from translator.translate_nbest(window, begin, on_progress)
    if prefixes is not None and next(prefixes, None) is not None:
        raise DataError(f"--prefix {config.prefix}: more lines than the input ({seen}); give one line per input line")


@contextmanager
def _output(name: str | None) -> Iterator[IO[str]]:
    if name is None:
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(encoding="utf-8", newline="\n")
        yield sys.stdout
        sys.stdout.flush()
    else:
        with atomic_file(Path(name), "w", encoding="utf-8", newline="\n") as stream:
            yield stream


def _summary(counts: Any, seconds: float) -> None:
    speed = f"{counts.sentences / seconds:.1f} sentences/s, {counts.tokens / seconds:.0f} tokens/s"
    print(f"{counts.sentences} sentences in {seconds:.1f} s ({speed})", file=sys.stderr)
    if counts.truncated:
        print(f"warning: {counts.truncated} sources were over-long and cut", file=sys.stderr)
    if counts.empty:
        print(f"warning: {counts.empty} blank sources gave blank translations", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
