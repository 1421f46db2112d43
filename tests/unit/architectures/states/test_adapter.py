from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cktk.architectures.families.family import family_of
from cktk.architectures.states.adapter import Seq2SeqAdapter
from cktk.errors import ConfigError
from cktk.protocols import AttentionKind, AttentionStates, Batch, ModelOutput, Side, StateRequest
from tests.unit.architectures import models
from tests.unit.architectures.models import T5_KINDS, make_t5

ATTENTION = {"encoder": (1, 2), "decoder": (1, 2, 3, 4), "cross": (1, 2, 3, 4)}
EVERYTHING = StateRequest({"encoder": (0, 1, 2), "decoder": (0, 1, 2, 3, 4)}, head=True, attention=ATTENTION)


@pytest.fixture(params=["bart", "mbart", *T5_KINDS])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def make_model(kind: str, **changes: Any) -> PreTrainedModel:
    if kind not in T5_KINDS:
        return models.make_model(kind, **changes)
    if "dropout" in changes:
        changes = {"dropout_rate": changes["dropout"]}
    return make_t5(kind, **changes)


def adapt(model: PreTrainedModel) -> Seq2SeqAdapter:
    adapter = family_of(model.config.model_type, "the model").adapter(model)
    assert isinstance(adapter, Seq2SeqAdapter)
    return adapter


def logits_of(adapter: Seq2SeqAdapter, output: ModelOutput) -> Tensor:
    head = adapter.head()
    assert output.head_input is not None
    logits = head.scale * output.head_input @ head.weight.T
    return logits if head.bias is None else logits + head.bias


def reference(model: nn.Module, batch: Batch) -> tuple[dict[tuple[Side, int], Tensor], Tensor]:
    """All states and the logits as transformers gives them, packed with boolean indexing."""
    output = model(**batch.inputs, output_hidden_states=True)
    rows = {"encoder": batch.inputs["attention_mask"] == 1, "decoder": batch.labels != -100}
    states: dict[tuple[Side, int], Tensor] = {}
    for layer, state in enumerate(output.encoder_hidden_states):
        states["encoder", layer] = state[rows["encoder"]]
    for layer, state in enumerate(output.decoder_hidden_states):
        states["decoder", layer] = state[rows["decoder"]]
    return states, output.logits[rows["decoder"]]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_states_and_logits_equal_transformers(kind: str, batch: Batch, training: bool, attention: str) -> None:
    model = make_model(kind, dropout=0.3, attention_dropout=0.2, activation_dropout=0.1).train(training)
    model.set_attn_implementation(attention)
    torch.manual_seed(5)
    states, logits = reference(model, batch)
    torch.manual_seed(5)
    output = adapt(model)(batch, EVERYTHING)

    assert output.hidden.keys() == states.keys()
    for key, state in states.items():
        torch.testing.assert_close(output.hidden[key], state, rtol=0, atol=0, msg=str(key))
    torch.testing.assert_close(logits_of(adapt(model), output), logits, rtol=0, atol=1e-5)


def test_the_last_states_are_those_that_feed_the_head(kind: str, batch: Batch) -> None:
    output = adapt(make_model(kind))(batch, EVERYTHING)
    assert output.head_input is output.hidden["decoder", 4]


def test_only_what_was_asked_for_is_there(kind: str, batch: Batch) -> None:
    adapter = adapt(make_model(kind))
    some = adapter(batch, StateRequest({"encoder": (1,), "decoder": (0, 3)}))
    assert set(some.hidden) == {("encoder", 1), ("decoder", 0), ("decoder", 3)}
    assert some.head_input is None
    head_only = adapter(batch, StateRequest(head=True))
    assert not head_only.hidden
    assert head_only.head_input is not None
    assert head_only.head_input.shape == (13, 24)
    assert not some.attention and not head_only.attention
    blocks = adapter(batch, StateRequest(attention={"decoder": (), "cross": (2,)}))
    assert set(blocks.attention) == {("cross", 2)} and not blocks.hidden and blocks.head_input is None
    assert not adapter(batch, StateRequest()).hidden


@pytest.mark.parametrize(
    ("request_", "encoder_runs", "decoder_runs"),
    [
        (EVERYTHING, 1, 1),
        (StateRequest({"encoder": (0, 2)}), 1, 0),
        (StateRequest({"decoder": (2,)}), 1, 1),
        (StateRequest(attention={"encoder": (2,)}), 1, 0),
        (StateRequest(attention={"encoder": (2,), "decoder": (), "cross": ()}), 1, 0),
        (StateRequest(attention={"cross": (2,)}), 1, 1),
        (StateRequest(attention={"decoder": (4,)}), 1, 1),
        (StateRequest(), 0, 0),
    ],
)
def test_each_side_runs_at_most_once_and_the_head_never(
    kind: str, batch: Batch, request_: StateRequest, encoder_runs: int, decoder_runs: int
) -> None:
    model = make_model(kind)
    calls: list[str] = []
    for name, module in (("encoder", model.get_encoder()), ("decoder", model.get_decoder()), ("head", model.lm_head)):
        module.register_forward_hook(lambda *_, name=name: calls.append(name))
    adapt(model)(batch, request_)
    assert (calls.count("encoder"), calls.count("decoder"), calls.count("head")) == (encoder_runs, decoder_runs, 0)


def test_no_hooks_are_left_even_after_an_error(kind: str, batch: Batch) -> None:
    model = make_model(kind)
    adapter = adapt(model)
    adapter(batch, EVERYTHING)
    batch.inputs["decoder_input_ids"] = torch.full((3, 6), 99)  # outside the vocabulary
    with pytest.raises(IndexError):
        adapter(batch, EVERYTHING)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_gradients_equal_those_through_transformers(kind: str, batch: Batch) -> None:
    """Also with tied head, and for states that share one graph."""
    model = make_model(kind)
    states, logits = reference(model, batch)
    expected_loss = logits.sin().sum() + sum(state.cos().sum() for state in states.values())
    expected = torch.autograd.grad(expected_loss, list(model.parameters()))
    adapter = adapt(model)
    output = adapter(batch, EVERYTHING)
    loss = logits_of(adapter, output).sin().sum() + sum(state.cos().sum() for state in output.hidden.values())
    for found, wanted in zip(torch.autograd.grad(loss, list(model.parameters())), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_gradient_checkpointing_gives_the_same_gradients(kind: str, batch: Batch) -> None:
    def gradients(checkpointing: bool) -> tuple[Tensor, ...]:
        model = make_model(kind, dropout=0.2).train()
        if checkpointing:
            model.activation_checkpointing_enable()
        torch.manual_seed(3)
        output = adapt(model)(batch, EVERYTHING)
        loss = sum((state**2).sum() for state in output.hidden.values())
        loss += sum((x**2).sum() for block in output.attention.values() for x in (block.query, block.key, block.value))
        assert isinstance(loss, Tensor)
        trunk = [p for name, p in model.named_parameters() if name != "lm_head.weight"]
        return torch.autograd.grad(loss, trunk)

    for plain, checkpointed in zip(gradients(False), gradients(True), strict=True):
        torch.testing.assert_close(plain, checkpointed)


def test_padding_changes_nothing(kind: str, batch: Batch) -> None:
    model = make_model(kind)
    output = adapt(model)(batch, EVERYTHING)
    pad = nn.functional.pad
    wider = Batch(
        {
            "input_ids": pad(batch.inputs["input_ids"], (0, 3), value=1),
            "attention_mask": pad(batch.inputs["attention_mask"], (0, 3)),
            "decoder_input_ids": pad(batch.inputs["decoder_input_ids"], (0, 2), value=1),
        },
        pad(batch.labels, (0, 2), value=-100),
        batch.ids,
    )
    padded = adapt(model)(wider, EVERYTHING)
    for key, state in padded.hidden.items():
        torch.testing.assert_close(state, output.hidden[key], rtol=1e-5, atol=1e-5)
    for block in padded.attention:
        found, wanted = (
            probabilities(x).transpose(1, 2)[x.query_rows] for x in (padded.attention[block], output.attention[block])
        )
        length = wanted.shape[-1]
        torch.testing.assert_close(found[..., :length], wanted, rtol=1e-4, atol=1e-5)
        assert found[..., length:].count_nonzero() == 0


def test_batches_without_pads_and_dummies(kind: str, batch: Batch) -> None:
    adapter = adapt(make_model(kind))
    full = Batch({**batch.inputs, "attention_mask": torch.ones(3, 7).long()}, batch.labels.clamp(min=3), batch.ids)
    output = adapter(full, EVERYTHING)
    states, _ = reference(adapter.model, full)
    assert output.hidden["encoder", 1].shape == (21, 24)
    assert all(torch.equal(state, states[key]) for key, state in output.hidden.items())

    dummy = adapter(Batch(batch.inputs, batch.labels, batch.ids, dummy=True), EVERYTHING)
    assert all(state.shape == (0, 24) for state in dummy.hidden.values())
    assert not any(block.query_rows.any() or block.key_rows.any() for block in dummy.attention.values())
    assert dummy.head_input is not None
    dummy.head_input.sum().backward()  # connected: its gradients are zero, not absent
    decoder = adapter.model.get_decoder()
    up = decoder.block[0].layer[2].layer_norm if kind in T5_KINDS else decoder.layers[0].fc1
    assert up.weight.grad is not None and up.weight.grad.count_nonzero() == 0


def test_runs_under_autocast_and_no_grad(kind: str, batch: Batch) -> None:
    adapter = adapt(make_model(kind))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        output = adapter(batch, EVERYTHING)
    assert not any(state.requires_grad for state in output.hidden.values())


def probabilities(block: AttentionStates) -> Tensor:
    """(B, heads, L_q, L_k) from the projections, the rows that count and the causal rule."""
    query, key = (x.unflatten(-1, (block.heads, -1)).transpose(1, 2) for x in (block.query, block.key))
    visible = block.key_rows[:, None, None, :].expand(-1, 1, query.shape[2], -1)
    if block.causal:
        visible = visible & torch.ones(visible.shape[-2:], dtype=torch.bool).tril()
    scores = block.scale * query @ key.transpose(2, 3)
    if block.bias is not None:
        scores = scores + block.bias
    return scores.masked_fill(~visible, -torch.inf).softmax(-1)


def test_attention_equals_transformers(kind: str, batch: Batch) -> None:
    """In rows that count; also where a position on the left of a scored one is not scored."""
    model = make_model(kind)
    model.set_attn_implementation("eager")
    batch.labels[:, 1] = -100
    output = model(**batch.inputs, output_attentions=True)
    expected = {
        "encoder": output.encoder_attentions,
        "decoder": output.decoder_attentions,
        "cross": output.cross_attentions,
    }
    attention = adapt(model)(batch, EVERYTHING).attention
    assert set(attention) == {(name, layer) for name, layers in ATTENTION.items() for layer in layers}
    for (name, layer), block in attention.items():
        rows = batch.rows("encoder" if name == "encoder" else "decoder")
        assert torch.equal(block.query_rows, rows)
        found, wanted = probabilities(block).transpose(1, 2)[rows], expected[name][layer - 1].transpose(1, 2)[rows]
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6, msg=f"{name} {layer}")


@pytest.mark.parametrize("name", ["encoder", "decoder", "cross"])
def test_values_are_what_the_block_adds_up(kind: str, batch: Batch, name: AttentionKind) -> None:
    model = make_model(kind)
    seen: dict[str, Tensor] = {}
    stack = model.get_encoder() if name == "encoder" else model.get_decoder()
    if kind in T5_KINDS:
        out = stack.block[1].layer[1].EncDecAttention.o if name == "cross" else stack.block[1].layer[0].SelfAttention.o
    else:
        out = (stack.layers[1].encoder_attn if name == "cross" else stack.layers[1].self_attn).out_proj
    out.register_forward_pre_hook(lambda _, arguments: seen.update(mixed=arguments[0]))
    states = adapt(model)(batch, StateRequest(attention={name: (2,)})).attention[name, 2]
    values = states.value.unflatten(-1, (states.heads, -1)).transpose(1, 2)
    mixed = (probabilities(states) @ values).transpose(1, 2).flatten(2)
    torch.testing.assert_close(mixed[states.query_rows], seen["mixed"][states.query_rows], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["bart", "mbart"])
def test_layerdrop_is_refused_where_states_are_matched(kind: str, batch: Batch) -> None:
    model = make_model(kind, encoder_layerdrop=0.5)
    adapt(model)(batch, EVERYTHING)  # harmless in eval mode
    with pytest.raises(ConfigError, match=r"LayerDrop 0\.5 .* encoder_layerdrop"):
        adapt(model.train())(batch, EVERYTHING)
    with pytest.raises(ConfigError, match=r"LayerDrop 0\.5 .* encoder_layerdrop"):
        adapt(model.train())(batch, StateRequest(attention={"encoder": (1,)}))


def test_states_that_do_not_exist_are_an_error(kind: str, batch: Batch) -> None:
    with pytest.raises(ValueError, match="0 to 2"):
        adapt(make_model(kind))(batch, StateRequest({"encoder": (3,)}))
    for layer in (0, 3):
        with pytest.raises(ValueError, match="1 to 2"):
            adapt(make_model(kind))(batch, StateRequest(attention={"encoder": (layer,)}))
