"""An update of a T5 student is exact, though its attention may choose another kernel when the bias wants a gradient."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

from cktk.architectures.families.t5 import T5Family
from cktk.architectures.spec import StudentSpec
from cktk.utils.log import logger
from tests.unit.engine import parts
from tests.unit.engine.test_update import LENGTHS, change, naive_gradients, split


def t5(seed: int, width: int, layers: int, dropout: float = 0.0, *, tied: bool = False, gated: bool = True) -> Any:
    torch.manual_seed(seed)
    config: Any = T5Config(
        vocab_size=31,
        d_model=width,
        num_layers=layers,
        d_ff=2 * width,
        num_heads=2,
        d_kv=width // 2,
        dropout_rate=dropout,
        feed_forward_proj="gated-gelu" if gated else "relu",
        relative_attention_num_buckets=8,
        decoder_start_token_id=2,
        tie_word_embeddings=tied,
    )
    config.tie_word_embeddings = tied
    model: Any = T5Family().student(config, StudentSpec())
    assert isinstance(model, T5ForConditionalGeneration)
    return model


def t5_in_float64(*arguments: Any, **options: Any) -> Any:
    return t5(*arguments, **options).double()


def tied(*arguments: Any) -> Any:
    return t5_in_float64(*arguments, tied=True, gated=False)


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(logger, "propagate", True)
    caplog.set_level(logging.WARNING)
    return caplog


@pytest.mark.parametrize("make", [t5_in_float64, tied])
@pytest.mark.parametrize("sizes", [[8], [4, 4], [5, 1, 2]])
def test_an_update_is_the_gradient_of_the_whole_effective_batch(sizes: list[int], make: Any) -> None:
    updater = parts.updater("cka_kd", make=make)
    expected, loss = naive_gradients(updater, parts.batch(LENGTHS))
    found, values = change(updater, split(sizes))
    assert values["loss"] == pytest.approx(loss, rel=1e-12)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-11, msg=name)


def test_both_passes_give_the_same_states(warnings: pytest.LogCaptureFixture) -> None:
    """In float32, where kernels do differ: at once, or from the second try on and for good."""

    def make(*arguments: Any) -> Any:
        return t5(*arguments)

    updater = parts.updater("cka_kd", make=make)
    updater.step.criterion.float()
    digests: list[list[float]] = []

    def watch(first: torch.Tensor, second: torch.Tensor | None) -> None:
        assert second is not None
        digests.append((first - second).abs().tolist())

    updater.run(split([4, 4]), 0, 1.0)
    assert not any("not quite exact" in record.message for record in warnings.records)
    updater._check_replay = watch  # type: ignore[method-assign]
    for update in (1, 2):
        updater.step.digests = True
        updater.run(split([3, 3, 2]), update, 1.0)
    assert len(digests) == 4
    assert not any(any(row) for row in digests)


def test_attention_terms_reach_the_position_bias() -> None:
    updater = parts.updater(
        "attention_kd", make=t5_in_float64, attention_match=("probabilities",), ce_weight=0.0, kl_weight=0.0
    )
    whole, _ = change(updater, split([8]))
    parted, _ = change(parts.updater(
        "attention_kd", make=t5_in_float64, attention_match=("probabilities",), ce_weight=0.0, kl_weight=0.0
    ), split([3, 3, 2]))  # fmt: skip
    name = "student.decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    assert whole[name].abs().max() > 1e-4
    for each, gradient in whole.items():
        torch.testing.assert_close(parted[each], gradient, rtol=1e-9, atol=1e-11, msg=each)
