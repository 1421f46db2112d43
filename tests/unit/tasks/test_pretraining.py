"""Samples, templates, mixtures and refusals of the pretraining task, on data folders made here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import MBart50Tokenizer, PreTrainedTokenizerFast

from cktk.config.options import checked
from cktk.data.batch_config import BatchingConfig
from cktk.data.iterators import PlannedBatches
from cktk.data.mixtures.corpora import Corpora
from cktk.data.shards import DataFolder, write_manifest, write_shard
from cktk.errors import ConfigError, DataError
from cktk.protocols import IGNORED, Batch
from cktk.tasks.base import ChecksModels, FixedRows, SeveralCorpora
from cktk.tasks.pretraining import PretrainingTask
from cktk.tasks.pretraining_config import PretrainingConfig
from tests.unit.data.folders import content

BOS, PAD, EOS, UNK, MASK = 0, 1, 2, 3, 4
WORDS = {f"w{number}": number for number in range(8, 60)}
NAMES = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
BATCHING, BATCHING_30 = BatchingConfig(batch_size=4), BatchingConfig(batch_size=4, samples_per_epoch=30)


def save_tokenizer(folder: Path, *, mask: bool = True, sentinels: int = 0) -> None:
    specials = {"<s>": BOS, "<pad>": PAD, "</s>": EOS, "<unk>": UNK, "<mask>": MASK}
    extra = {f"<extra_id_{number}>": 70 - number for number in range(sentinels)}
    backend = Tokenizer(models.WordLevel({**specials, "w.": 7, **WORDS, **extra}, "<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    more = {"mask_token": "<mask>"} if mask else {}
    PreTrainedTokenizerFast(tokenizer_object=backend, **NAMES, **more).save_pretrained(folder / "tokenizer")


def make(folder: Path, lang: str, rows: int, seed: int, template: dict[str, list[int]], **tokenizer: Any) -> Path:
    """train in two shards and valid with 5 rows, of 1 to 20 words."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    splits: dict[str, list[Any]] = {}
    for split, sizes in (("train", [rows // 3, rows - rows // 3]), ("valid", [5])):
        shards = [[rng.integers(7, 60, rng.integers(1, 21)) for _ in range(size)] for size in sizes]
        splits[split] = [write_shard(folder, f"{split}-{n:05d}", {"text": s}, 80) for n, s in enumerate(shards)]
    around = {lang: template}
    described = {"columns": ["text"], "languages": {"text": lang}, "task": "pretraining"}
    write_manifest(folder, content(splits, 80, templates={"source": around, "target": around}, **described))
    save_tokenizer(folder, **tokenizer)
    return folder


PLAIN = {"prefix": [BOS], "suffix": [EOS]}


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("corpora")
    return {
        "en": make(folder / "en", "en_XX", 30, 1, {"prefix": [], "suffix": [EOS, 61]}),
        "ro": make(folder / "ro", "ro_RO", 12, 2, {"prefix": [], "suffix": [EOS, 62]}),
        "de": make(folder / "de", "de_DE", 7, 3, {"prefix": [], "suffix": [EOS, 63]}),
        "plain": make(folder / "plain", "en", 20, 4, PLAIN),
        "no mask": make(folder / "nomask", "en", 20, 4, PLAIN, mask=False),
        "t5": make(folder / "t5", "en", 20, 4, {"prefix": [], "suffix": [EOS]}, mask=False, sentinels=9),
    }


def task_of(
    *paths: Path, decoder_start: int | None = None, max_positions: int | None = 64, **options: Any
) -> PretrainingTask:
    config = PretrainingConfig(**options)
    data = Corpora.open(paths)
    return PretrainingTask(config, data, pad=PAD, decoder_start=decoder_start, max_positions=max_positions)


def play(source: PlannedBatches, updates: int) -> list[Any]:
    """Everything of some batches, as plain lists."""
    seen: list[Any] = []
    for _ in range(updates):
        found = source.next_update(1)
        seen.append(None if found is None else [[t.tolist() for t in (*b.inputs.values(), b.labels)] for b in found])
    return seen


def rows_of(source: PlannedBatches) -> list[tuple[list[int], list[int], list[int]]]:
    """Source, labels and decoder input of each sample of an epoch, without padding."""
    found = []
    while batches := source.next_update(1):
        batch = batches[0]
        for at in range(len(batch.ids)):
            attended, scored = batch.rows("encoder")[at], batch.rows("decoder")[at]
            decoder = batch.inputs.get("decoder_input_ids", batch.labels)[at][scored].tolist()
            found.append((batch.inputs["input_ids"][at][attended].tolist(), batch.labels[at][scored].tolist(), decoder))
    return found


def texts_of(path: Path, split: str = "train") -> list[list[int]]:
    rows = DataFolder(path).split(split)
    return [rows[index]["text"].tolist() for index in range(len(rows))]


def test_each_text_is_its_own_target_with_its_language(paths):
    task = task_of(paths["en"], paths["ro"], paths["de"], tokens_per_sample=15)
    assert isinstance(task, SeveralCorpora) and isinstance(PretrainingTask, ChecksModels)
    expected = []
    for name, code in (("en", 61), ("ro", 62), ("de", 63)):
        expected += [[*text[:13], EOS, code] for text in texts_of(paths[name])]
    found = rows_of(task.iterator("train", BATCHING, True, seed=5))
    assert sorted(source for source, _, _ in found) == sorted(expected)
    for source, labels, decoder in found:
        assert labels == source and decoder == [source[-1], *source[:-1]]


def test_blocks_hold_texts_with_end_tokens_between(paths):
    task = task_of(paths["en"], tokens_per_sample=10, sample_break_mode="none")
    found = [source for source, _, _ in rows_of(task.corpus_pass("en", "valid", BATCHING, 0, 1))]
    assert sorted(map(len, found))[1:] == [10] * (len(found) - 1)
    stream = [token for text in texts_of(paths["en"], "valid") for token in (*text, EOS)]
    assert sorted(found) == sorted([*stream[at : at + 8], EOS, 61] for at in range(0, len(stream), 8))


def test_bart_starts_with_the_model_s_token(paths):
    for source, labels, decoder in rows_of(
        task_of(paths["plain"], decoder_start=EOS).iterator("train", BATCHING, True, 1)
    ):
        assert source == labels and source[0] == BOS and decoder == [EOS, *labels[:-1]]


def test_weights_are_kept(paths):
    weights = {"mixture": "weights", "mixture_weights": ("en=0.5", "ro=0.5", "de=0")}
    task = task_of(paths["en"], paths["ro"], paths["de"], **weights)
    batching = BatchingConfig(batch_size=4, samples_per_epoch=48)
    codes = [source[-1] for source, _, _ in rows_of(task.iterator("train", batching, True, seed=5))]
    assert codes.count(61) == codes.count(62) == 24


def test_infilling_hides_and_asks_for_the_whole(paths):
    task = task_of(paths["plain"], objective="denoise", decoder_start=EOS)
    for source, labels, _ in rows_of(task.iterator("train", BATCHING, True, seed=5)):
        text = labels[1:-1]
        assert labels[0] == source[0] == BOS and labels[-1] == source[-1] == EOS
        kept = [token for token in source[1:-1] if token != MASK]
        assert len(kept) == len(text) - -(-len(text) * 3 // 10) and len(source) <= len(labels)


def test_spans_go_to_the_target_of_t5(paths):
    task = task_of(paths["t5"], objective="denoise", decoder_start=PAD, max_positions=None, mask_ratio=0.4)
    for source, labels, decoder in rows_of(task.iterator("train", BATCHING, True, seed=5)):
        assert source[-1] == labels[-1] == EOS and decoder == [PAD, *labels[:-1]]
        if len(labels) > 2:
            assert labels[0] == 70 and 70 in source and labels[-2] not in source


def test_planned_lengths_are_never_exceeded(paths):
    for name, objective in (("t5", "denoise"), ("plain", "denoise"), ("plain", "masked"), ("plain", "reconstruct")):
        task = task_of(paths[name], objective=objective, decoder_start=EOS, max_positions=None)
        source = task.iterator("train", BatchingConfig(max_tokens=40), True, seed=2)
        while batches := source.next_update(1):
            shapes = [tensor.shape for tensor in batches[0].inputs.values()]
            assert all(shape.numel() <= 40 or shape[0] == 1 for shape in shapes)


def test_noise_is_new_in_each_pass_and_the_same_in_each_validation(paths):
    task = task_of(paths["plain"], objective="denoise", decoder_start=EOS)
    source = task.iterator("train", BATCHING, True, seed=5)
    first, second = (sorted((labels, shown) for shown, labels, _ in rows_of(source)) for _ in range(2))
    assert [labels for labels, _ in first] == [labels for labels, _ in second] and first != second
    again = sorted((labels, shown) for shown, labels, _ in rows_of(task.iterator("train", BATCHING, True, seed=5)))
    assert again == first
    passes = [rows_of(task.iterator("valid", BATCHING, False, seed)) for seed in (1, 2)]
    assert passes[0] == passes[1] and any(MASK in shown for shown, _, _ in passes[0])


def test_an_encoder_sees_the_text_and_is_asked_for_all_of_it(paths):
    task = task_of(paths["plain"], objective="unmasked")
    assert task.target_template is None and task.validation_sums == {}
    batch = task.iterator("train", BATCHING, True, 1).next_update(1)[0]
    assert set(batch.inputs) == {"input_ids", "attention_mask"}
    assert torch.equal(batch.rows("encoder"), batch.rows("decoder"))
    assert torch.equal(batch.labels[batch.rows("decoder")], batch.inputs["input_ids"][batch.rows("encoder")])
    assert (batch.labels[~batch.rows("encoder")] == IGNORED).all()


@pytest.mark.parametrize("scored", ["all", "masked"])
def test_masking_scores_what_is_wanted(paths, scored):
    task = task_of(paths["plain"], objective="masked", scored_positions=scored, mask_ratio=0.4)
    batch = next_of(task)
    ids, labels = batch.inputs["input_ids"], batch.labels
    rows, attended = batch.rows("decoder"), batch.rows("encoder")
    assert (ids == MASK).any() and (ids[attended & ~rows] != MASK).all()
    if scored == "all":
        assert torch.equal(rows, attended) and MASK not in labels
    else:
        assert 0 < rows.sum() < attended.sum() and not rows[:, 0].any()
        assert set(labels[rows].tolist()) <= set(range(7, 60))


def next_of(task: PretrainingTask) -> Batch:
    found = task.iterator("train", BATCHING, True, 1).next_update(1)
    assert found
    return found[0]


STREAMED = ["w10 w11 w12", "w20", "", "w30 w31", "w40 w41 w42 w43"]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("objective", ["reconstruct", "denoise"])
def test_streams_and_folders_go_on_exactly(paths, tmp_path, workers, objective):
    (tmp_path / "ro.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in STREAMED * 7))
    options = {
        "stream": (f"ro={tmp_path}/*.jsonl",), "mixture": "equal", "objective": objective, "tokens_per_sample": 8,
    }  # fmt: skip
    task = task_of(paths["en"], paths["ro"], **options)
    batching = BatchingConfig(batch_size=4, samples_per_epoch=30, num_workers=workers)
    whole = play(task.iterator("train", batching, True, seed=5), 18)
    assert None in whole
    for point in (5, 11):
        first = task.iterator("train", batching, True, seed=5)
        before = play(first, point)
        again = task_of(paths["en"], paths["ro"], **options).iterator(
            "train", BatchingConfig(batch_size=4, samples_per_epoch=30), True, 5
        )
        again.load_state_dict(json.loads(json.dumps(first.state_dict())))
        assert before + play(again, 18 - point) == whole
    if objective == "reconstruct":
        texts = {
            tuple(source[:-2])
            for source, _, _ in rows_of(task.iterator("train", BATCHING_30, True, 5))
            if source[-1] == 62
        }
        assert texts == {(10, 11, 12), (20,), (30, 31), (40, 41, 42, 43)}


def test_a_stream_of_its_own_takes_the_language_that_it_is_named_for(tmp_path):
    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), ("▁a", -3.0), ("b", -5.0)]
    tokenizer = MBart50Tokenizer(vocab=pieces)
    english, french = tokenizer.convert_tokens_to_ids(["en_XX", "fr_XX"])
    folder = tmp_path / "en"
    folder.mkdir()
    shard = write_shard(folder, "valid-00000", {"text": [np.array([5, 6])]}, 80)
    around = {"en_XX": {"prefix": [english], "suffix": [2]}}
    described = {"columns": ["text"], "languages": {"text": "en_XX"}, "task": "pretraining"}
    write_manifest(folder, content({"valid": [shard]}, 80, templates={"source": around, "target": around}, **described))
    tokenizer.save_pretrained(folder / "tokenizer")
    (tmp_path / "fr.txt").write_text("a b\nb a\na a\n")
    task = task_of(folder, stream=(f"fr_XX={tmp_path}/fr.txt",))
    for source, labels, decoder in rows_of(task.iterator("train", BATCHING_30, True, 1)):
        assert source[0] == labels[0] == french and source[-1] == 2 and decoder[0] == 2
    assert task.corpora("valid") == ["en"] and "streamed: fr_XX" in task.describe()[-1]
    with pytest.raises(DataError, match="--stream: MBart50Tokenizer has no language 'fr'; did you mean fr_XX"):
        task_of(folder, stream=(f"fr={tmp_path}/fr.txt",))


def test_streams_share_a_tokenizer_where_languages_make_no_difference(paths, tmp_path):
    (tmp_path / "text.txt").write_text("w10 w11\n" * 9)
    task = task_of(paths["en"], stream=tuple(f"{name}={tmp_path}/text.txt" for name in ("en", "ro", "de")))
    encoders = task._encoders()
    assert list(encoders) == ["en", "ro", "de"] and len({id(encoder) for encoder in encoders.values()}) == 1


def test_a_teacher_cache_takes_what_never_changes(paths):
    task = task_of(paths["plain"], decoder_start=EOS)
    assert isinstance(task, FixedRows)
    assert task.row_settings()["tokens_per_sample"] == 64
    tokens = sum(len(text) + 2 for text in texts_of(paths["plain"]))
    assert task.positions("train") == {"encoder": tokens, "decoder": tokens}
    shards = [[row for batch in task.shard_batches("train", shard, BATCHING) for row in batch.ids] for shard in (0, 1)]
    assert [sorted(rows) for rows in shards] == [list(range(6)), list(range(6, 20))]
    source = task.iterator("train", BATCHING, True, 3)
    for _ in range(2):  # rows keep their numbers in later passes
        seen = []
        while found := source.next_update(1):
            seen += found[0].ids
        assert sorted(seen) == list(range(20))


@pytest.mark.parametrize(
    ("folders", "options", "message"),
    [
        (["plain"], {"objective": "denoise"}, "--objective denoise hides other tokens in each pass"),
        (["plain"], {"sample_break_mode": "none"}, "--sample-break-mode none makes samples that are no rows"),
        (["plain"], {"stream": ("x=README.txt",)}, "--stream reads text that nobody has numbered: a teacher cache"),
        (["en", "ro"], {}, "a teacher cache takes one data folder, not 2"),
    ],
)
def test_a_teacher_cache_of_anything_else_is_refused(paths, folders, options, message):
    with pytest.raises(ConfigError, match=message):
        task_of(*(paths[name] for name in folders), decoder_start=EOS, **options).row_settings()


@pytest.mark.parametrize(
    ("folder", "options", "message"),
    [
        ("plain", {"tokens_per_sample": 65}, "--tokens-per-sample 65: the models take 64 positions"),
        ("plain", {"tokens_per_sample": 2}, "--tokens-per-sample 2 leaves no room for text beside 2 special"),
        ("no mask", {"objective": "masked"}, "--objective masked: the tokenizer has no mask token; give .* unmasked"),
        (
            "no mask",
            {"objective": "denoise"},
            "neither a mask token nor T5's sentinels .* give --objective reconstruct",
        ),
        ("t5", {"objective": "denoise", "permute_sentences": True}, "T5 has no mask token for it; leave it out"),
        ("plain", {"stream": ("a=x", "a=y")}, "--stream a=y: a is given twice"),
        ("plain", {"mixture": "weights", "mixture_weights": ("fr=1",)}, "no corpus 'fr'; known: plain"),
        ("plain", {"mask_ratio": 0.2}, "--mask-ratio goes with --objective denoise or masked"),
        ("plain", {"mean_span": 3.0}, "--mean-span goes with --objective denoise; leave it out"),
        ("plain", {"scored_positions": "masked"}, "--scored-positions goes with --objective masked"),
    ],
)
def test_bad_settings_are_one_clear_line(paths, folder, options, message):
    with pytest.raises(ConfigError, match=message):
        task_of(paths[folder], **options).describe()


@pytest.mark.parametrize("span", [0.5, 101])
def test_a_mean_span_out_of_bounds_is_refused(span):
    with pytest.raises(ConfigError, match="mean_span=.* is out of range: must be at"):
        checked(PretrainingConfig, objective="denoise", mean_span=span)


def test_samples_are_512_tokens_or_what_models_take(paths):
    lines = [task_of(paths["plain"], max_positions=limit).describe()[0] for limit in (None, 64, 1024)]
    assert [line.split()[-2] for line in lines] == ["512", "64", "512"]
    (line,) = task_of(paths["plain"], tokens_per_sample=10).describe()[1:]
    cut = sum(len(text) > 8 for text in texts_of(paths["plain"]))
    assert line == f"train: plain 1, 20 texts, {cut} are cut"


def test_folders_without_text_are_refused(paths, tmp_path):
    with pytest.raises(DataError, match="no column source of texts"):
        task_of(paths["plain"], text_column="source").describe()
    with pytest.raises(DataError, match="no such split"):
        task_of(paths["plain"]).iterator("test", BATCHING, False, 1)


BOTH, ONE = ("encoder", "decoder"), ("encoder",)


@pytest.mark.parametrize(
    ("options", "sides", "scores", "message"),
    [
        ({"objective": "unmasked"}, BOTH, False, "the student is an encoder-decoder; give reconstruct or denoise"),
        ({"objective": "denoise"}, ONE, False, "the student is an encoder; give unmasked or masked"),
        ({"objective": "unmasked"}, ONE, True, "give --ce-weight 0 with a criterion that has a teacher$"),
        ({"objective": "masked"}, ONE, True, "give --ce-weight 0 .*, or --scored-positions masked"),
        ({"objective": "masked", "scored_positions": "masked"}, ONE, True, None),
        ({"objective": "unmasked"}, ONE, False, None),
        ({}, BOTH, True, None),
    ],
)
def test_objectives_are_for_their_models(options, sides, scores, message):
    config = PretrainingConfig(**options)
    if message is None:
        PretrainingTask.check_models(config, sides, scores)
        return
    with pytest.raises(ConfigError, match=message):
        PretrainingTask.check_models(config, sides, scores)
