from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

from cktk.architectures.families.family import families
from cktk.architectures.spec import StudentSpec
from cktk.assemble.heads import align_labels, check_answers, name_labels, trunk, with_head
from cktk.errors import ConfigError
from cktk.protocols import SentenceHead
from tests.unit.architectures.encoders import KINDS, make_batch, make_encoder

CLASSES = SentenceHead(("entailment", "neutral", "contradiction"))
NUMBER = SentenceHead(None)


def named(kind: str, *names: str) -> Any:
    model: Any = make_encoder(kind, "classification", num_labels=len(names))
    model.config.id2label = dict(enumerate(names))
    return model


def logits(model: Any) -> torch.Tensor:
    inputs = make_batch(token_types=False).inputs
    with torch.no_grad():
        return model(**inputs).logits


@pytest.mark.parametrize("kind", KINDS)
def test_labels_in_another_order_are_put_in_that_of_the_data(kind: str) -> None:
    model = named(kind, "CONTRADICTION", "Entailment", "neutral")
    before = logits(model)
    align_labels(families()[kind], model, CLASSES, "the teacher")
    assert torch.equal(logits(model), before[:, [1, 2, 0]])
    assert model.config.id2label == dict(enumerate(CLASSES.labels or ()))
    align_labels(families()[kind], model, CLASSES, "the teacher")
    assert torch.equal(logits(model), before[:, [1, 2, 0]])


@pytest.mark.parametrize(
    ("names", "warned"),
    [
        (("LABEL_0", "LABEL_1", "LABEL_2"), False),
        (("0", "1", "2"), False),
        (("Entailment", "Neutral", "Contradiction"), False),
        (("yes", "perhaps", "no"), True),
    ],
)
def test_other_names_are_taken_in_order(
    names: tuple[str, ...], warned: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("cktk"), "propagate", True)
    model = named("bert", *names)
    before = logits(model)
    align_labels(families()["bert"], model, CLASSES, "the teacher")
    assert torch.equal(logits(model), before)
    assert ("the teacher calls its labels yes, perhaps, no" in caplog.text) == warned
    assert bool(caplog.records) == warned


def test_heads_that_do_not_answer() -> None:
    bert = families()["bert"]
    for head, wanted, message in (
        ("bare", CLASSES, r"^it has no head that classifies sentences \(its head is bare\); so$"),
        ("masked_lm", NUMBER, r"its head is masked_lm"),
        ("classification", NUMBER, r"^it answers with 3 labels \(.*\), but the data has a number; so$"),
        ("classification", SentenceHead(("a", "b")), r"3 labels .* but the data has 2 labels \(a, b\); so$"),
    ):
        with pytest.raises(ConfigError, match=message):
            check_answers(bert, make_encoder("bert", head).config, wanted, "it", "; so")
    check_answers(bert, make_encoder("bert", "classification").config, CLASSES, "it", "; so")


def test_students_get_the_head_of_the_data() -> None:
    assert with_head(StudentSpec(), families()["bart"], None) == StudentSpec()
    found = with_head(StudentSpec(width=8), families()["roberta"], NUMBER)
    assert (found.width, found.head, found.labels) == (8, "classification", 1)
    with pytest.raises(ConfigError, match="a bart has no head for sentences: use an encoder's --arch"):
        with_head(StudentSpec(), families()["bart"], CLASSES)
    with pytest.raises(ConfigError, match="--head bare: the task needs a classifier"):
        with_head(StudentSpec(head="bare"), families()["bert"], CLASSES)
    model: Any = make_encoder("bert", "classification", num_labels=1)
    name_labels(model, NUMBER)
    assert model.config.problem_type == "regression" and model.config.id2label == {0: "score"}


def test_what_is_kept_of_a_model_with_another_head() -> None:
    bert = families()["bert"]
    classifier, masked = make_encoder("bert", "classification"), make_encoder("bert", "masked_lm")
    assert trunk(bert, classifier, CLASSES) is classifier and trunk(bert, classifier, None) is classifier
    assert trunk(bert, classifier, NUMBER) is classifier.base_model
    assert trunk(bert, masked, CLASSES) is masked
