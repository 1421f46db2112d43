"""Real text with a trained student: the same hypotheses, BLEU in int8, and whole commands beside a usual script."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import sacrebleu
import torch

from benchmarks.generation_engines import median_seconds
from benchmarks.report import Figure
from cktk.hub import student

#: Differences of scores that count as a tie.
TIE = 1e-5
SCRIPT = Path(__file__).with_name("translate_with_transformers.py")


def text_figures(path: Path, source: Path, reference: Path, *, quick: bool) -> list[Figure]:
    """Hypotheses against transformers' (fp32, beam 4), and BLEU in int8 against BLEU in fp32."""
    lines = _lines(source, 50 if quick else None)
    references = _lines(reference, len(lines))
    exact = student(path, device="cpu", beam=4, max_len_b=100, batch_size=32)
    found = exact.translate_nbest(lines)
    theirs = [_of_transformers(exact, line) for line in lines]
    different = [
        abs(best[0].score - score)
        for best, (tokens, score) in zip(found, theirs, strict=True)
        if best[0].tokens != tokens
    ]
    same = [
        abs(best[0].score - score)
        for best, (tokens, score) in zip(found, theirs, strict=True)
        if best[0].tokens == tokens
    ]
    rounded = student(path, device="cpu", beam=4, max_len_b=100, batch_size=32, quantization="int8")
    bleu = [
        sacrebleu.corpus_bleu(texts, [references]).score
        for texts in ([best[0].text for best in found], rounded.translate(lines))
    ]
    return [
        Figure("hypotheses that differ from transformers' in ties", _count(different, ties=True), None),
        Figure("hypotheses that differ otherwise", _count(different, ties=False), 0),
        Figure("largest difference of a score", max(same), 1e-4),
        Figure("BLEU in fp32", bleu[0], None, "higher"),
        Figure("BLEU in int8 less BLEU in fp32, absolute", abs(bleu[1] - bleu[0]), 0.2),
    ]


def command_figures(path: Path, source: Path, *, quick: bool) -> list[Figure]:
    """Sentences/s of whole commands, start and loading included."""
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "source"
        text.write_text("".join(f"{line}\n" for line in _lines(source, 50 if quick else None)), encoding="utf-8")
        output = str(Path(folder) / "output")
        files = ["--path", str(path), "--input", str(text), "--output", output]
        ours = [sys.executable, "-m", "cktk_cli.generate", *files, "--beam", "4", "--max-len-b", "100"]
        commands = {
            "cktk-generate": [*ours, "--device", "cpu"],
            "cktk-generate --quantization int8": [*ours, "--device", "cpu", "--quantization", "int8"],
            "transformers script": [sys.executable, str(SCRIPT), str(path), str(text), output],
        }
        engines = {name: lambda _, command=command: _run(command) for name, command in commands.items()}
        seconds = median_seconds(engines, [], 1 if quick else 3, time.perf_counter)
        count = len(_lines(text, None))
    script = seconds["transformers script"]
    figures = [Figure(f"{name}, sentences/s", count / spent, None, "higher") for name, spent in seconds.items()]
    for name in list(commands)[:2]:
        target = 3.0 if name == "cktk-generate" else None
        figures.append(Figure(f"{name} / transformers script", script / seconds[name], target, "higher"))
    return figures


def _lines(path: Path, count: int | None) -> list[str]:
    lines = path.read_text(encoding="utf-8").split("\n")
    return [line for line in lines if line.strip()][:count]


def _count(differences: list[float], *, ties: bool) -> int:
    return sum((difference <= TIE) == ties for difference in differences)


@torch.inference_mode()
def _of_transformers(ours: object, line: str) -> tuple[tuple[int, ...], float]:
    """Tokens and score of one line alone, by transformers."""
    model, tokenizer = ours.model, ours.tokenizer  # type: ignore[attr-defined]
    inputs = tokenizer(line, return_tensors="pt", truncation=True, max_length=ours.max_source_positions)  # type: ignore[attr-defined]
    found = model.generate(
        input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], num_beams=4, do_sample=False,
        max_length=102, min_length=0, length_penalty=1.0, early_stopping=False, no_repeat_ngram_size=0,
        return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    tokens = found.sequences[0, 1:].tolist()
    while tokens and tokens[-1] == tokenizer.pad_token_id:
        tokens.pop()
    return tuple(tokens), float(found.sequences_scores[0])


def _run(command: list[str]) -> list[tuple[int, ...]]:
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    return []
