"""Opening students and building new ones, also through torch.hub."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from cktk.errors import CheckpointError, ConfigError
from cktk.hub import build_student, resolve_device, student, student_folder
from tests.unit.generation.students import save_student

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_student(tmp_path_factory.mktemp("hub") / "small")


def test_torch_hub_opens_a_student(folder: Path) -> None:
    opened = torch.hub.load(str(ROOT), "student", str(folder), source="local", beam=2, max_len_b=10)
    assert opened.translate(["a b", "", "c"]) == student(folder, beam=2, max_len_b=10).translate(["a b", "", "c"])


def test_torch_hub_builds_students() -> None:
    for family in ("bart", "mbart"):
        built = torch.hub.load(str(ROOT), family, 32, 1, 3, source="local", vocab_size=50, max_positions=16)
        assert built.config.model_type == family
    assert (built.config.d_model, built.config.encoder_layers, built.config.decoder_layers) == (32, 1, 3)
    assert built.model.shared.weight.shape == (50, 32)


def test_new_student_of_a_teacher(folder: Path) -> None:
    built = build_student(
        "bart", width=8, encoder_layers=1, decoder_layers=1, ffn_width=16, teacher=folder, init="truncate"
    )
    teacher = student(folder).model
    assert torch.equal(built.model.shared.weight, teacher.model.shared.weight[:, :8])
    assert built.generation_config.decoder_start_token_id == 2


def test_new_student_of_an_earlier_one(folder: Path) -> None:
    sizes = {"width": 16, "encoder_layers": 1, "decoder_layers": 2, "ffn_width": 24, "heads": 2}
    built = build_student("bart", **sizes, teacher=folder, init="checkpoint", init_checkpoint=folder)
    earlier = student(folder).model
    assert torch.equal(built.model.decoder.layers[1].fc1.weight, earlier.model.decoder.layers[1].fc1.weight)
    with pytest.raises(ConfigError, match="--init checkpoint .*give --init-checkpoint"):
        build_student("bart", **sizes, teacher=folder, init="checkpoint")
    with pytest.raises(ConfigError, match="--arch mbart does not fit the model .*: use --arch bart"):
        build_student("mbart", **sizes, vocab_size=24, init="checkpoint", init_checkpoint=folder)


def test_an_earlier_student_gives_the_sizes_that_are_left_open(folder: Path, tmp_path: Path) -> None:
    sizes = {"width": 8, "encoder_layers": 2, "decoder_layers": 1, "ffn_width": 12, "heads": 4}
    build_student("bart", **sizes, teacher=folder).save_pretrained(tmp_path / "small")
    start = {"teacher": folder, "init": "checkpoint", "init_checkpoint": tmp_path / "small"}
    config = build_student("bart", decoder_layers=3, **start).config
    assert (config.d_model, config.encoder_layers, config.decoder_layers) == (8, 2, 3)
    assert (config.decoder_ffn_dim, config.encoder_attention_heads) == (12, 4)
    with pytest.raises(ConfigError, match="width is 16 in the student and 8 in the checkpoint"):
        build_student("bart", width=16, **start)


def test_run_directory_gives_its_best_student(folder: Path, tmp_path: Path) -> None:
    for name in ("checkpoint1", "checkpoint2"):
        shutil.copytree(folder, tmp_path / name / "student")
    (tmp_path / "checkpoint_last").symlink_to("checkpoint2")
    assert student_folder(tmp_path) == tmp_path / "checkpoint_last" / "student"
    (tmp_path / "checkpoint_best").symlink_to("checkpoint1")
    assert student_folder(tmp_path) == tmp_path / "checkpoint_best" / "student"
    assert student_folder(tmp_path / "checkpoint2") == tmp_path / "checkpoint2" / "student"
    assert student_folder(folder) == folder


def test_folders_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no config\.json in this folder.*run directory"):
        student_folder(tmp_path)
    with pytest.raises(CheckpointError, match="no such folder"):
        student(tmp_path / "gone")
    with pytest.raises(CheckpointError, match="--device nowhere: cannot be used"):
        resolve_device("nowhere")


@pytest.mark.parametrize(
    "sizes", [{"width": 0}, {"width": -3}, {"encoder_layers": -1}, {"heads": 0, "head_width": 8}, {"ffn_width": 0}]
)
def test_sizes_that_no_model_has(sizes: dict[str, int]) -> None:
    whole = {"width": 16, "encoder_layers": 1, "decoder_layers": 1, **sizes}
    name = next(iter(sizes)).replace("_", "-")
    with pytest.raises(ConfigError, match=f"--{name} {next(iter(sizes.values()))}: has to be 1 or more"):
        build_student("t5", **whole)


def test_search_options_from_python_are_checked_as_flags_are(folder: Path) -> None:
    with pytest.raises(ConfigError, match="beam=0: 0 is out of range: must be at least 1"):
        student(folder, beam=0)
    with pytest.raises(ConfigError, match="unknown name 'baem'; did you mean beam"):
        student(folder, baem=3)
    with pytest.raises(ConfigError, match="context_size=-1"):
        student(folder, context_size=-1)
