"""CTranslate2 against our own search, in folders of its own and in others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cktk import hub
from cktk.architectures.loading import load_model, load_tokenizer
from cktk.errors import CheckpointError, ConfigError
from cktk.export.ctranslate2_format import is_ctranslate2, token_table, write_ctranslate2
from cktk.export.optional import load
from cktk.generation.translator import Translation
from tests.unit.export.folders import LINES, STUDENTS, student
from tests.unit.generation.models import tiny
from tests.unit.generation.students import bart_tokenizer

pytest.importorskip("ctranslate2")


def outputs(folder: Path, backend: str, prefixes: list[str] | None = None, **options: Any) -> list[list[Translation]]:
    settings = {"beam": 4, "max_len_b": 24, "early_stopping": "true", **options}
    return hub.student(folder, device="cpu", backend=backend, **settings).translate_nbest(LINES, prefixes)


def assert_equal(found: list[list[Translation]], expected: list[list[Translation]]) -> None:
    """Hypotheses and scores; those whose scores are within 1e-5 of one another may change places."""
    assert len(found) == len(expected)
    for ours, theirs in zip(expected, found, strict=True):
        assert [one.score for one in theirs] == pytest.approx([one.score for one in ours], abs=1e-4)
        for one, other in zip(ours, theirs, strict=True):
            assert one.tokens == other.tokens or one.score == pytest.approx(other.score, abs=1e-5)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("students")
    return {kind: student(root / kind, kind) for kind in STUDENTS}


@pytest.mark.parametrize("kind", STUDENTS)
def test_equals_our_search(kind: str, folders: dict[str, Path]) -> None:
    expected = outputs(folders[kind], "cktk", nbest=3)
    assert len({best[0].text for best in expected}) > 4
    assert_equal(outputs(folders[kind], "ctranslate2", nbest=3), expected)


@pytest.mark.parametrize("kind", ["bart", "mbart50", "t5"])
@pytest.mark.parametrize(
    "options",
    [
        {"beam": 1},
        {"lenpen": 0.4},
        {"max_len_a": 1.0, "max_len_b": 2},
        {"beam": 1, "min_len": 6, "no_repeat_ngram_size": 2},
        {"max_tokens": 9},
        {"batch_size": 2, "source_prompt": "p "},
    ],
    ids=str,
)
def test_options_mean_the_same(kind: str, options: dict[str, Any], folders: dict[str, Path]) -> None:
    found, expected = (outputs(folders[kind], backend, **options) for backend in ("ctranslate2", "cktk"))
    if "min_len" in options:  # probability that is forbidden goes to the others, which changes no greedy choice
        assert [best[0].tokens for best in found] == [best[0].tokens for best in expected]
        return
    assert_equal(found, expected)


@pytest.mark.parametrize("kind", ["bart", "mbart25", "mbart50", "flan"])
def test_prefixes(kind: str, folders: dict[str, Path]) -> None:
    prefixes = ["", "c d", "a", "", "q r s", "", "t", "b"]
    expected = outputs(folders[kind], "cktk", prefixes, beam=1)
    assert expected[1][0].text.startswith("c d")
    assert_equal(outputs(folders[kind], "ctranslate2", prefixes, beam=1), expected)


def test_context_of_sentences_before(folders: dict[str, Path]) -> None:
    options = {"beam": 1, "context_size": 1, "context_target": "given", "context_separator": "▁s"}
    assert_equal(outputs(folders["bart"], "ctranslate2", **options), outputs(folders["bart"], "cktk", **options))


def test_constraints_hold(folders: dict[str, Path]) -> None:
    for best, *_ in outputs(folders["bart"], "ctranslate2", no_repeat_ngram_size=1):
        words = best.text.split()
        assert len(words) == len(set(words))
    plain, penalised = (
        sum(len(best.text.split()) - len(set(best.text.split())) for best, *_ in found)
        for found in (
            outputs(folders["bart"], "ctranslate2"),
            outputs(folders["bart"], "ctranslate2", repetition_penalty=3.0),
        )
    )
    assert penalised < plain


def test_a_forced_end_is_added(tmp_path: Path) -> None:
    folder = student(tmp_path / "s", "bart")
    model = load_model(folder)
    model.generation_config.forced_eos_token_id = 2
    model.save_pretrained(folder)
    found, expected = (outputs(folder, backend, beam=1, max_len_b=4) for backend in ("ctranslate2", "cktk"))
    assert [best[0].tokens for best in found] == [best[0].tokens for best in expected]
    assert sum(len(best[0].tokens) == 5 for best in expected) > 2


def test_sampling(folders: dict[str, Path]) -> None:
    options = {"beam": 1, "sampling": True, "nbest": 3, "sampling_topk": 8, "seed": 5, "early_stopping": "false"}
    first, again = (outputs(folders["bart"], "ctranslate2", **options) for _ in range(2))
    assert first == again
    assert [len(found) for found in first] == [1 if line == "" else 3 for line in LINES]
    assert first != outputs(folders["bart"], "ctranslate2", **{**options, "seed": 6})


@pytest.mark.parametrize("kind", ["bart", "mbart25", "mt5"])
@pytest.mark.parametrize("quantization", ["float32", "int8"])
def test_a_folder_of_its_own(kind: str, quantization: str, folders: dict[str, Path], tmp_path: Path) -> None:
    write_ctranslate2(load_model(folders[kind]), load_tokenizer(folders[kind]), tmp_path, quantization)
    assert is_ctranslate2(tmp_path)
    assert not is_ctranslate2(folders[kind])
    found = outputs(tmp_path, "ctranslate2")
    assert [best == [Translation("", 0.0)] for best in found] == [line == "" for line in LINES]
    if quantization == "float32":
        assert_equal(found, outputs(folders[kind], "cktk"))
    parameters = hub.student(tmp_path, backend="ctranslate2", device="cpu").model.num_parameters()
    assert parameters == load_model(folders[kind]).num_parameters()
    with pytest.raises(CheckpointError, match="add --backend ctranslate2"):
        outputs(tmp_path, "cktk")


def test_sides_with_heads_of_their_own(tmp_path: Path) -> None:
    tokenizer = bart_tokenizer()
    model = tiny("bart", 3, vocab_size=len(tokenizer), decoder_attention_heads=4)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert_equal(outputs(tmp_path, "ctranslate2", max_len_b=60), outputs(tmp_path, "cktk", max_len_b=60))


def test_tokens_match_by_id(folders: dict[str, Path]) -> None:
    tokenizer = load_tokenizer(folders["bart"])
    table = token_table(tokenizer, len(tokenizer) + 3)
    assert table[: len(tokenizer)] == tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    assert len(set(table)) == len(tokenizer) + 3
    assert token_table(tokenizer, 5) == table[:5]


def test_refusals(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for options in ({"diverse_beam_groups": 2}, {"early_stopping": "never"}):
        with pytest.raises(ConfigError, match=r"--backend ctranslate2 has no --"):
            outputs(folders["bart"], "ctranslate2", **options)
    model = load_model(folders["bart"])
    model.config.activation_function = "mish"
    with pytest.raises(ConfigError, match="no activation 'mish'"):
        write_ctranslate2(model, load_tokenizer(folders["bart"]), tmp_path)
    write_ctranslate2(load_model(folders["bart"]), load_tokenizer(folders["bart"]), tmp_path)
    weights = tmp_path / "model.bin"
    weights.write_bytes(weights.read_bytes()[:500])
    with pytest.raises(CheckpointError, match="CTranslate2 cannot open this folder"):
        outputs(tmp_path, "ctranslate2")
    monkeypatch.setitem(__import__("sys").modules, "ctranslate2", None)
    with pytest.raises(ConfigError, match=r"pip install 'cktk\[ctranslate2\]'"):
        load("ctranslate2")
