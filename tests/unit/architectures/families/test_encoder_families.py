"""Configurations, heads, sizes, folders and starting weights of encoder-only families."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertForPreTraining,
    PreTrainedModel,
)

from cktk.architectures.configs import EncoderConfig
from cktk.architectures.families.encoder_family import EncoderFamily
from cktk.architectures.families.family import families, registered_family
from cktk.architectures.initialisation.averaging import average_students
from cktk.architectures.initialisation.initialise import initialise
from cktk.architectures.loading import load_config, load_model, save_student, write_model
from cktk.architectures.spec import StudentSpec
from cktk.architectures.states.layer_map import layer_pairs
from cktk.assemble.models import freeze
from cktk.config.command import Command
from cktk.engine.configs import UpdateConfig
from cktk.errors import CheckpointError, ConfigError
from cktk.hub import build_student, student
from cktk.protocols import ModelShape, SideShape
from tests.unit.architectures.encoders import CLASSES, HEADS, KINDS, LAYERS, WIDTH, make_encoder
from tests.unit.architectures.test_loading import make_tokenizer

AUTO: dict[str, Any] = {
    "masked_lm": AutoModelForMaskedLM,
    "classification": AutoModelForSequenceClassification,
    "bare": AutoModel,
}
IDS = torch.tensor([[3, 7, 9, 11, 5], [4, 8, 1, 1, 1]])
INPUTS = {"input_ids": IDS, "attention_mask": (IDS != 1).long()}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=HEADS)
def head(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def family_of(kind: str) -> EncoderFamily:
    family = families()[kind]
    assert isinstance(family, EncoderFamily)
    return family


def answers(model: Any) -> Tensor:
    """Logits, or the last states of a bare encoder."""
    found: Tensor = model(**INPUTS)[0]
    return found


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def edit_config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


# Sizes


def test_shape(kind: str) -> None:
    """RoBERTa's table has 18 rows, of which two hold no position."""
    expected = ModelShape(WIDTH, {"encoder": SideShape(LAYERS, 32, 4)}, 16)
    assert family_of(kind).shape(make_encoder(kind).config) == expected
    model = make_encoder(kind)
    model(input_ids=torch.full((1, 16), 5))
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.full((1, 17), 5))


def test_students_have_the_sizes_of_the_spec_and_the_head_of_the_teacher(kind: str, head: str) -> None:
    family, teacher = family_of(kind), make_encoder(kind, head, dtype="float16").config
    before = teacher.to_dict()
    config: Any = family.student_config(teacher, StudentSpec(width=12, encoder_layers=7))
    assert teacher.to_dict() == before
    assert family.shape(config) == ModelShape(12, {"encoder": SideShape(7, 48, 2)}, 16)  # heads 6 wide, as before
    made = family.build(config)
    assert type(made) is CLASSES[kind, head] and made.training and made.dtype == torch.float32
    assert config.architectures == [CLASSES[kind, head].__name__] and config.vocab_size == 41
    if head == "classification":
        assert config.num_labels == 3


def test_flags_win_over_the_teacher(kind: str) -> None:
    spec = StudentSpec.of(
        EncoderConfig(width=30, encoder_layers=1, ffn_width=7, heads=5, dropout=0.0, head="classification")
    )
    assert spec.head == "classification" and spec.decoder_layers is None
    config: Any = family_of(kind).student_config(make_encoder(kind).config, spec)
    assert family_of(kind).shape(config) == ModelShape(30, {"encoder": SideShape(1, 7, 5)}, 16)
    assert (config.dropout if kind == "distilbert" else config.hidden_dropout_prob) == 0
    assert config.architectures == [CLASSES[kind, "classification"].__name__]
    labelled: Any = family_of(kind).student_config(config, StudentSpec(labels=5))
    made: Any = family_of(kind).build(labelled)
    assert made.num_labels == 5 and config.num_labels == 3


def test_an_empty_spec_gives_the_teachers_sizes(kind: str) -> None:
    teacher = make_encoder(kind).config
    assert family_of(kind).shape(family_of(kind).student_config(teacher, StudentSpec())) == family_of(kind).shape(
        teacher
    )


def test_training_from_scratch(kind: str) -> None:
    family = family_of(kind)
    ids: dict[str, Any] = {"vocab_size": 50, "pad": 3, "bos": None, "eos": 1, "max_positions": 20}
    spec = StudentSpec(width=128, encoder_layers=2)
    config: Any = family.base_config(**ids, spec=spec)
    assert (config.vocab_size, config.pad_token_id, config.eos_token_id, config.bos_token_id) == (50, 3, 1, None)
    assert family.shape(config) == ModelShape(128, {"encoder": SideShape(2, 512, 2)}, 20)
    assert type(family.build(config)) is CLASSES[kind, "masked_lm"]
    classifier: Any = family.build(family.base_config(**ids, spec=StudentSpec(8, 1, head="classification", labels=4)))
    assert classifier(torch.tensor([[5, 6]])).logits.shape == (1, 4)
    for missing, flag in (("width", "--width"), ("encoder_layers", "--encoder-layers")):
        with pytest.raises(ConfigError, match=f"^{flag} is needed"):
            family.base_config(**ids, spec=StudentSpec(**{**vars(spec), missing: None}))


def test_sizes_that_cannot_be(kind: str) -> None:
    family, teacher = family_of(kind), make_encoder(kind).config
    with pytest.raises(ConfigError, match="^--heads 5 does not divide --width 24: choose 4 or 6$"):
        family.student_config(teacher, StudentSpec(heads=5))
    with pytest.raises(ConfigError, match=f"^--decoder-layers 2: a {kind} has no decoder; leave it out$"):
        family.student_config(teacher, StudentSpec(decoder_layers=2))
    with pytest.raises(ConfigError, match="^--decoder-layers 2"):
        family.base_config(
            vocab_size=9,
            pad=0,
            bos=None,
            eos=1,
            max_positions=8,
            spec=StudentSpec(8, encoder_layers=1, decoder_layers=2),
        )
    other = "bert" if kind != "bert" else "roberta"
    with pytest.raises(ConfigError, match=f"--arch {kind} does not fit the teacher, .* {other}: use --arch {other}"):
        family.student_config(make_encoder(other).config, StudentSpec())


def test_the_registry_and_the_flags_lead_here(kind: str) -> None:
    assert registered_family(kind).model_type == kind
    command = Command("x", "x", [EncoderConfig])
    assert command.parse(["--head", "bare"]).section(EncoderConfig).head == "bare"
    assert command.parse([]).section(EncoderConfig).head is None
    with pytest.raises(ConfigError, match=r"--head.*did you mean masked_lm"):
        command.parse(["--head", "masked-ml"])


# Folders


def test_saved_students_open_with_the_auto_classes_and_here(kind: str, head: str, tmp_path: Path) -> None:
    expected = make_encoder(kind, head)
    save_student(expected, make_tokenizer(), tmp_path / "model")
    model, report = AUTO[head].from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(report.values())
    assert torch.equal(answers(model), answers(expected))
    here = load_model(tmp_path / "model")
    assert type(here) is CLASSES[kind, head] and not here.training
    assert torch.equal(answers(here), answers(expected))
    if head == "masked_lm":
        assert here.get_output_embeddings().weight is here.get_input_embeddings().weight


def test_loading_prints_nothing(kind: str, head: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    save_student(make_encoder(kind, head), None, tmp_path / "model")
    capfd.readouterr()
    load_model(tmp_path / "model")
    assert capfd.readouterr() == ("", "")


def test_an_untied_head_stays_untied(kind: str, tmp_path: Path) -> None:
    teacher: Any = make_encoder(kind, tie_word_embeddings=False)
    made: Any = family_of(kind).student(teacher.config, StudentSpec(width=12, ffn_width=20))
    initialise(made, "truncate", teacher=teacher)
    save_student(made, None, tmp_path / "model")
    for model in (made, load_model(tmp_path / "model"), AutoModelForMaskedLM.from_pretrained(tmp_path / "model")):
        assert torch.equal(model.get_output_embeddings().weight, teacher.get_output_embeddings().weight[:, :12])
        assert torch.equal(model.get_input_embeddings().weight, teacher.get_input_embeddings().weight[:, :12])


def test_a_pretraining_checkpoint_is_read_as_masked_language_model(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    model = BertForPreTraining(make_encoder("bert").config).eval()
    model.save_pretrained(tmp_path)
    capfd.readouterr()
    loaded = load_model(tmp_path)
    assert type(loaded) is CLASSES["bert", "masked_lm"]
    assert torch.equal(answers(loaded), model(**INPUTS).prediction_logits)
    assert capfd.readouterr() == ("", "")


def test_a_head_that_is_not_supported_names_those_that_are(kind: str, tmp_path: Path) -> None:
    write_model(make_encoder(kind), None, tmp_path / "model")
    name = CLASSES[kind, "bare"].__name__.replace("Model", "ForQuestionAnswering")
    edit_config(tmp_path / "model", architectures=[name])
    known = ".*".join(sorted(CLASSES[kind, head].__name__ for head in HEADS))
    with pytest.raises(CheckpointError, match=f"model: a {name} is not supported; supported of {kind}: .*{known}$"):
        load_model(tmp_path / "model")


def test_a_folder_that_names_no_head_is_a_bare_encoder(kind: str, tmp_path: Path) -> None:
    model: Any = make_encoder(kind)
    write_model(model, None, tmp_path)
    edit_config(tmp_path, architectures=None)
    loaded = load_model(tmp_path)
    assert type(loaded) is CLASSES[kind, "bare"]
    assert torch.equal(answers(loaded), model.base_model(**INPUTS).last_hidden_state)


def test_only_a_pooler_may_be_missing(kind: str, tmp_path: Path) -> None:
    for head, missing, fine in (
        ("bare", "pooler.dense.bias", True),
        ("bare", "embeddings.LayerNorm.bias", False),
        ("classification", "bert.pooler.dense.bias", False),
    ):
        folder = tmp_path / f"{head}-{missing}"
        model = make_encoder(kind, head)
        write_model(model, None, folder)
        tensors = load_file(folder / "model.safetensors")
        if tensors.pop(missing, None) is None:
            continue  # only BERT has a pooler in its classifier, DistilBERT none at all
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        if fine:
            assert torch.equal(answers(load_model(folder)), answers(model))
        else:
            with pytest.raises(CheckpointError, match=f"1 tensors are missing from the weights, {missing} among them"):
                load_model(folder)


def test_missing_weights_are_named(kind: str, tmp_path: Path) -> None:
    write_model(make_encoder(kind), None, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model: no model\.safetensors in this folder"):
        load_model(tmp_path / "model")


def test_averages(kind: str, head: str, tmp_path: Path) -> None:
    models = [make_encoder(kind, head, seed) for seed in (1, 2)]
    for index, model in enumerate(models):
        save_student(model, make_tokenizer(), tmp_path / str(index))
    average_students([tmp_path / "0", tmp_path / "1"], tmp_path / "mean")
    found = load_model(tmp_path / "mean").state_dict()
    for name, tensor in models[0].state_dict().items():
        torch.testing.assert_close(found[name], (tensor + models[1].state_dict()[name]) / 2)


def test_the_hub_builds_encoders_and_refuses_to_translate(kind: str, tmp_path: Path) -> None:
    teacher = make_encoder(kind)
    save_student(teacher, make_tokenizer(), tmp_path / "teacher")
    built = build_student(kind, width=12, encoder_layers=2, ffn_width=8, teacher=tmp_path / "teacher", init="truncate")
    assert type(built) is CLASSES[kind, "masked_lm"]
    assert torch.equal(built.get_input_embeddings().weight, teacher.get_input_embeddings().weight[:, :12])
    scratch = build_student(kind, width=8, encoder_layers=1, vocab_size=30, head="classification", labels=4)
    assert type(scratch) is CLASSES[kind, "classification"] and scratch.num_labels == 4
    with pytest.raises(
        CheckpointError, match=f"teacher: a {kind} has no decoder, so it writes no texts; open a classifier"
    ):
        student(tmp_path / "teacher")
    with pytest.raises(ConfigError, match="^bart models have one kind of head"):
        build_student("bart", width=8, encoder_layers=1, decoder_layers=1, head="bare")


# Parts


def test_parts_of_a_model(kind: str, head: str) -> None:
    model: Any = make_encoder(kind, head)
    family = family_of(kind)
    trunk = {id(parameter) for parameter in family.stack(model, "encoder").parameters()}
    top = family.head(model)
    assert (top is None) == (head == "bare")
    above = set() if top is None else {id(parameter) for parameter in top.parameters()}
    everything = {id(parameter) for parameter in model.parameters()}
    assert trunk | above == everything
    tables = [module.weight for module in model.modules() if isinstance(module, nn.Embedding)]
    assert {id(table) for table in family.embeddings(model)} == {id(table) for table in tables}
    assert len(tables) == (2 if kind == "distilbert" else 3)
    assert family.decoder_start(model.config) is None
    family.set_generation(model)  # nothing to set, and no error


def test_freezing(kind: str, head: str) -> None:
    model: Any = make_encoder(kind, head)
    freeze(family_of(kind), model, UpdateConfig(max_update=1, freeze_encoder=True))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    words = "embeddings.word_embeddings.weight"
    inside = {name for name in trained if name.startswith(f"{model.base_model_prefix}.")}
    if head == "bare":
        assert not trained
    elif head == "masked_lm":  # the head goes on training, and what it shares with the encoder
        assert inside == {f"{model.base_model_prefix}.{words}"} and len(trained) > 4
    else:
        assert inside == ({"bert.pooler.dense.weight", "bert.pooler.dense.bias"} if kind == "bert" else set())
    freeze(family_of(kind), model, UpdateConfig(max_update=1, freeze_embeddings=True))
    assert not model.get_input_embeddings().weight.requires_grad


def test_layers_are_matched_on_the_only_side(kind: str) -> None:
    family = family_of(kind)
    teacher = make_encoder(kind).config
    own = family.shape(family.student_config(teacher, StudentSpec(width=12, encoder_layers=2)))
    pairs = layer_pairs(own, family.shape(teacher))
    assert [str(pair) for pair in pairs] == ["encoder 0<-0", "encoder 1<-2", "encoder 2<-4"]
    with pytest.raises(ConfigError, match="the models have no decoder; leave it out"):
        layer_pairs(own, family.shape(teacher), "encoder=uniform;decoder=uniform")


# Starting weights


def renumbered(name: str, layers: list[int]) -> str:
    return re.sub(r"(?<=layer\.)\d+(?=\.)", lambda number: str(layers[int(number[0])]), name)


def make_student(teacher: PreTrainedModel, **sizes: Any) -> PreTrainedModel:
    torch.manual_seed(9)
    return families()[teacher.config.model_type].student(teacher.config, StudentSpec(**sizes))


def test_random_leaves_the_student_as_built(kind: str, head: str) -> None:
    teacher = make_encoder(kind, head)
    made = make_student(teacher, width=12)
    before = tensors_of(made)
    initialise(made, "random", teacher=teacher)
    assert all(torch.equal(tensor, before[name]) for name, tensor in made.state_dict().items())


@pytest.mark.parametrize(("depth", "layers"), [(1, [0]), (3, [0, 1, 2]), (7, [0, 0, 1, 1, 2, 2, 3])])
def test_truncate_takes_leading_blocks_of_every_tensor(kind: str, head: str, depth: int, layers: list[int]) -> None:
    teacher = make_encoder(kind, head)
    made: Any = make_student(teacher, width=18, encoder_layers=depth, ffn_width=20, heads=3)
    initialise(made, "truncate", teacher=teacher)
    source = teacher.state_dict()
    for name, tensor in made.state_dict().items():
        whole = source[renumbered(name, layers)]
        block = whole[: len(tensor)] if tensor.dim() == 1 else whole[: tensor.shape[0], : tensor.shape[1]]
        assert torch.equal(tensor, block), name
    # The tensors whose handling is easily got wrong, spelled out.
    for table, full in zip(family_of(kind).embeddings(made), family_of(kind).embeddings(teacher), strict=True):
        assert torch.equal(table, full[:, :18])
    if head == "masked_lm":
        own, theirs = made.get_output_embeddings(), teacher.get_output_embeddings()
        assert own.weight is made.get_input_embeddings().weight and torch.equal(own.bias, theirs.bias)
    if head == "classification":
        classifier = made.classifier.out_proj if kind == "roberta" else made.classifier
        assert classifier.weight.shape == (3, 18) and classifier.bias.shape == (3,)


@pytest.mark.parametrize(("init", "depth", "layers"), [
    ("copy", 2, [0, 3]), ("copy", 6, [0, 1, 1, 2, 2, 3]), ("checkpoint", 1, [0]), ("checkpoint", 3, [0, 2, 3]),
])  # fmt: skip
def test_copy_and_checkpoint_take_whole_layers(kind: str, head: str, init: str, depth: int, layers: list[int]) -> None:
    model = make_encoder(kind, head)
    made = make_student(model, encoder_layers=depth)
    if init == "copy":
        initialise(made, "copy", teacher=model)
    else:
        initialise(made, "checkpoint", teacher=make_encoder(kind, head, seed=4), checkpoint=model)
    source = model.state_dict()
    for name, tensor in made.state_dict().items():
        assert torch.equal(tensor, source[renumbered(name, layers)]), name


def test_a_copy_of_equal_depth_is_the_teacher(kind: str, head: str) -> None:
    teacher = make_encoder(kind, head)
    made = make_student(teacher)
    initialise(made, "copy", teacher=teacher)
    assert torch.equal(answers(made.eval()), answers(teacher))


@pytest.mark.parametrize("init", ["truncate", "copy"])
def test_weights_are_taken_across_heads(kind: str, head: str, init: str) -> None:
    """What the source does not have stays as built."""
    for other in HEADS:
        teacher = make_encoder(kind, other)
        made: Any = make_student(teacher, head=head, **({"width": 12, "ffn_width": 8} if init == "truncate" else {}))
        before = tensors_of(made)
        initialise(made, init, teacher=teacher)
        source = teacher.base_model.state_dict()
        for name, tensor in made.base_model.state_dict().items():
            if name in source:
                assert torch.equal(tensor, source[name][tuple(map(slice, tensor.shape))]), name
            else:
                assert name.startswith("pooler.")
        if head != other:
            prefix = made.base_model_prefix
            own = [n for n in before if head != "bare" and not n.startswith(prefix) and "decoder.weight" not in n]
            own = [name for name in own if name != "vocab_projector.weight"]
            assert all(torch.equal(made.state_dict()[name], before[name]) for name in own)


def test_a_classifier_of_other_classes_is_refused(kind: str) -> None:
    model = make_encoder(kind, "classification")
    made = make_student(model, labels=2)
    with pytest.raises(ConfigError, match="number of labels is 2 in the student but 3 in the checkpoint"):
        initialise(made, "checkpoint", checkpoint=model)


@pytest.mark.parametrize(
    ("sizes", "init", "message"),
    [
        (
            {"width": 12},
            "copy",
            r"^--init copy .* width is 12 in the student and 24 in the teacher: set --width 24, or",
        ),
        ({"ffn_width": 8}, "copy", r"encoder ffn_width is 8 .* --ffn-width 32"),
        ({"heads": 3}, "copy", r"encoder heads is 3 .* --heads 4"),
        ({"width": 48}, "truncate", r"^--init truncate .* width is 48 .* --width 24 or less"),
    ],
)
def test_sizes_that_do_not_fit(kind: str, sizes: dict[str, Any], init: str, message: str) -> None:
    teacher = make_encoder(kind)
    made = make_student(teacher, **sizes)
    before = tensors_of(made)
    with pytest.raises(ConfigError, match=message):
        initialise(made, init, teacher=teacher)
    assert all(torch.equal(tensor, before[name]) for name, tensor in made.state_dict().items())


def test_configurations_are_read_without_weights(kind: str, tmp_path: Path) -> None:
    write_model(make_encoder(kind), None, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    assert load_config(tmp_path).vocab_size == 41
