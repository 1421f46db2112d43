"""Both graphs, run by ONNX Runtime, against our greedy search and the model itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cktk import hub
from cktk.architectures.loading import load_model, load_tokenizer
from cktk.errors import ConfigError
from cktk.export.onnx_format import DECODER, ENCODER, write_onnx
from cktk.export.onnx_search import OnnxGreedy
from tests.unit.export.folders import LINES, STUDENTS, student
from tests.unit.generation.models import tiny
from tests.unit.generation.students import bart_tokenizer

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@pytest.mark.parametrize("kind", STUDENTS)
def test_greedy_search_equals_ours(kind: str, tmp_path: Path) -> None:
    folder = student(tmp_path / "s", kind)
    ours = hub.student(folder, device="cpu", beam=1, max_len_b=24)
    written = tmp_path / "onnx"
    written.mkdir()
    write_onnx(ours.model, ours.tokenizer, written)
    theirs = ours.with_engine(OnnxGreedy(written, ours.model, 24))
    for prefixes in (None, ["", "c d", "a", "", "q r s", "", "t", "b"]):
        expected, found = (one.translate_nbest(LINES, prefixes) for one in (ours, theirs))
        assert len({best[0].text for best in expected}) > 3
        assert [best[0].tokens for best in found] == [best[0].tokens for best in expected]
        assert [best[0].score for best in found] == pytest.approx([best[0].score for best in expected], abs=1e-4)
    assert theirs.counts.sentences == ours.counts.sentences == 2 * len(LINES)
    assert load_tokenizer(written).get_vocab() == ours.tokenizer.get_vocab()


@pytest.mark.parametrize("kind", ["bart", "t5", "flan"])
def test_graphs_by_the_names_that_the_documentation_gives(kind: str, tmp_path: Path) -> None:
    """Logits of a step behind two others equal those of transformers, for a padded source."""
    import onnxruntime

    model = tiny(kind, 2)
    write_onnx(model, bart_tokenizer(), tmp_path)
    encoder, decoder = (onnxruntime.InferenceSession(tmp_path / name) for name in (ENCODER, DECODER))
    ids = np.array([[5, 6, 7, 8, 2], [9, 2, 1, 1, 1]])
    mask = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    keys, values = encoder.run(["cross_keys", "cross_values"], {"input_ids": ids, "attention_mask": mask})
    given: dict[str, Any] = {"attention_mask": mask, "cross_keys": keys, "cross_values": values}
    past = [np.zeros((*keys.shape[:3], 0, keys.shape[4]), np.float32)] * 2
    start = np.array([[2, 11, 12], [2, 13, 14]])
    for place in range(3):
        step = {"tokens": start[:, place : place + 1], "past_keys": past[0], "past_values": past[1]}
        logits, *past = decoder.run(["logits", "keys", "values"], {**given, **step})
        assert past[0].shape[3] == place + 1
    with torch.no_grad():
        expected = model(
            input_ids=torch.from_numpy(ids),
            attention_mask=torch.from_numpy(mask),
            decoder_input_ids=torch.from_numpy(start),
        ).logits[:, -1]
    assert np.abs(logits - expected.numpy()).max() < 1e-4


def test_graphs_are_valid_and_share_the_embedding(tmp_path: Path) -> None:
    import onnx

    model = tiny("bart", 1, vocab_size=2000)
    write_onnx(model, bart_tokenizer(), tmp_path)
    for name in (ENCODER, DECODER):
        onnx.checker.check_model(str(tmp_path / name), full_check=True)
    embedding = 4 * 2000 * 16
    assert embedding < (tmp_path / f"{DECODER}.data").stat().st_size < 2 * embedding


def test_unknown_activation_is_refused(tmp_path: Path) -> None:
    model = load_model(student(tmp_path / "s", "bart"))
    model.config.activation_function = "mish"
    with pytest.raises(ConfigError, match="no activation 'mish'"):
        write_onnx(model, bart_tokenizer(), tmp_path)
