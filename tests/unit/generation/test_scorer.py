"""Ensembles and shortlists against transformers' `generate` with its scores replaced by ours, naively computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM, LogitsProcessor, LogitsProcessorList

from cktk.errors import CheckpointError, ConfigError, DataError
from cktk.generation.beam import BeamSearch
from cktk.generation.configs import SearchConfig
from cktk.hub import student
from tests.unit.generation.models import KINDS, VOCABULARY, beam_search, layout_of, random_sources, reference, tiny
from tests.unit.generation.students import save_student
from tests.unit.generation.test_beam import assert_same

LIMITS: dict[str, Any] = {"max_length": 12, "num_return_sequences": 3, "num_beams": 3}
CONFIG = SearchConfig(beam=3, nbest=3, max_len_b=10)


class MeanOfProbabilities(LogitsProcessor):
    """The log of the mean of what each model gives to the next token, each run on the whole output so far."""

    def __init__(self, models: list[Any], sources: list[Any], beams: int) -> None:
        width = max(map(len, sources))
        self.ids, self.mask = torch.full((len(sources), width), 1), torch.zeros(len(sources), width).long()
        for row, source in enumerate(sources):
            self.ids[row, : len(source)], self.mask[row, : len(source)] = torch.as_tensor(source), 1
        self.models, self.beams = models, beams

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        inputs = {
            "input_ids": self.ids.repeat_interleave(self.beams, 0),
            "attention_mask": self.mask.repeat_interleave(self.beams, 0),
            "decoder_input_ids": input_ids,
        }
        found = [model(**inputs).logits[:, -1].double().softmax(-1) for model in self.models]
        return torch.stack(found).mean(dim=0).log().float()


class Among(LogitsProcessor):
    """Probabilities of some tokens alone, which add up to 1."""

    def __init__(self, kept: list[int]) -> None:
        self.kept = kept

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        found = torch.full_like(scores, float("-inf"))
        found[:, self.kept] = scores[:, self.kept].log_softmax(-1)
        return found


@pytest.mark.parametrize("kinds", [("bart", "bart"), ("mbart", "bart", "bart"), ("t5", "flan")])
def test_an_ensemble_averages_probabilities(kinds: tuple[str, ...]) -> None:
    models = [tiny(kind, seed) for seed, kind in enumerate(kinds, start=1)]
    for model in models:
        model.generation_config = models[0].generation_config
        model.generation_config.forced_eos_token_id = None  # transformers would let the processor undo it
    sources = random_sources(3)
    others = [(model, layout_of(model)) for model in models[1:]]
    found = BeamSearch(models[0], CONFIG, layout_of(models[0]), others=others).generate(sources)
    naive = LogitsProcessorList([MeanOfProbabilities(models, sources, 3)])
    with torch.no_grad():
        assert_same(found, reference(models[0], sources, logits_processor=naive, **LIMITS))
    assert found != beam_search(models[0], CONFIG).generate(sources)


@pytest.mark.parametrize("kind", KINDS)
def test_a_shortlist_is_all_there_is(kind: str) -> None:
    model, sources = tiny(kind, 2), random_sources(2)
    kept = [1, 2, 0, 9, 30, 17, 21, 5, 36, 11]
    search = BeamSearch(model, CONFIG, layout_of(model), kept=kept)
    found = search.generate(sources, prefixes=[[9], None, [30, 9], None, None, None])
    assert all(set(best.tokens) <= set(kept) for hypotheses in found for best in hypotheses)
    found = search.generate(sources)
    assert_same(found, reference(model, sources, logits_processor=LogitsProcessorList([Among(kept)]), **LIMITS))
    with pytest.raises(DataError, match="prefix 2 has tokens that --target-vocabulary lacks"):
        search.generate(sources[:2], prefixes=[[9], [8]])


def test_a_shortlist_of_everything_changes_nothing() -> None:
    model, sources = tiny("bart", 4), random_sources(4)
    settings: dict[str, Any] = {"no_repeat_ngram_size": 2, "repetition_penalty": 1.2, "min_len": 3}
    for more in ({"beam": 4}, {"beam": 4, "diverse_beam_groups": 2}, {"beam": 1, "sampling": True}):
        config = SearchConfig(max_len_b=9, **settings, **more)  # type: ignore[arg-type]
        found = BeamSearch(model, config, layout_of(model), kept=range(VOCABULARY)).generate(sources)
        assert found == beam_search(model, config).generate(sources)


def test_from_python(tmp_path: Path) -> None:
    """Models with colons between; a text whose words may be written, the special tokens with them."""
    first, second = save_student(tmp_path / "first", 4), save_student(tmp_path / "second", 5)
    texts = ["a b c", "t s r q p"]
    options: dict[str, Any] = {"device": "cpu", "beam": 3, "max_len_b": 8}
    alone = [student(path, **options).translate_nbest(texts) for path in (first, second)]
    together = student(f"{first}:{second}", **options).translate_nbest(texts)
    assert together not in alone
    assert student(f"{first}:{first}", **options).translate(texts) == [found[0].text for found in alone[0]]
    words = tmp_path / "words"
    words.write_text("a b\n\nc d a\n")
    (found, _) = student(first, target_vocabulary=str(words), **options).translate(texts)
    assert found and set(found.split()) <= set("abcd")


def test_errors(tmp_path: Path) -> None:
    first = save_student(tmp_path / "first", 4)
    with pytest.raises(ConfigError, match="a name between colons is empty"):
        student(f"{first}:", device="cpu")
    empty = tmp_path / "empty"
    empty.write_text("\n")
    with pytest.raises(DataError, match="--target-vocabulary .*empty: holds no words"):
        student(first, device="cpu", target_vocabulary=str(empty))
    empty.write_text("a\n")
    with pytest.raises(ConfigError, match="--beam 9 is more than the 5 tokens of --target-vocabulary"):
        student(first, device="cpu", beam=9, target_vocabulary=str(empty))


def test_half_precision_from_python(tmp_path: Path) -> None:
    path = save_student(tmp_path / "first", 4)
    exact, half = (student(path, device="cpu", beam=2, precision=name) for name in ("float32", "bfloat16"))
    assert half.model.dtype == torch.bfloat16
    gap = half.translate_nbest(["a b"])[0][0].score - exact.translate_nbest(["a b"])[0][0].score
    assert 0 < abs(gap) < 0.2
    with pytest.raises(ConfigError, match="precision int4: unknown; choose float32, float16 or bfloat16"):
        student(path, device="cpu", precision="int4")
    with pytest.raises(ConfigError, match="--fp16 and --bf16 do not go with --quantization int8"):
        student(path, device="cpu", precision="float16", quantization="int8")


def test_members_that_do_not_fit(tmp_path: Path) -> None:
    first = save_student(tmp_path / "first", 4)
    larger = save_student(tmp_path / "larger", 4)
    tiny("bart", 1, vocab_size=50).save_pretrained(larger)
    with pytest.raises(ConfigError, match=r"first has a vocabulary of 24 ids, .*larger one of 50"):
        student(f"{first}:{larger}", device="cpu")
    config = BertConfig(vocab_size=24, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    BertForMaskedLM(config).save_pretrained(tmp_path / "reader")
    with pytest.raises(CheckpointError, match="reader: a bert has no decoder, so it writes no texts"):
        student(f"{first}:{tmp_path / 'reader'}", device="cpu")
