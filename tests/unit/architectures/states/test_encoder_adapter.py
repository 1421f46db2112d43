from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cktk.architectures.families.family import families
from cktk.errors import ConfigError
from cktk.protocols import Adapter, AttentionStates, Batch, StateRequest
from tests.unit.architectures.encoders import HEADS, KINDS, LAYERS, WIDTH, make_batch, make_encoder

NUMBERS = tuple(range(LAYERS + 1))
STATES = StateRequest({"encoder": NUMBERS}, attention={"encoder": NUMBERS[1:]})
EVERYTHING = StateRequest({"encoder": NUMBERS}, head=True, attention={"encoder": NUMBERS[1:]})


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=HEADS)
def head(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def adapter_of(model: Any) -> Adapter:
    return families()[model.config.model_type].adapter(model)


def wanted(head: str) -> StateRequest:
    return STATES if head == "bare" else EVERYTHING


def inputs_of(kind: str, batch: Batch) -> dict[str, Tensor]:
    """What transformers is given: only BERT here tells kinds of sentence apart."""
    return {name: tensor for name, tensor in batch.inputs.items() if kind == "bert" or name != "token_type_ids"}


def reference(model: nn.Module, kind: str, batch: Batch) -> tuple[list[Tensor], Tensor | None]:
    """All states of attended positions and the logits of what is scored, as transformers gives them."""
    output = model(**inputs_of(kind, batch), output_hidden_states=True)
    states = [state[batch.inputs["attention_mask"] == 1] for state in output.hidden_states]
    return states, output.logits[batch.labels != -100] if "logits" in output else None


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_states_and_logits_equal_transformers(kind: str, head: str, training: bool, attention: str) -> None:
    model = make_encoder(kind, head).train(training)
    model.set_attn_implementation(attention)
    batch = make_batch(head)
    torch.manual_seed(5)
    states, logits = reference(model, kind, batch)
    torch.manual_seed(5)
    output = adapter_of(model)(batch, wanted(head))

    assert output.hidden.keys() == {("encoder", number) for number in NUMBERS}
    for number, state in enumerate(states):
        torch.testing.assert_close(output.hidden["encoder", number], state, rtol=0, atol=0, msg=str(number))
    if logits is not None:
        params = adapter_of(model).head()
        assert output.head_input is not None and params.bias is not None and params.scale == 1
        assert output.head_input.shape == (2 if head == "classification" else 11, WIDTH)
        torch.testing.assert_close(output.head_input @ params.weight.T + params.bias, logits, rtol=0, atol=1e-5)


def test_kinds_of_sentence_matter_where_there_are_some() -> None:
    with_types, without = make_batch(), make_batch(token_types=False)
    for kind in KINDS:
        adapter = adapter_of(make_encoder(kind))
        found = [adapter(batch, STATES).hidden["encoder", 0] for batch in (with_types, without)]
        assert torch.equal(*found) == (kind != "bert"), kind


@pytest.mark.parametrize("shape", ["flat", "column"])
def test_labels_of_sentences_may_be_a_column(kind: str, shape: str) -> None:
    model, batch = make_encoder(kind, "classification"), make_batch("classification")
    labels = batch.labels if shape == "flat" else batch.labels[:, None]
    again = Batch(batch.inputs, labels, batch.ids)
    assert again.counts()["target_token"] == 2
    output = adapter_of(model)(again, StateRequest(head=True))
    assert output.head_input is not None
    logits = model(**inputs_of(kind, batch)).logits[[0, 2]]
    params = adapter_of(model).head()
    torch.testing.assert_close(output.head_input @ params.weight.T + params.bias, logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("head", "labels"), [("masked_lm", "classification"), ("classification", "masked_lm")])
def test_labels_of_another_shape_are_an_error(kind: str, head: str, labels: str) -> None:
    with pytest.raises(ValueError, match=f"for a head that scores each {'po' if head == 'masked_lm' else 'se'}"):
        adapter_of(make_encoder(kind, head))(make_batch(labels), StateRequest(head=True))


def test_only_what_was_asked_for_is_there(kind: str) -> None:
    adapter, batch = adapter_of(make_encoder(kind)), make_batch()
    some = adapter(batch, StateRequest({"encoder": (0, 3)}))
    assert set(some.hidden) == {("encoder", 0), ("encoder", 3)}
    assert some.head_input is None and not some.attention
    head_only = adapter(batch, StateRequest(head=True))
    assert not head_only.hidden and not head_only.attention and head_only.head_input is not None
    blocks = adapter(batch, StateRequest(attention={"encoder": (2,), "decoder": ()}))
    assert set(blocks.attention) == {("encoder", 2)} and not blocks.hidden
    assert not adapter(batch, StateRequest()).hidden


def test_the_encoder_runs_once_and_the_last_linear_never(kind: str, head: str) -> None:
    model: Any = make_encoder(kind, head)
    calls: list[str] = []
    adapter = adapter_of(model)
    model.base_model.register_forward_hook(lambda *_: calls.append("encoder"))
    if head != "bare":
        for module in model.modules():
            if getattr(module, "weight", None) is adapter.head().weight and isinstance(module, nn.Linear):
                module.register_forward_hook(lambda *_: calls.append("head"))
    adapter(make_batch(head), wanted(head))
    assert calls == ["encoder"]
    adapter(make_batch(head), StateRequest())
    assert calls == ["encoder"]


def test_no_hooks_are_left_even_after_an_error(kind: str, head: str) -> None:
    model, batch = make_encoder(kind, head), make_batch(head)
    adapter = adapter_of(model)
    adapter(batch, wanted(head))
    batch.inputs["input_ids"] = torch.full((3, 7), 99)  # outside the vocabulary
    with pytest.raises(IndexError):
        adapter(batch, wanted(head))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_gradients_equal_those_through_transformers(kind: str, head: str) -> None:
    """Also with tied head, and for states that share one graph."""
    model, batch = make_encoder(kind, head), make_batch(head)
    adapter = adapter_of(model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    states, logits = reference(model, kind, batch)
    loss = sum((state.cos().sum() for state in states), torch.zeros(()))
    expected = torch.autograd.grad(loss if logits is None else loss + logits.sin().sum(), trained)
    output = adapter(batch, wanted(head))
    loss = sum((state.cos().sum() for state in output.hidden.values()), torch.zeros(()))
    if head != "bare":
        params = adapter.head()
        assert output.head_input is not None and params.bias is not None
        loss = loss + (output.head_input @ params.weight.T + params.bias).sin().sum()
    for found, right in zip(torch.autograd.grad(loss, trained), expected, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-4)


def test_every_parameter_that_trains_gets_a_gradient(kind: str, head: str) -> None:
    """DDP waits for all of them; the pooler of a bare encoder is the only one that nothing is computed from."""
    model = make_encoder(kind, head)
    adapter = adapter_of(model)
    output = adapter(make_batch(head), wanted(head))
    loss = sum((state.sum() for state in output.hidden.values()), torch.zeros(()))
    if head != "bare":
        params = adapter.head()
        assert output.head_input is not None and params.bias is not None
        loss = loss + (output.head_input @ params.weight.T + params.bias).sum()
    loss.backward()
    left = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    poolers = {"pooler.dense.weight", "pooler.dense.bias"}
    assert left == (poolers if head == "bare" and kind != "distilbert" else set())
    assert left == {name for name, parameter in model.named_parameters() if not parameter.requires_grad}


def test_gradient_checkpointing_gives_the_same_gradients(kind: str) -> None:
    def gradients(checkpointing: bool) -> tuple[Tensor, ...]:
        model = make_encoder(kind).train()
        if checkpointing:
            model.activation_checkpointing_enable()
        torch.manual_seed(3)
        output = adapter_of(model)(make_batch(), EVERYTHING)
        assert output.head_input is not None
        loss = (output.head_input**2).sum() + sum((state**2).sum() for state in output.hidden.values())
        loss += sum((x**2).sum() for block in output.attention.values() for x in (block.query, block.key, block.value))
        assert isinstance(loss, Tensor)
        return torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)

    for plain, checkpointed in zip(gradients(False), gradients(True), strict=True):
        torch.testing.assert_close(plain, checkpointed)


def test_padding_changes_nothing(kind: str, head: str) -> None:
    model, batch = make_encoder(kind, head), make_batch(head)
    output = adapter_of(model)(batch, wanted(head))
    fill = {"input_ids": 1, "attention_mask": 0, "token_type_ids": 0}
    pad = nn.functional.pad
    wider = Batch(
        {name: pad(tensor, (0, 3), value=fill[name]) for name, tensor in batch.inputs.items()},
        batch.labels if head == "classification" else pad(batch.labels, (0, 3), value=-100),
        batch.ids,
    )
    padded = adapter_of(model)(wider, wanted(head))
    for key, state in padded.hidden.items():
        torch.testing.assert_close(state, output.hidden[key], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(padded.head_input, output.head_input, rtol=1e-5, atol=1e-5)


def test_dummies_have_no_rows_and_zero_gradients(kind: str, head: str) -> None:
    model, batch = make_encoder(kind, head), make_batch(head)
    output = adapter_of(model)(Batch(batch.inputs, batch.labels, batch.ids, dummy=True), wanted(head))
    assert all(state.shape == (0, WIDTH) for state in output.hidden.values())
    assert not any(block.query_rows.any() or block.key_rows.any() for block in output.attention.values())
    last = output.hidden["encoder", LAYERS] if head == "bare" else output.head_input
    assert last is not None and last.shape == (0, WIDTH)
    last.sum().backward()  # connected: its gradients are zero, not absent
    gradient = model.get_input_embeddings().weight.grad
    assert isinstance(gradient, Tensor) and gradient.count_nonzero() == 0


def test_runs_under_autocast_and_no_grad(kind: str, head: str) -> None:
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        output = adapter_of(make_encoder(kind, head))(make_batch(head), wanted(head))
    assert not any(state.requires_grad for state in output.hidden.values())


def probabilities(block: AttentionStates) -> Tensor:
    """(B, heads, L_q, L_k) from the projections and the rows that count."""
    query, key = (x.unflatten(-1, (block.heads, -1)).transpose(1, 2) for x in (block.query, block.key))
    scores = block.scale * query @ key.transpose(2, 3)
    return scores.masked_fill(~block.key_rows[:, None, None, :], -torch.inf).softmax(-1)


def test_attention_equals_transformers(kind: str, head: str) -> None:
    model, batch = make_encoder(kind, head), make_batch(head)
    model.set_attn_implementation("eager")
    expected = model(**inputs_of(kind, batch), output_attentions=True).attentions
    output = adapter_of(model)(batch, wanted(head))
    assert set(output.attention) == {("encoder", number) for number in NUMBERS[1:]}
    rows = batch.inputs["attention_mask"] == 1
    for (_, number), block in output.attention.items():
        assert torch.equal(block.query_rows, rows) and torch.equal(block.key_rows, rows) and not block.causal
        found, right = probabilities(block).transpose(1, 2)[rows], expected[number - 1].transpose(1, 2)[rows]
        torch.testing.assert_close(found, right, rtol=1e-5, atol=1e-6, msg=str(number))


def test_values_are_what_the_block_adds_up(kind: str) -> None:
    model: Any = make_encoder(kind)
    layer = (model.distilbert.transformer if kind == "distilbert" else model.base_model.encoder).layer[1]
    out = layer.attention.out_lin if kind == "distilbert" else layer.attention.output.dense
    seen: dict[str, Tensor] = {}
    out.register_forward_pre_hook(lambda _, arguments: seen.update(mixed=arguments[0]))
    states = adapter_of(model)(make_batch(), StateRequest(attention={"encoder": (2,)})).attention["encoder", 2]
    values = states.value.unflatten(-1, (states.heads, -1)).transpose(1, 2)
    mixed = (probabilities(states) @ values).transpose(1, 2).flatten(2)
    torch.testing.assert_close(mixed[states.query_rows], seen["mixed"][states.query_rows], rtol=1e-4, atol=1e-5)


def test_states_that_do_not_exist_are_an_error(kind: str) -> None:
    adapter, batch = adapter_of(make_encoder(kind)), make_batch()
    for request, message in (
        (StateRequest({"encoder": (5,)}), "0 to 4"),
        (StateRequest(attention={"encoder": (0,)}), "1 to 4"),
        (StateRequest({"decoder": (0,)}), "a decoder asked of a model that has none"),
        (StateRequest(attention={"cross": (1,)}), "a decoder asked of a model that has none"),
    ):
        with pytest.raises(ValueError, match=message):
            adapter(batch, request)


def test_a_bare_encoder_has_no_head(kind: str) -> None:
    adapter, batch = adapter_of(make_encoder(kind, "bare")), make_batch()
    for ask in (adapter.head, lambda: adapter(batch, StateRequest(head=True))):
        with pytest.raises(
            ConfigError, match=r"^a \w+Model has no output head, but cross entropy and KL need one"
        ) as e:
            ask()
        assert "\n" not in str(e.value)
