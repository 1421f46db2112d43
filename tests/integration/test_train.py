"""cktk-train from its flags to a student that plain transformers opens."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from cktk.hub import student
from cktk_cli.average_checkpoints import main as average
from cktk_cli.generate import main as generate
from cktk_cli.train import main as train
from tests.integration import toy

WITHOUT_CKTK = """
import sys
sys.modules["cktk"] = None
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
model = AutoModelForSeq2SeqLM.from_pretrained(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
for line in sys.argv[2:]:
    ids = model.generate(**tokenizer([line], return_tensors="pt"), num_beams=3, max_length=22)
    print(tokenizer.decode(ids[0], skip_special_tokens=True).strip())
"""


def test_a_model_from_scratch_translates_here_and_in_plain_transformers(data: Path, tmp_path: Path) -> None:
    shape = ["--width", "32", "--encoder-layers", "1", "--decoder-layers", "1", "--heads", "4"]
    limits = ["--max-epoch", "15", "--validate-interval", "5", "--save-interval", "5", "--max-tokens", "400"]
    limits += ["--max-source-positions", "40", "--max-target-positions", "40"]
    more = ["--label-smoothing", "0.1", "--lr", "2e-2", "--eval-bleu"]
    run = toy.run_training(data, tmp_path / "run", *shape, *limits, *more)
    losses = [record["ce"] for record in toy.log(run)]
    assert losses[-1] < 0.6 * losses[0]
    assert toy.log(run, "valid")[-1]["chrf"] > 5
    lines = ["the library of this package.", "a simple game with many levels."]
    command = [sys.executable, "-c", WITHOUT_CKTK, str(run / "checkpoint_best" / "student"), *lines]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    ours = student(str(run), beam=3, max_len_b=20).translate(lines)
    assert done.stdout.splitlines() == ours
    assert any(ours)


@pytest.mark.parametrize("criterion", ["kl_kd", "cka_kd", "linear_kd"])
def test_distillation_learns(criterion: str, data: Path, teacher: Path, tmp_path: Path) -> None:
    flags = ["--teacher", str(teacher), "--criterion", criterion, *toy.SHAPE, "--max-update", "30", "--dropout", "0"]
    run = toy.run_training(data, tmp_path / "run", *flags)
    records = toy.log(run)
    names = {"kl_kd": ["kl"], "cka_kd": ["kl", "cka"], "linear_kd": ["kl", "linear/encoder", "linear/decoder"]}
    for name in ["ce", *names[criterion]]:
        assert records[-1][name] < records[0][name], name
    assert not any("criterion" in name for name in toy.load_file(run / "checkpoint_last/student/model.safetensors"))


def test_cosine_needs_equal_widths(
    data: Path, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--teacher", str(teacher), "--criterion", "cosine_kd", "--decoder-layers", "1", "--max-update", "6"]
    run = toy.run_training(data, tmp_path / "run", *flags, "--init", "copy")
    assert toy.log(run)[-1]["cosine/encoder"] < 0.5
    error = toy.error_of(capsys, *toy.flags(data, tmp_path / "other", *flags, *toy.SHAPE))
    assert "16" in error and "32" in error and "cka_kd" in error


def test_a_run_can_be_repeated_from_its_config(data: Path, teacher: Path, tmp_path: Path) -> None:
    flags = ["--teacher", str(teacher), "--criterion", "cka_kd", *toy.SHAPE, "--max-update", "5"]
    first = toy.run_training(data, tmp_path / "first", *flags, "--lr-scheduler", "cosine")
    again = ["--config", str(first / "config.yaml"), "--save-dir", str(tmp_path / "again")]
    assert train(again) == 0
    assert (tmp_path / "again" / "log.jsonl").read_bytes() == (first / "log.jsonl").read_bytes()
    assert json.loads((first / "run.json").read_text())["cktk"]


@pytest.mark.distributed
@pytest.mark.parametrize("criterion", ["cka_kd", "linear_kd"])
def test_two_processes_do_what_two_micro_batches_do(criterion: str, data: Path, teacher: Path, tmp_path: Path) -> None:
    flags = ["--teacher", str(teacher), "--criterion", criterion, *toy.SHAPE, "--max-epoch", "1", "--eval-bleu"]
    flags += ["--dropout", "0.1", "--log-interval", "1"]
    one = toy.run_training(data, tmp_path / "one", *flags, "--update-freq", "2")
    two = toy.run_training(data, tmp_path / "two", *flags, "--nproc-per-node", "2")
    for group in ("train", "valid"):
        for record, other in zip(toy.log(one, group), toy.log(two, group), strict=True):
            assert {**other, "group": 0} == pytest.approx({**record, "group": 0}, rel=2e-3, abs=1e-5)
    # And a run of two processes is continued by one.
    toy.run_training(data, two, *flags, "--nproc-per-node", "1", "--max-epoch", "2", "--update-freq", "1")
    assert toy.log(two)[-1]["epoch"] == 2


def test_best_last_kept_and_averaged(data: Path, tmp_path: Path) -> None:
    flags = [*toy.SHAPE, "--max-epoch", "4", "--keep-last-epochs", "3", "--best-checkpoint-metric", "ce"]
    run = toy.run_training(data, tmp_path / "run", *flags)
    kept = sorted(path.name for path in run.glob("checkpoint?"))
    assert kept == ["checkpoint2", "checkpoint3", "checkpoint4"]
    best = min(toy.log(run, "valid"), key=lambda record: record["ce"])["epoch"]
    assert (run / "checkpoint_best").resolve().name == f"checkpoint{best}"
    assert (run / "checkpoint_last").resolve().name == "checkpoint4"
    assert average([str(run), "--num-epoch-checkpoints", "3", "--output", str(tmp_path / "mean")]) == 0
    students = [toy.load_file(run / name / "student/model.safetensors") for name in kept]
    mean = toy.load_file(tmp_path / "mean" / "model.safetensors")
    for name, tensor in mean.items():
        expected = torch.stack([weights[name].double() for weights in students]).mean(0).float()
        torch.testing.assert_close(tensor, expected, rtol=0, atol=0)


def test_the_last_weights_are_validated(data: Path, tmp_path: Path) -> None:
    run = toy.run_training(data, tmp_path / "run", *toy.SHAPE, "--max-update", "7", "--no-store-ema")
    assert toy.log(run, "valid")[-1]["update"] == 7
    assert (run / "checkpoint_best").resolve() == (run / "checkpoint_last").resolve()


def test_patience_ends_a_run(data: Path, tmp_path: Path) -> None:
    flags = [*toy.SHAPE, "--lr", "1e-12", "--max-epoch", "30", "--patience", "2", "--maximize-best-checkpoint-metric"]
    run = toy.run_training(data, tmp_path / "run", *flags)
    figures = [record["loss"] for record in toy.log(run, "valid")]
    assert len(figures) < 30
    assert max(figures) == figures[-3]


def test_frozen_parts_stay(data: Path, teacher: Path, tmp_path: Path) -> None:
    flags = ["--teacher", str(teacher), "--criterion", "kl_kd", "--init", "copy", "--decoder-layers", "1"]
    run = toy.run_training(
        data, tmp_path / "run", *flags, "--freeze-embeddings", "--freeze-encoder", "--max-update", "4"
    )
    before = toy.load_file(teacher / "model.safetensors")
    after = toy.load_file(run / "checkpoint_last/student/model.safetensors")
    assert torch.equal(after["model.shared.weight"], before["model.shared.weight"])
    frozen = [name for name in after if name.startswith("model.encoder.")]
    assert "model.encoder.embed_positions.weight" in frozen
    assert all(torch.equal(after[name], before[name]) for name in frozen)
    assert any(not torch.equal(after[name], before[name]) for name in after if "decoder.layers.0" in name)


MIXED = ["--criterion", "cka_kd", *toy.SHAPE, "--max-update", "30", "--dropout", "0"]


@pytest.fixture(scope="module")
def exact(data: Path, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.run_training(data, tmp_path_factory.mktemp("exact") / "run", "--teacher", str(teacher), *MIXED)


@pytest.mark.parametrize("precision", ["--bf16", "--fp16"])
def test_mixed_precision(precision: str, exact: Path, data: Path, teacher: Path, tmp_path: Path) -> None:
    mixed = toy.run_training(data, tmp_path / "mixed", "--teacher", str(teacher), *MIXED, precision)
    assert toy.log(mixed)[0]["loss"] == pytest.approx(toy.log(exact)[0]["loss"], rel=0.02)
    assert toy.log(mixed)[-1]["loss"] == pytest.approx(toy.log(exact)[-1]["loss"], rel=0.1)
    assert all(
        t.dtype == torch.float32 for t in toy.load_file(mixed / "checkpoint_last/student/model.safetensors").values()
    )


def test_finetuning_starts_from_a_student(data: Path, tmp_path: Path) -> None:
    first = toy.run_training(data, tmp_path / "first", *toy.SHAPE, "--max-epoch", "3")
    flags = ["--finetune-from-model", str(first / "checkpoint_last"), "--max-update", "2", "--dropout", "0"]
    second = toy.run_training(data, tmp_path / "second", *flags, "--log-interval", "1", "--lr", "1e-9")
    assert toy.log(second)[0]["ce"] < toy.log(first)[0]["ce"]
    assert json.loads((second / "checkpoint_last/student/config.json").read_text())["dropout"] == 0


@pytest.mark.parametrize("flag", ["--finetune-from-model", "--init-checkpoint"])
def test_models_to_start_from_are_checked_as_teachers_are(
    flag: str, data: Path, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = [*toy.flags(data, tmp_path / "run", "--max-update", "1", flag)]
    shape = [] if flag == "--finetune-from-model" else ["--init", "checkpoint", "--teacher", str(teacher)]
    error = toy.error_of(capsys, *common, str(teacher), *shape, "--arch", "mbart")
    assert "--arch mbart does not fit" in error and "use --arch bart" in error
    other = toy.make_teacher(tmp_path / "other", data)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary[-1], vocabulary[-2] = vocabulary[-2], vocabulary[-1]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    if flag == "--finetune-from-model":  # tokens of an --init-checkpoint are found by name
        error = toy.error_of(capsys, *common, str(other), *shape)
        assert str(other) in error and "token" in error and "preprocess" in error
    (other / "model.safetensors").rename(other / "pytorch_model.bin")
    assert "--allow-bin-weights" in toy.error_of(capsys, *common, str(other), *shape)


def test_epochs_of_a_number_of_samples(data: Path, tmp_path: Path) -> None:
    flags = [*toy.SHAPE, "--samples-per-epoch", "50", "--max-epoch", "4", "--batch-size", "10"]
    flags += ["--log-interval", "1", "--max-tokens", "1000"]
    run = toy.run_training(data, tmp_path / "run", *flags)
    assert [record["epoch"] for record in toy.log(run)] == [1] * 5 + [2] * 5 + [3] * 5 + [4] * 5


def test_a_decay_over_epochs_ends_with_them(data: Path, tmp_path: Path) -> None:
    shape = [*toy.SHAPE, "--lr-scheduler", "linear", "--log-interval", "1", "--max-epoch", "3"]
    rates = [record["lr"] for record in toy.log(toy.run_training(data, tmp_path / "run", *shape))]
    expected = [1e-2 * (1 - (update - 3) / (len(rates) - 3)) for update in range(3, len(rates))]
    # What is over is known by sentences, of which micro-batches hold more or fewer.
    assert rates[3:] == pytest.approx(expected, abs=1e-3)
    assert rates[-1] == pytest.approx(expected[-1], rel=1e-6)


def test_dry_run_shows_and_writes_nothing(
    data: Path, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--teacher", str(teacher), "--criterion", "cka_kd", *toy.SHAPE, "--max-update", "5", "--dry-run"]
    toy.run_training(data, tmp_path / "run", *flags)
    shown = capsys.readouterr().out
    assert "encoder  student" in shown and "teacher weights" in shown and "cka" in shown
    assert not (tmp_path / "run").exists()


def test_reversed_direction(data: Path, tmp_path: Path) -> None:
    flags = [*toy.SHAPE, "--source-lang", "fr", "--target-lang", "en", "--max-update", "2"]
    run = toy.run_training(data, tmp_path / "run", *flags)
    output = tmp_path / "out"
    assert generate(["--path", str(run), "--input", str(data.parent / "test.fr"), "--output", str(output)]) == 0
    assert len(output.read_text().split("\n")) == 13


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--max-update", "1", "--criterion", "cka"], ["--criterion", "did you mean", "cka_kd"]),
        (["--max-update", "1", "--criterion", "cka_kd"], ["--teacher"]),
        (["--max-update", "1", "--teacher", "/no/such/folder"], ["/no/such/folder"]),
        (["--max-update", "1", "--heads", "3"], ["--heads 3", "--width 16"]),
        (["--max-update", "1", "--valid-subset", "dev"], ["dev", "valid"]),
        (["--max-update", "1", "--valid-subset", "dev"], ["--disable-validation"]),
        (["--max_update", "1", "--label_smooting", "0.1"], ["did you mean --label-smoothing"]),
        (["--max-update", "1", "--fp16", "--bf16"], ["--fp16", "--bf16"]),
        (["--max-update", "1", "--lr", "fast"], ["--lr", "'fast'"]),
        (["--max-update", "1", "--max-tokens", "0"], ["--max-tokens", "at least 1"]),
        (["--max-update", "1", "--adam-betas", "0.9"], ["--adam-betas", "2 values"]),
        (["--max-update", "1", "--best-checkpoint-metric", "bleu"], ["--eval-bleu"]),
        (["--max-update", "1", "--best-checkpoint-metric", "rouge"], ["rouge", "loss"]),
        (["--stop-time-hours", "1", "--lr-scheduler", "linear"], ["--max-update", "--max-epoch"]),
        (["--max-update", "1", "--warmup-update", "5"], ["--warmup-update", "did you mean --warmup-updates"]),
        (["--max-update", "1", "--hidden-weight", "5"], ["--hidden-weight", "--criterion", "not chosen"]),
        ([], ["--max-epoch", "--max-update"]),
    ],
)
def test_bad_flags_give_one_line(
    flags: list[str], words: list[str], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = toy.error_of(capsys, *toy.flags(data, tmp_path / "run", *toy.SHAPE, *flags))
    assert all(word in error for word in words), error
    assert not list((tmp_path / "run").glob("checkpoint*"))


def test_bad_folders_give_one_line(
    data: Path, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = toy.make_teacher(tmp_path / "other", data, vocab_size=200)
    limits = ["--max-update", "1"]
    error = toy.error_of(capsys, *toy.flags(data, tmp_path / "run", *limits, *toy.SHAPE, "--teacher", str(other)))
    assert "vocabulary" in error or "200" in error
    assert "no such data folder" in toy.error_of(capsys, *toy.flags(tmp_path / "absent", tmp_path / "run", *limits))
    weights = teacher / "model.safetensors"
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in teacher.iterdir():
        (broken / file.name).write_bytes(file.read_bytes()[: 1000 if file == weights else None])
    error = toy.error_of(capsys, *toy.flags(data, tmp_path / "run", *limits, *toy.SHAPE, "--teacher", str(broken)))
    assert str(broken) in error
    run_file = tmp_path / "run.yaml"
    run_file.write_text(yaml.safe_dump({"max_update": 3, "criterion": "kl_kd", "temprature": 2}))
    error = toy.error_of(capsys, str(data), "--config", str(run_file))
    assert "run.yaml:3" in error and "temperature" in error
