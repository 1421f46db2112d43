"""BLEU in training: rows, decoding and batches of the search."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cktk.data.shards import DataFolder
from cktk.distributed.world import World
from cktk.evaluation.bleu import score_translations
from cktk.generation.beam import BeamSearch
from cktk.hub import student
from cktk.tasks.configs import TranslationConfig
from cktk.tasks.scoring import OutputScorer
from cktk.tasks.translation import TranslationTask
from tests.unit.generation.students import data_bin, save_student

PAIRS = [("a b c", "c b a"), ("", "q"), ("t s r q p", "a b c d"), ("k", "l m"), ("b b a", "a a")]
CONFIG = TranslationConfig(eval_bleu=True, eval_beam=2, eval_max_len_a=0.0, eval_max_len_b=8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_student(tmp_path / "small")


def scorer(data: DataFolder, folder: Path, max_tokens: int | None) -> OutputScorer:
    opened = student(folder, device="cpu")
    task = TranslationTask(CONFIG, data, pad=1, decoder_start=2)
    found = task.scorer(opened.model, opened.tokenizer, "test", World(0, 1, torch.device("cpu")), max_tokens)
    assert found is not None
    (only,) = found._scorers.values()
    return only


def test_scores_are_those_of_the_translator_and_batches_keep_to_the_budget(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = data_bin(tmp_path / "bin", folder, PAIRS)
    translator = student(folder, device="cpu", beam=2, max_len_a=0.0, max_len_b=8)
    ours = translator.translate([source for source, _ in PAIRS])
    expected = score_translations(ours, [target for _, target in PAIRS])
    sizes: list[tuple[int, int]] = []
    search = BeamSearch._search

    def watched(self: BeamSearch, *arguments: Any) -> Any:
        batch = arguments[1]
        sizes.append((len(batch), max(map(len, batch))))
        return search(self, *arguments)

    monkeypatch.setattr(BeamSearch, "_search", watched)
    for budget in (None, 12):
        sizes.clear()
        assert scorer(data, folder, budget)() == {"bleu": expected.bleu, "chrf": expected.chrf}
        if budget is None:
            assert len(sizes) == 1
        else:
            assert len(sizes) > 1
            assert all(rows * longest <= budget for rows, longest in sizes)


def test_a_spelled_line_break_does_not_part_a_line(folder: Path, tmp_path: Path) -> None:
    class Spells:
        def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
            return " one\ntwo\r\n"

    data = data_bin(tmp_path / "bin", folder, PAIRS)
    found = scorer(data, folder, None)
    found._tokenizer = Spells()
    assert found._decode([[5]]) == ["one two"]


def test_every_score_is_of_the_weights_of_its_moment(folder: Path, tmp_path: Path) -> None:
    data = data_bin(tmp_path / "bin", folder, PAIRS)
    found = scorer(data, folder, None)
    model = found._new_search.args[0]
    before = found._decode(found._generate([0, 2]))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.neg_()
    after = found._decode(found._generate([0, 2]))
    fresh = BeamSearch(model, *found._new_search.args[1:]).generate([found._rows.source_ids(row) for row in (0, 2)])
    assert after != before
    assert after == found._decode([list(best[0].tokens) for best in fresh])
