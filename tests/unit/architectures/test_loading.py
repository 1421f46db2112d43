from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, PreTrainedTokenizerFast

from cktk.architectures.families.family import families
from cktk.architectures.initialisation.initialise import initialise
from cktk.architectures.loading import load_config, load_model, load_tokenizer, save_student, write_model
from cktk.architectures.spec import StudentSpec
from cktk.errors import CheckpointError, CktkError
from cktk.protocols import Template
from tests.unit.architectures.models import make_model

IDS = {"input_ids": torch.tensor([[0, 7, 9, 11, 2]]), "decoder_input_ids": torch.tensor([[2, 0, 8, 30]])}


def make_tokenizer() -> PreTrainedTokenizerFast:
    words = ["<s>", "<pad>", "</s>", "<unk>", *(f"w{number}" for number in range(37))]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


@pytest.fixture
def folder(kind: str, tmp_path: Path) -> Path:
    """A whole model folder."""
    save_student(make_model(kind), make_tokenizer(), tmp_path / "model")
    return tmp_path / "model"


def edit_json(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_saved_students_open_with_the_auto_classes(kind: str, folder: Path) -> None:
    expected = make_model(kind)
    model, report = AutoModelForSeq2SeqLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values())
    assert torch.equal(model(**IDS).logits, expected(**IDS).logits)
    assert model.lm_head.weight is model.model.shared.weight
    assert AutoTokenizer.from_pretrained(folder).get_vocab() == make_tokenizer().get_vocab()
    assert sorted(file.name for file in folder.iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")  # the tied head is stored once


@pytest.mark.parametrize("kind", ["mbart"])
def test_a_distilled_student_works_in_a_process_without_cktk(kind: str, folder: Path, tmp_path: Path) -> None:
    teacher = load_model(folder)
    family = families()[kind]
    student: Any = family.student(teacher.config, StudentSpec(width=12, ffn_width=16, decoder_layers=1))
    initialise(student, "truncate", teacher=teacher)
    family.set_generation(student, teacher.generation_config, Template((40,), (2,)))
    save_student(student, load_tokenizer(folder), tmp_path / "student")
    program = """
import json, sys
sys.modules["cktk"] = None  # importing it would fail
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
model = AutoModelForSeq2SeqLM.from_pretrained(sys.argv[1])
ids = AutoTokenizer.from_pretrained(sys.argv[1])("w3 w5 w7", return_tensors="pt")["input_ids"]
logits = model(input_ids=ids, decoder_input_ids=torch.tensor([[2, 0, 8]])).logits
print(json.dumps([ids.tolist(), logits.tolist(), model.generate(ids, num_beams=2, max_length=9).tolist()]))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "student")],
        capture_output=True, text=True, check=True, cwd=tmp_path,
    )  # fmt: skip
    ids, logits, generated = json.loads(done.stdout)
    student.eval()
    assert ids == [[7, 9, 11]]
    expected = student(input_ids=torch.tensor(ids), decoder_input_ids=torch.tensor([[2, 0, 8]])).logits
    assert torch.equal(torch.tensor(logits), expected)
    assert generated == student.generate(torch.tensor(ids), num_beams=2, max_length=9).tolist()
    assert generated[0][:2] == [2, 40]


def test_a_half_precision_folder_is_read_as_fp32(kind: str, tmp_path: Path) -> None:
    model = make_model(kind).train()
    save_student(model, None, tmp_path / "half", torch.float16)
    assert model.dtype == torch.float32
    assert model.config.dtype != torch.float16
    assert model.training
    assert load_file(tmp_path / "half" / "model.safetensors")["model.shared.weight"].dtype == torch.float16
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "float16"
    loaded = load_model(tmp_path / "half")
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    assert loaded.config.dtype == torch.float32
    assert not loaded.training
    torch.testing.assert_close(loaded(**IDS).logits, model.eval()(**IDS).logits, rtol=0, atol=0.2)
    student_config = families()[kind].student_config(load_config(tmp_path / "half"), StudentSpec(width=12))
    assert families()[kind].build(student_config).dtype == torch.float32


def test_a_training_checkpoint_is_read_through_its_student_folder(kind: str, tmp_path: Path) -> None:
    write_model(make_model(kind), make_tokenizer(), tmp_path / "checkpoint" / "student")
    assert torch.equal(load_model(tmp_path / "checkpoint")(**IDS).logits, make_model(kind)(**IDS).logits)
    assert load_tokenizer(tmp_path / "checkpoint").get_vocab()["w0"] == 4


def test_loading_prints_nothing(kind: str, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load_model(folder)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("model_type", ["pegasus", "no-such-type", None])
def test_an_unsupported_model_type_names_those_supported(folder: Path, model_type: str | None) -> None:
    edit_json(folder / "config.json", model_type=model_type)
    words = f"model: model type {model_type!r} is not supported; supported: bart, .*mbart.* .plug-ins are loaded with"
    with pytest.raises(CheckpointError, match=words):
        load_model(folder)


def test_another_head_is_refused(kind: str, folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    name = config["architectures"][0]
    other = name.replace("ForConditionalGeneration", "ForSequenceClassification")
    (folder / "config.json").write_text(json.dumps({**config, "architectures": [other]}))
    with pytest.raises(CheckpointError, match=f"is a {other}, which has another head or none; use a {name}"):
        load_model(folder)
    bare = name.replace("ForConditionalGeneration", "Model")
    (folder / "config.json").write_text(json.dumps({**config, "architectures": [bare]}))
    assert type(load_model(folder)).__name__ == name  # its head is the embedding


def test_missing_files_are_named(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path, message in (
        (tmp_path / "nowhere", "nowhere: no such folder"),
        ("./nowhere", "no such folder"),
        (folder / "config.json", r"config\.json: is a file"),
        (tmp_path, r"no config\.json in this folder"),
    ):
        with pytest.raises(CheckpointError, match=message):
            load_model(path)
    (folder / "tokenizer.json").unlink()
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model: no model\.safetensors in this folder"):
        load_model(folder)
    with pytest.raises(CheckpointError, match="model: the tokenizer cannot be loaded"):
        load_tokenizer(folder)
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"no tokenizer_config\.json in this folder"):
        load_tokenizer(folder)


def test_a_folder_with_a_tokenizer_alone(tmp_path: Path) -> None:
    make_tokenizer().save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).get_vocab() == make_tokenizer().get_vocab()
    with pytest.raises(CheckpointError, match=r"no config\.json in this folder"):
        load_model(tmp_path)


def test_a_name_that_is_neither_folder_nor_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match=r"^nobody/nothing: no folder here, and its configuration cannot be lo"):
        load_model("nobody/nothing")


def test_damaged_files_give_one_line(folder: Path) -> None:
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:5], b"", b"\xff" * 64):
        weights.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="model: the weights cannot be loaded: ") as caught:
            load_model(folder)
        assert "\n" not in str(caught.value)
    weights.write_bytes(whole)
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="the tokenizer cannot be loaded"):
        load_tokenizer(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"the configuration cannot be loaded.*config\.json"):
        load_model(folder)


def test_weights_that_do_not_fit_the_configuration(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    name = "model.decoder.layers.1.fc1.weight"
    save_file({key: tensor for key, tensor in tensors.items() if key != name}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"1 tensors are missing from the weights, {name} among them"):
        load_model(folder)
    save_file({**tensors, name: torch.zeros(3, 4)}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="the weights cannot be loaded") as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)


def test_a_logits_bias_that_is_not_in_the_file_is_zero(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["final_logits_bias"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    model: Any = load_model(folder)
    assert model.final_logits_bias.count_nonzero() == 0


def test_pickled_weights_are_read_on_request_only(kind: str, folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin only: .*--allow-bin-weights"):
        load_model(folder)
    loaded = load_model(folder, allow_bin_weights=True)
    assert torch.equal(loaded(**IDS).logits, make_model(kind)(**IDS).logits)


class Intruder:
    """Runs code when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


def test_pickled_code_never_runs(folder: Path, tmp_path: Path) -> None:
    torch.save({"model.shared.weight": Intruder(tmp_path / "ran")}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="the weights cannot be loaded"):
        load_model(folder, allow_bin_weights=True)
    assert not (tmp_path / "ran").exists()


def test_nothing_appears_when_saving_fails(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = make_tokenizer()

    def full_disk(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tokenizer, "save_pretrained", full_disk)
    with pytest.raises(CktkError, match="model: No space left on device"):
        save_student(make_model(kind), tokenizer, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_content_is_not_overwritten(kind: str, folder: Path) -> None:
    before = (folder / "model.safetensors").read_bytes()
    with pytest.raises(CktkError, match="cannot write"):
        save_student(make_model(kind, seed=3), None, folder)
    assert (folder / "model.safetensors").read_bytes() == before
    assert [entry.name for entry in folder.parent.iterdir()] == ["model"]
