"""``--init pca``: exact where it can be, tensor by tensor, and better than cutting where the stream has low rank."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    MBartConfig,
    MBartForConditionalGeneration,
    PreTrainedModel,
)

from cktk.architectures.families.family import family_of
from cktk.architectures.initialisation.anatomy import anatomy_of
from cktk.architectures.initialisation.initialise import initialise
from cktk.architectures.initialisation.pca import pca_initialise, principal_basis
from cktk.architectures.initialisation.pca_statistics import stream_moments
from cktk.architectures.spec import StudentSpec
from cktk.errors import ConfigError
from cktk.protocols import IGNORED, Batch
from tests.unit.architectures.models import T5_KINDS, make_model, make_t5

KINDS = ("bart", "mbart", *T5_KINDS)
WIDTH, TEACHER_WIDTH = 8, 16


def make_batch(seed: int, size: int = 12) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    source = torch.randint(3, 41, (size, 7), generator=generator)
    target = torch.randint(3, 41, (size, 6), generator=generator)
    mask = torch.arange(7) < torch.randint(3, 8, (size, 1), generator=generator)
    scored = torch.arange(6) < torch.randint(2, 7, (size, 1), generator=generator)
    inputs = {
        "input_ids": source.masked_fill(~mask, 1),
        "attention_mask": mask.long(),
        "decoder_input_ids": pad(target, (1, -1), value=2),
    }
    return Batch(inputs, target.masked_fill(~scored, IGNORED), list(range(size)))


BATCHES = [make_batch(1), make_batch(2)]


def student_of(teacher: PreTrainedModel, **sizes: Any) -> Any:
    torch.manual_seed(9)
    return family_of(teacher.config.model_type, "teacher").student(teacher.config, StudentSpec(**sizes))


def logits(model: Any, batch: Batch) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.eval()(**batch.inputs).logits[batch.rows("decoder")]
    return found


def teacher_of(kind: str) -> PreTrainedModel:
    return make_t5(kind) if kind in T5_KINDS else make_model(kind)


# The basis


@pytest.mark.parametrize("centred", [False, True])
def test_the_basis_is_orthonormal_and_principal(centred: bool) -> None:
    torch.manual_seed(0)
    second = torch.randn(12, 40, dtype=torch.float64)
    second = second @ second.T
    basis = principal_basis(second, 5, centred)
    torch.testing.assert_close(basis.T @ basis, torch.eye(5, dtype=torch.float64))
    kept = torch.trace(basis.T @ second @ basis)
    if not centred:
        torch.testing.assert_close(kept, torch.linalg.eigvalsh(second)[-5:].sum())
        return
    mean, own_mean = (torch.full((n,), n**-0.5, dtype=torch.float64) for n in (12, 5))
    torch.testing.assert_close(basis @ own_mean, mean)
    torch.testing.assert_close(basis.T @ mean, own_mean)
    apart = torch.eye(12, dtype=torch.float64) - torch.outer(mean, mean)
    torch.testing.assert_close(kept, mean @ second @ mean + torch.linalg.eigvalsh(apart @ second @ apart)[-4:].sum())


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("rank", [6, 2])
def test_at_full_width_the_basis_is_the_teachers_axes(centred: bool, rank: int) -> None:
    """Also where the data have no more than a few directions."""
    data = torch.randn(6, rank, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    basis = principal_basis(data @ data.T, 6, centred)
    torch.testing.assert_close(basis, torch.eye(6, dtype=torch.float64), rtol=0, atol=1e-9)


def test_the_basis_lies_near_axes_where_the_data_do() -> None:
    """Three axes carry nearly everything: those are the student's, in order, and not some rotation of them."""
    second = torch.diag(torch.tensor([0.1, 9.0, 0.1, 8.9, 0.1, 9.1], dtype=torch.float64))
    expected = torch.eye(6, dtype=torch.float64)[:, [1, 3, 5]]
    torch.testing.assert_close(principal_basis(second, 3, False), expected, rtol=0, atol=1e-9)


# Function


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("depths", [(2, 4), (1, 2), (3, 5)])
def test_a_student_of_full_width_is_the_one_that_truncate_gives(kind: str, depths: tuple[int, int]) -> None:
    teacher = teacher_of(kind)
    sizes = {"encoder_layers": depths[0], "decoder_layers": depths[1]}
    student, cut = student_of(teacher, **sizes), student_of(teacher, **sizes)
    initialise(student, "pca", teacher=teacher, batches=BATCHES)
    initialise(cut, "truncate", teacher=teacher)
    batch = make_batch(3)
    torch.testing.assert_close(logits(student, batch), logits(cut, batch), rtol=1e-3, atol=2e-3)


class Wide:
    """A wider model with the function of a small one, whose stream has no more directions than the small one's.

    Stream states are Q s; features of ``taken`` heads and neurons are the small model's, the others are never used.
    Norms of the small model have gain 1 wherever they go on as stream; reading norms of the wide one have any gain.
    """

    def __init__(self, small: Any, kind: str, tied: bool) -> None:
        self.small, self.kind, self.tied = small, kind, tied
        generator = torch.Generator().manual_seed(4)
        means = [torch.full((n, 1), n**-0.5) for n in (TEACHER_WIDTH, WIDTH)]
        square = torch.randn(TEACHER_WIDTH, WIDTH, generator=generator)
        if kind in T5_KINDS:
            self.q = torch.linalg.qr(square).Q
        else:  # the mean stays the mean
            apart = torch.linalg.qr(square - means[0] @ (means[0].T @ square)).Q[:, 1:]
            others = torch.linalg.qr(torch.cat([means[1], torch.randn(WIDTH, WIDTH - 1, generator=generator)], 1)).Q
            self.q = apart @ others[:, 1:].T + means[0] @ means[1].T
        self.narrower = (WIDTH / TEACHER_WIDTH) ** 0.5
        self.gain = 0.5 + torch.rand(TEACHER_WIDTH, generator=generator)
        self.shift = torch.randn(TEACHER_WIDTH, generator=generator)

    def fill(self, wide: Any) -> Any:
        tensors = self.small.state_dict()
        with torch.no_grad():
            for name, target in [*wide.named_parameters(), *wide.named_buffers()]:
                if name in tensors:
                    self.fill_one(name, target, tensors[name])
            for name, module in wide.named_modules():
                if getattr(module, "bias", None) is not None and self.reads(name) and self.kind != "bart":
                    module.bias -= module.weight @ self.shift
            if self.kind == "mbart" and not self.tied:
                wide.final_logits_bias -= wide.lm_head.weight @ self.shift
        return wide.eval()

    def reads(self, name: str) -> bool:
        return name.split(".")[-1] in ("q_proj", "k_proj", "v_proj", "fc1", "q", "k", "v", "wi", "wi_0", "wi_1")

    def kept(self, norm: str) -> bool:
        if self.kind == "bart" or "layernorm_embedding" in norm:
            return True
        return self.tied and norm in ("model.decoder.layer_norm", "decoder.final_layer_norm")

    def fill_one(self, name: str, target: Tensor, small: Tensor) -> None:
        module, _, last = name.rpartition(".")
        part = module.split(".")[-1]
        scaled = self.kind == "t5"  # the head's input
        if part in ("shared", "embed_tokens", "embed_positions"):
            factor = self.narrower if self.kind == "mbart" and part != "embed_positions" else 1.0
            target.copy_(small @ self.q.T * factor)
        elif part == "lm_head":
            folded = self.q.T / self.gain * (1.0 if scaled else self.narrower)
            target.copy_(small @ (self.q.T if self.kind == "bart" else folded))
        elif "norm" in part:
            self.fill_norm(module, last, target, small)
        elif part == "relative_attention_bias":
            target[:, [1, 3]] = small
        elif self.reads(module):
            rows = self.taken(part, len(target))
            if last == "bias":
                target[rows] = small
            else:
                target[rows] = small @ (self.q.T if self.kind == "bart" else self.narrower * self.q.T / self.gain)
        elif last == "weight":
            target.zero_()
            target[:, self.taken(part, target.shape[1])] = self.q @ small
        elif part != "":
            target.copy_(self.q @ small)
        else:
            target.copy_(small)  # the bias of the logits

    def fill_norm(self, module: str, last: str, target: Tensor, small: Tensor) -> None:
        if not self.kept(module):
            target.copy_(self.gain if last == "weight" else self.shift)
            return
        heads = self.kind in ("mbart", "t5") and "embedding" not in module  # whose input scale depends on the width
        if last == "weight":
            target.fill_(1.0 if heads else self.narrower)
        else:
            target.copy_(self.q @ small / (self.narrower if heads else 1.0))

    def taken(self, part: str, size: int) -> Tensor:
        """Heads 1 and 3 of four, and every other neuron."""
        if part in ("fc1", "fc2", "wi", "wi_0", "wi_1", "wo"):
            return torch.arange(0, size, 2)
        return torch.arange(size).view(4, -1)[[1, 3]].flatten()


def small_and_wide(kind: str, tied: bool) -> tuple[Any, Any]:
    """The small model has two heads of width 4; that of the wide one has four."""
    models = []
    for width, heads, ffn in ((WIDTH, 2, 10), (TEACHER_WIDTH, 4, 20)):
        torch.manual_seed(width)
        if kind in T5_KINDS:
            model: Any = make_t5(kind, 0, tied=tied, d_model=width, num_heads=heads, d_kv=4, d_ff=ffn)
        else:
            sizes = {
                "d_model": width, "encoder_ffn_dim": ffn, "decoder_ffn_dim": ffn, "encoder_layers": 2,
                "decoder_layers": 3, "encoder_attention_heads": heads, "decoder_attention_heads": heads,
                "vocab_size": 41, "max_position_embeddings": 16, "init_std": 0.4, "tie_word_embeddings": tied,
            }  # fmt: skip
            model = (
                BartForConditionalGeneration(BartConfig(**sizes))
                if kind == "bart"
                else MBartForConditionalGeneration(MBartConfig(**sizes, scale_embedding=True))
            )
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if name.endswith("bias"):
                        parameter.normal_(std=0.3)
                model.final_logits_bias.normal_()
        models.append(sharpened(model))
    small, wide = models
    expansion = Wide(small, kind, tied)
    with torch.no_grad():
        for name, parameter in small.named_parameters():
            if "norm" in name and name.endswith("weight"):
                parameter.fill_(1.0)
            elif "norm" in name and not expansion.kept(name.rpartition(".")[0]):
                parameter.zero_()
    return small.eval(), expansion.fill(wide)


def sharpened(model: Any) -> Any:
    """The same model without the small constant in its norms, which is larger for narrower states."""
    for module in model.modules():
        if hasattr(module, "eps"):
            module.eps = 1e-12
        elif hasattr(module, "variance_epsilon"):
            module.variance_epsilon = 1e-12
    return model


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_what_a_teacher_does_in_few_directions_is_kept(kind: str, tied: bool) -> None:
    """All scales by the width, heads and neurons chosen by what they do, and gains and biases that are folded."""
    small, teacher = small_and_wide(kind, tied)
    batch = make_batch(3)
    expected = logits(small, batch)
    torch.testing.assert_close(logits(teacher, batch), expected, rtol=1e-3, atol=1e-3)
    head = {"heads": 2, "head_width": 4} if kind in T5_KINDS else {"heads": 2}
    student = sharpened(student_of(teacher, width=WIDTH, ffn_width=10, **head))
    initialise(student, "pca", teacher=teacher, batches=BATCHES)
    torch.testing.assert_close(logits(student, batch), expected, rtol=1e-3, atol=2e-3)
    cut = sharpened(student_of(teacher, width=WIDTH, ffn_width=10, **head))
    initialise(cut, "truncate", teacher=teacher)
    assert (logits(cut, batch) - expected).abs().max() > 0.1


# Tensors


def basis_of(student: Any, teacher: Any, factor: float = 1.0) -> Tensor:
    """B from the student's embedding, which is E B."""
    embedding = teacher.get_input_embeddings().weight.double()
    basis = torch.linalg.lstsq(embedding, student.get_input_embeddings().weight.double() / factor).solution
    torch.testing.assert_close(basis.T @ basis, torch.eye(basis.shape[1]).double(), rtol=0, atol=1e-4)
    return basis.float()


def head_rows(cut: Tensor, whole: Tensor, width: int) -> list[int]:
    """Which heads of ``whole`` (rows) those of ``cut`` are."""
    found = []
    for head in cut.split(width):
        near = [torch.allclose(head, other, rtol=1e-3, atol=1e-4) for other in whole.split(width)]
        assert sum(near) == 1
        found.append(near.index(True))
    return found


def test_tensors_of_bart() -> None:
    teacher: Any = make_model("bart", encoder_attention_heads=4, decoder_attention_heads=4)
    student = student_of(teacher, width=12, ffn_width=20, encoder_layers=1, decoder_layers=2)
    initialise(student, "pca", teacher=teacher, batches=BATCHES)
    b = basis_of(student, teacher)
    own, theirs = student.state_dict(), teacher.state_dict()
    for side in ("encoder", "decoder"):
        name = f"model.{side}.embed_positions.weight"
        torch.testing.assert_close(own[name], theirs[name] @ b, rtol=1e-3, atol=1e-4)
    for layer, origin in ((0, 0), (1, 2)):
        for block in ("self_attn", "encoder_attn"):
            names = [f"model.decoder.layers.{number}.{block}." for number in (layer, origin)]
            heads = {
                part: head_rows(own[f"{names[0]}{part}.weight"], theirs[f"{names[1]}{part}.weight"] @ b, 6)
                for part in ("q_proj", "k_proj", "v_proj")
            }
            chosen = heads["q_proj"]
            assert chosen == sorted(chosen) and len(set(chosen)) == 2
            assert heads["k_proj"] == heads["v_proj"] == chosen
            columns = theirs[f"{names[1]}out_proj.weight"].view(24, 4, 6)[:, chosen].flatten(1)
            torch.testing.assert_close(own[f"{names[0]}out_proj.weight"], b.T @ columns, rtol=1e-3, atol=1e-4)
        own_fc1, fc1 = (
            own[f"model.decoder.layers.{layer}.fc1.weight"],
            theirs[f"model.decoder.layers.{origin}.fc1.weight"],
        )
        neurons = head_rows(own_fc1, fc1 @ b, 1)
        fc2 = theirs[f"model.decoder.layers.{origin}.fc2.weight"][:, neurons]
        torch.testing.assert_close(own[f"model.decoder.layers.{layer}.fc2.weight"], b.T @ fc2, rtol=1e-3, atol=1e-4)


def watched(model: Any, name: str, rows: str, batches: list[Batch] = BATCHES) -> tuple[Tensor, Tensor]:
    """Input and output of a module over all rows that count."""
    seen: list[tuple[Tensor, Tensor]] = []
    handle = model.get_submodule(name).register_forward_hook(
        lambda _, arguments, output: seen.append((arguments[0], output))
    )
    found = []
    with torch.no_grad():
        for batch in batches:
            model(**batch.inputs)
            found.append([states[batch.rows(rows)] for states in seen[-1]])  # type: ignore[arg-type]
    handle.remove()
    given, gave = zip(*found, strict=True)
    return torch.cat(given).double(), torch.cat(gave).double()


def test_gains_and_biases_of_bart_are_those_of_least_squares() -> None:
    teacher: Any = make_model("bart")
    student = student_of(teacher, width=12, ffn_width=20, heads=2)
    initialise(student, "pca", teacher=teacher, batches=BATCHES)
    b = basis_of(student, teacher).double()
    name = "model.decoder.layers.1.final_layer_norm"
    given, gave = watched(teacher, name, "decoder")
    x = torch.nn.functional.layer_norm(given @ b, (12,))
    for axis in range(12):
        design = torch.stack([x[:, axis], torch.ones(len(x)).double()], 1)
        gain, bias = torch.linalg.lstsq(design, (gave @ b)[:, axis : axis + 1]).solution.flatten().tolist()
        norm = student.get_submodule(name)
        assert norm.weight[axis].item() == pytest.approx(gain, rel=1e-3, abs=1e-4)
        assert norm.bias[axis].item() == pytest.approx(bias, rel=1e-3, abs=1e-4)


def test_biases_make_up_for_the_means_of_what_is_left_out() -> None:
    """Of BART: the mean input of a linear, of neurons that are not taken, and of the last states."""
    teacher: Any = make_model("bart")
    student = student_of(teacher, width=12, ffn_width=20, heads=2)
    initialise(student, "pca", teacher=teacher, batches=BATCHES)
    b = basis_of(student, teacher)
    layer = "model.encoder.layers.1."
    own, theirs = student.state_dict(), teacher.state_dict()
    neurons = head_rows(own[f"{layer}fc1.weight"], theirs[f"{layer}fc1.weight"] @ b, 1)
    mean = watched(teacher, f"{layer}fc1", "encoder")[0].mean(0).float()
    lost = theirs[f"{layer}fc1.weight"][neurons] @ (mean - b @ (b.T @ mean))
    torch.testing.assert_close(
        own[f"{layer}fc1.bias"], theirs[f"{layer}fc1.bias"][neurons] + lost, rtol=1e-3, atol=1e-3
    )
    mean = watched(teacher, f"{layer}fc2", "encoder")[0].mean(0).float()
    mean[neurons] = 0
    whole = theirs[f"{layer}fc2.bias"] + theirs[f"{layer}fc2.weight"] @ mean
    torch.testing.assert_close(own[f"{layer}fc2.bias"], b.T @ whole, rtol=1e-3, atol=1e-3)
    mean = watched(teacher, "model.decoder.layers.3.final_layer_norm", "decoder")[1].mean(0).float()
    lost = teacher.lm_head.weight @ (mean - b @ (b.T @ mean))
    torch.testing.assert_close(student.final_logits_bias, teacher.final_logits_bias + lost, rtol=1e-3, atol=1e-3)


def test_tensors_of_mbart_and_t5_take_gains_over() -> None:
    for kind, factor in (("mbart", (24 / 12) ** 0.5), ("t5-v1.1", 1.0)):
        teacher: Any = teacher_of(kind)
        student = student_of(teacher, width=12, ffn_width=32, heads=2, **({} if kind == "mbart" else {"head_width": 8}))
        initialise(student, "pca", teacher=teacher, batches=BATCHES)
        b = basis_of(student, teacher, factor)
        if kind == "mbart":
            linear, norm = "model.encoder.layers.1.fc1", "model.encoder.layers.1.final_layer_norm"
        else:
            linear, norm = "encoder.block.1.layer.1.DenseReluDense.wi_0", "encoder.block.1.layer.1.layer_norm"
        own, source = student.get_submodule(linear), teacher.get_submodule(linear)
        gain = teacher.get_submodule(norm).weight
        torch.testing.assert_close(own.weight, source.weight @ (gain[:, None] * b), rtol=1e-3, atol=1e-4)
        single = student.get_submodule(norm).weight
        assert single.unique().numel() == 1 and 0.2 < single[0] < 2**0.5
        if kind == "t5-v1.1":
            last = teacher.decoder.final_layer_norm.weight
            expected = teacher.lm_head.weight @ (last[:, None] * b)
            torch.testing.assert_close(student.lm_head.weight, expected, rtol=1e-3, atol=1e-4)


def test_all_blocks_of_a_t5_stack_take_the_same_heads_with_their_position_bias() -> None:
    teacher: Any = make_t5("t5")
    student = student_of(teacher, width=12, heads=2, head_width=8, ffn_width=32)
    initialise(student, "pca", teacher=teacher, batches=BATCHES)
    b = basis_of(student, teacher)
    for side, layers in (("encoder", 2), ("decoder", 4)):
        chosen = []
        for number in range(layers):
            block = f"{side}.block.{number}.layer.0"
            reading = teacher.get_submodule(f"{block}.layer_norm").weight[:, None] * b
            whole = teacher.get_submodule(f"{block}.SelfAttention.q").weight @ reading
            chosen.append(head_rows(student.get_submodule(f"{block}.SelfAttention.q").weight, whole, 8))
        assert len({*map(tuple, chosen)}) == 1
        name = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        assert torch.equal(student.get_parameter(name), teacher.get_parameter(name)[:, chosen[0]])


def test_heads_of_another_width_are_the_leading_rows() -> None:
    teacher: Any = make_model("bart")
    student = student_of(teacher, width=12, heads=3, ffn_width=20)
    initialise(student, "pca", teacher=teacher, batches=BATCHES)
    name, b = "model.encoder.layers.0.self_attn.q_proj.weight", basis_of(student, teacher)
    expected = teacher.state_dict()[name][:12] @ b
    torch.testing.assert_close(student.state_dict()[name], expected, rtol=1e-3, atol=1e-4)


# Manners


def test_every_parameter_is_written_and_tied_ones_stay_tied() -> None:
    for kind in KINDS:
        teacher = teacher_of(kind)
        students = []
        for start in (0.0, 1.0):
            student = student_of(teacher, width=12, ffn_width=20)
            with torch.no_grad():
                for parameter in student.parameters():
                    parameter.fill_(start)
            pca_initialise(student, teacher, BATCHES)
            students.append(student)
        for (name, one), other in zip(students[0].named_parameters(), students[1].parameters(), strict=True):
            assert torch.equal(one, other), name
        tied = teacher.get_output_embeddings().weight is teacher.get_input_embeddings().weight
        assert (student.get_output_embeddings().weight is student.get_input_embeddings().weight) == tied


def test_pads_change_nothing_and_the_teacher_stays_as_it_was() -> None:
    teacher = make_model("mbart").train()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    students = []
    for extra in (0, 3):
        batches = [
            Batch(
                {
                    "input_ids": pad(batch.inputs["input_ids"], (0, extra), value=1),
                    "attention_mask": pad(batch.inputs["attention_mask"], (0, extra)),
                    "decoder_input_ids": pad(batch.inputs["decoder_input_ids"], (0, extra), value=1),
                },
                pad(batch.labels, (0, extra), value=IGNORED),
                batch.ids,
            )
            for batch in BATCHES
        ]
        student = student_of(teacher, width=12, ffn_width=20)
        pca_initialise(student, teacher, batches)
        students.append(student.state_dict())
    for name, tensor in students[0].items():
        torch.testing.assert_close(tensor, students[1][name], rtol=1e-3, atol=1e-4)
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    assert teacher.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in teacher.modules())


def test_what_does_not_work_is_told_before_anything_changes() -> None:
    bart = make_model("bart")
    for student, teacher, batches, message in (
        (student_of(bart, width=12), None, BATCHES, "^--init pca takes weights from a teacher: give --teacher$"),
        (student_of(bart, width=12), bart, None, "^--init pca looks at data: "),
        (student_of(bart, width=12, ffn_width=20), bart, [make_batch(1, 2)], r"^--init pca: .* has \d+ tokens on one"),
        (student_of(bart, width=12, ffn_width=20), bart, [], "^--init pca: the sample has 0 tokens"),
        (student_of(bart, width=48), bart, BATCHES, "^--init pca cuts .* width is 48 .* --width 24 or less"),
        (student_of(bart, width=12), make_model("mbart"), BATCHES, "^--init pca: model_type is bart"),
    ):
        before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
        with pytest.raises(ConfigError, match=message):
            initialise(student, "pca", teacher=teacher, batches=batches)
        assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())


def test_moments_of_the_stream() -> None:
    """Every norm counts alike; the inputs of all, and of those that are kept the outputs for another half."""
    for kind in ("mbart", "t5"):
        teacher: Any = teacher_of(kind)
        anatomy = anatomy_of(teacher)
        expected = torch.zeros(24, 24, dtype=torch.float64)
        for name, side in anatomy.norms.items():
            parts = watched(teacher, name, side)[: 2 if name in anatomy.kept else 1]
            for states in parts:
                unit = states / states.square().mean(1, keepdim=True).sqrt()
                expected += unit.T @ unit / len(unit) / len(parts) / len(anatomy.norms)
        found = stream_moments(teacher, anatomy, BATCHES)
        torch.testing.assert_close(found.second, expected, rtol=1e-3, atol=1e-4)
        assert found.rows == min(
            int(sum(batch.rows(side).sum() for batch in BATCHES)) for side in ("encoder", "decoder")
        )
        assert len(anatomy.norms) == (2 + 2 * 2 + 4 * 3 + 2 if kind == "mbart" else 2 * 2 + 4 * 3 + 2)
        kept = {"mbart": {"model.encoder.layernorm_embedding", "model.decoder.layernorm_embedding"}, "t5": set()}[kind]
        assert anatomy.kept == {*kept, anatomy.head_norm}
