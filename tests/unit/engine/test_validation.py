from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from cktk.engine.validation import Validator
from cktk.errors import ConfigError, DataError
from cktk.protocols import Batch
from tests.unit.engine import parts
from tests.unit.engine.test_update import LENGTHS, naive_gradients, split


def validator(sizes: list[int], **options: float) -> tuple[Validator, torch.nn.Module]:
    updater = parts.updater("cka_kd", **options)
    return Validator(updater.step, updater.teacher, {"": lambda: iter(split(sizes))}, parts.CPU), updater.step


def test_figures_are_those_of_the_whole_split_however_it_is_batched() -> None:
    _, loss = naive_gradients(parts.updater("cka_kd"), parts.batch(LENGTHS))
    whole = validator([8])[0].run()
    assert whole["loss"] == pytest.approx(loss, rel=1e-12)
    for sizes in ([4, 4], [1] * 8, [5, 1, 2]):
        assert validator(sizes)[0].run() == pytest.approx(whole, rel=1e-10)


def test_dropout_is_off_inside_and_the_mode_returns() -> None:
    quiet = validator([8])[0].run()
    one, step = validator([8], dropout=0.5)
    step.train()
    assert one.run() == pytest.approx(quiet, rel=1e-12)
    assert step.training
    assert step.student.model.encoder.training
    step.eval()
    one.run()
    assert not step.training


def test_the_mode_returns_after_an_error() -> None:
    def broken() -> Iterator[Batch]:
        raise DataError("a shard is damaged")

    updater = parts.updater("cka_kd")
    updater.step.train()
    with pytest.raises(DataError):
        Validator(updater.step, updater.teacher, {"": broken}, parts.CPU).run()
    assert updater.step.training


def test_a_metric_that_no_validation_gives_is_refused_early() -> None:
    one, _ = validator([8])
    one.check("kl")
    one.check("cka")
    with pytest.raises(ConfigError, match="did you mean kl"):
        one.check("kll")
    with pytest.raises(ConfigError, match="--eval-bleu"):
        one.check("bleu")


def test_several_corpora_give_the_figures_of_each_and_of_all() -> None:
    updater = parts.updater("cka_kd")
    whole, few, rest = split([8]), split([3, 5])[:1], split([3, 5])[1:]
    passes = {"en": lambda: iter(few), "fr": lambda: iter(rest)}
    sums = {"clm_kl": ("ce", "kl"), "other": ("ce", "nothing")}
    values = Validator(updater.step, updater.teacher, passes, parts.CPU, sums=sums).run()
    alone = Validator(updater.step, updater.teacher, {"": lambda: iter(whole)}, parts.CPU).run()
    assert {name: values[name] for name in alone} == pytest.approx(alone, rel=1e-10)
    for name, batches in (("en", few), ("fr", rest)):
        own = Validator(updater.step, updater.teacher, {"": lambda batches=batches: iter(batches)}, parts.CPU).run()
        assert values[f"kl/{name}"] == pytest.approx(own["kl"], rel=1e-12)
        assert values[f"ce/{name}"] == pytest.approx(own["ce"], rel=1e-12)
        assert values[f"clm_kl/{name}"] == pytest.approx(own["kl"] + own["ce"], rel=1e-12)
        assert f"loss/{name}" not in values and f"cka/{name}" not in values
    assert values["clm_kl"] == pytest.approx(alone["kl"] + alone["ce"], rel=1e-10) and "other" not in values
    tokens = [sum(batch.counts()["target_token"] for batch in batches) for batches in (few, rest)]
    mean = (tokens[0] * values["kl/en"] + tokens[1] * values["kl/fr"]) / sum(tokens)
    assert values["kl"] == pytest.approx(mean, rel=1e-10) and values["kl/en"] != pytest.approx(values["kl/fr"])


def test_a_wrong_figure_of_a_corpus_is_answered_with_those_of_all() -> None:
    updater = parts.updater("cka_kd")
    passes = {name: lambda: iter(split([8])) for name in ("en", "fr")}
    one = Validator(updater.step, updater.teacher, passes, parts.CPU)
    with pytest.raises(ConfigError, match="unknown name 'kl/de'; .*known: .*kl, kl/en, kl/fr"):
        one.check("kl/de")
    with pytest.raises(ConfigError, match="did you mean kl") as told:
        one.check("kll")
    assert "/" not in str(told.value)


def test_an_empty_corpus_is_named() -> None:
    updater = parts.updater("cka_kd")
    passes = {"en": lambda: iter(split([8])), "fr": lambda: iter(())}
    with pytest.raises(DataError, match="the validation split of fr is empty"):
        Validator(updater.step, updater.teacher, passes, parts.CPU).run()
