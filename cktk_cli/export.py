"""cktk-export: a student for another engine, compared with what the student itself does before anything is kept."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cktk.config.command import Command, Settings
from cktk.errors import ConfigError
from cktk.export.configs import CheckConfig, ExportConfig
from cktk.plugins import load_plugins
from cktk_cli.run import run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    command = Command(
        "cktk-export",
        "Write a student in the format of another engine, or with int8 weights. Student and export work on a sample; "
        "what does not agree is not kept.",
        [ExportConfig, CheckConfig],
        load_plugins=load_plugins,
    )
    return run_command(command, export, argv)


def export(settings: Settings) -> None:
    """Write the folder, and print what was compared."""
    config, check = settings.section(ExportConfig), settings.section(CheckConfig)
    output = Path(config.output)
    if output.exists():
        raise ConfigError(f"--output {output}: exists already; give a folder that does not")
    if config.format == "onnx":
        for package in ("onnx", "onnxruntime"):
            _require(package)
    elif config.format == "ctranslate2":
        _require("ctranslate2")
    # transformers takes seconds to import: only after the flags have been looked at.
    from cktk.export.comparison import compare, sample_lines
    from cktk.utils.files import atomic_folder

    student = _student(config.path, config, check, beam=1 if config.format == "onnx" else check.beam)
    lines = sample_lines(check, student)
    ours = [found[0] for found in student.translate_nbest(lines)]
    with atomic_folder(output) as folder:
        _write(config, student.model, folder)
        theirs = [found[0] for found in _exported(folder, config, check, student).translate_nbest(lines)]
        found = compare(ours, theirs)
        found.check(check.min_agreement, quantised="int8" in (config.format, config.quantization))
    size = sum(file.stat().st_size for file in output.iterdir()) / 1e6
    print(f"{output}: {config.format}, {size:.1f} MB")
    print(f"compared with {config.path}: {found}")


def _require(package: str) -> None:
    from cktk.export.optional import load

    load(package)


def _student(path: str | Path, config: ExportConfig, check: CheckConfig, **options: Any) -> Any:
    """A translator on the CPU whose search is the one that all engines have."""
    from cktk import hub

    return hub.student(
        path,
        device="cpu",
        source_lang=check.source_lang,
        target_lang=check.target_lang,
        allow_bin_weights=config.allow_bin_weights,
        early_stopping="true",
        max_len_b=check.max_len_b,
        **options,
    )


def _write(config: ExportConfig, model: Any, folder: Path) -> None:
    from cktk.architectures.loading import load_tokenizer, write_int8_student

    tokenizer = load_tokenizer(config.path)  # the student's own has the languages of the sample
    if config.format == "ctranslate2":
        from cktk.export.ctranslate2_format import write_ctranslate2

        write_ctranslate2(model, tokenizer, folder, config.quantization or "float32")
    elif config.format == "onnx":
        from cktk.export.onnx_format import write_onnx

        write_onnx(model, tokenizer, folder)
    else:
        write_int8_student(model, tokenizer, folder)


def _exported(folder: Path, config: ExportConfig, check: CheckConfig, student: Any) -> Any:
    """What was written, opened again."""
    if config.format == "ctranslate2":
        return _student(folder, config, check, beam=check.beam, backend="ctranslate2")
    if config.format == "int8":
        return _student(folder, config, check, beam=check.beam)
    from cktk.export.onnx_search import OnnxGreedy

    return student.with_engine(OnnxGreedy(folder, student.model, check.max_len_b))


if __name__ == "__main__":
    sys.exit(main())
