"""Translation of several corpora, in both directions, with mBART's language codes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

from cktk.data.batch_config import BatchingConfig
from cktk.data.mixtures.corpora import Corpora
from cktk.data.shards import DataFolder
from cktk.distributed.world import World
from cktk.errors import ConfigError, DataError
from cktk.evaluation.bleu import score_translations
from cktk.hub import student
from cktk.tasks.configs import TranslationConfig
from cktk.tasks.scoring import CorporaScorer
from cktk.tasks.translation import TranslationTask
from cktk_cli.preprocess import main as preprocess
from tests.unit.data.folders import make
from tests.unit.generation.students import data_bin, mbart_tokenizer, save_student

PAIRS = [("a b c", "c b a"), ("d", "e f g h"), ("t s r q p", "a"), ("k", "l m")]


def mbart_data(folder: Path, languages: int) -> DataFolder:
    """Letters in English and Romanian, preprocessed with mBART's tokenizer for 25 or 50 languages."""
    mbart_tokenizer(languages).save_pretrained(folder / "tokenizer")
    for at, lang in enumerate(("en", "ro")):
        (folder / f"train.{lang}").write_text("".join(pair[at] + "\n" for pair in PAIRS))
    flags = ["--source-lang", "en_XX", "--target-lang", "ro_RO", "--tokenizer", str(folder / "tokenizer")]
    assert preprocess(["--train-prefix", str(folder / "train"), *flags, "--dest-dir", str(folder / "bin")]) == 0
    return DataFolder(folder / "bin")


@pytest.mark.parametrize("languages", [25, 50])
def test_targets_bear_their_own_language_in_both_directions(tmp_path: Path, languages: int) -> None:
    data = mbart_data(tmp_path, languages)
    task = TranslationTask(TranslationConfig(bidirectional=True), data, pad=1, decoder_start=None)
    assert task.corpora("train") == ["en_XX-ro_RO", "ro_RO-en_XX"]
    seen, batches = 0, task.iterator("train", BatchingConfig(batch_size=3), True, 1)
    while batch := batches.next_update(1):
        for at, row in enumerate(batch[0].ids):
            flipped, number = divmod(row, len(PAIRS))
            source, target = PAIRS[number][::-1] if flipped else PAIRS[number]
            tokenizer = mbart_tokenizer(languages)
            tokenizer.src_lang, tokenizer.tgt_lang = ("ro_RO", "en_XX") if flipped else ("en_XX", "ro_RO")
            whole = tokenizer(source, text_target=target)
            assert batch[0].inputs["input_ids"][at][batch[0].rows("encoder")[at]].tolist() == whole["input_ids"]
            assert batch[0].labels[at][batch[0].rows("decoder")[at]].tolist() == whole["labels"]
            code = tokenizer.convert_tokens_to_ids(tokenizer.tgt_lang)
            assert code in whole["labels"] and code not in whole["input_ids"]
            assert batch[0].inputs["decoder_input_ids"][at][0] == whole["labels"][-1]
            seen += 1
    assert seen == 2 * len(PAIRS)
    for name, code in (("en_XX-ro_RO", "ro_RO"), ("ro_RO-en_XX", "en_XX")):
        assert tokenizer.convert_tokens_to_ids(code) in task.start_of(task._corpora[name])


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Corpora:
    """Two folders, of 60 and of 20 rows."""
    found = {}
    for name, rows in (("news", 60), ("talks", 20)):
        folder = tmp_path_factory.mktemp("corpora") / name
        folder.mkdir()
        found[name] = make(folder, [[[4 + row % 90] * (1 + row % 5) for row in range(rows)]])
    return Corpora(found)


def task_of(corpora: Corpora, **options: object) -> TranslationTask:
    return TranslationTask(TranslationConfig(**options), corpora, pad=1, decoder_start=2)  # type: ignore[arg-type]


def taken(task: TranslationTask, samples: int) -> Counter[str]:
    """How many samples of an epoch come from which corpus."""
    batching = BatchingConfig(batch_size=4, samples_per_epoch=samples)
    batches = task.iterator("train", batching, True, 1)
    bounds = {"news": range(60), "talks": range(60, 80)}
    if task._config.bidirectional:
        bounds = {"news.en-fr": range(60), "news.fr-en": range(60, 120)}
        bounds |= {"talks.en-fr": range(120, 140), "talks.fr-en": range(140, 160)}
    assert list(bounds) == task.corpora("train")
    counts: Counter[str] = Counter()
    while found := batches.next_update(1):
        counts.update(next(name for name, rows in bounds.items() if row in rows) for row in found[0].ids)
    return counts


def test_corpora_and_directions_get_their_shares(corpora: Corpora) -> None:
    assert taken(task_of(corpora), 80) == {"news": 60, "talks": 20}
    assert taken(task_of(corpora, mixture="equal"), 80) == {"news": 40, "talks": 40}
    weighted = {"mixture": "weights", "mixture_weights": ("news=0.1", "talks=0.9")}
    assert taken(task_of(corpora, **weighted), 80) == {"news": 8, "talks": 72}
    both = taken(task_of(corpora, bidirectional=True, **weighted), 80)
    assert both == {"news.en-fr": 4, "news.fr-en": 4, "talks.en-fr": 36, "talks.fr-en": 36}


def test_an_epoch_of_both_directions_is_every_row_twice(corpora: Corpora) -> None:
    task = TranslationTask(TranslationConfig(bidirectional=True), corpora.first, pad=1, decoder_start=2)
    batches = task.iterator("train", BatchingConfig(batch_size=7), True, 1)
    seen: list[int] = []
    while found := batches.next_update(1):
        seen += found[0].ids
    assert sorted(seen) == list(range(120)) and seen != sorted(seen)


def test_each_corpus_is_validated_whole(corpora: Corpora) -> None:
    task = task_of(corpora, bidirectional=True)
    for name in task.corpora("train"):
        found, rows = task.corpus_pass(name, "train", BatchingConfig(batch_size=50), 0, 1), []
        while batches := found.next_update(1):
            rows += batches[0].ids
            source = task._corpora[name].rows("train").pair(batches[0].ids[0]).source.tolist()
            assert batches[0].inputs["input_ids"][0].tolist()[: len(source)] == source
        assert sorted(rows) == list(range(60 if "news" in name else 20))


def test_a_split_that_one_corpus_has_alone_is_validated_on(tmp_path: Path, corpora: Corpora) -> None:
    tiny = data_bin(tmp_path / "tiny", save_student(tmp_path / "small"), PAIRS)
    both = {"news": corpora.first, "tiny": tiny}
    for folder in both.values():
        folder.fingerprint = corpora.first.fingerprint
    task = task_of(Corpora(both))
    assert task.corpora("test") == ["tiny"]
    found = task.iterator("test", BatchingConfig(batch_size=9), False, 1).next_update(1)
    assert found is not None and sorted(found[0].ids) == list(range(len(PAIRS)))


@pytest.mark.parametrize("both", [False, True])
def test_a_corpus_without_a_train_split_is_only_validated_on(tmp_path: Path, corpora: Corpora, both: bool) -> None:
    """As the first folder, too; weights are of the folders that are trained on."""
    tiny = data_bin(tmp_path / "tiny", save_student(tmp_path / "small"), PAIRS)
    folders = {"tiny": tiny, **(corpora.folders if both else {"news": corpora.first})}
    tiny.fingerprint = corpora.first.fingerprint
    weights = {"mixture": "weights", "mixture_weights": ("news=0.25", "talks=0.75")} if both else {}
    task = task_of(Corpora(folders), **weights)
    assert task.corpora("train") == (["news", "talks"] if both else ["news"])
    assert (taken(task, 80) if both else taken_of_one(task)) == ({"news": 20, "talks": 60} if both else {"news": 60})
    lines = task.describe()
    assert lines[0] == "tiny: has no train split and is only validated on" and len(lines) == len(folders)
    if both:
        with pytest.raises(ConfigError, match="no corpus 'tiny'"):
            task_of(Corpora(folders), mixture="weights", mixture_weights=("news=0.5", "talks=0.4", "tiny=0.1"))


def taken_of_one(task: TranslationTask) -> Counter[str]:
    batches = task.iterator("train", BatchingConfig(batch_size=4), True, 1)
    ids: list[int] = []
    while found := batches.next_update(1):
        ids += found[0].ids
    assert sorted(ids) == list(range(60))
    return Counter(news=len(ids))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mixture_weights": ("news=0.1", "books=0.9")}, "no corpus 'books'"),
        ({"mixture_weights": ("news=0.1", "talks=0.8")}, "--mixture-weights sum to 0.9, not to 1"),
        ({"mixture_weights": ("news=1",)}, "none for talks"),
    ],
)
def test_weights_that_do_not_fit_are_refused_at_the_start(corpora: Corpora, options: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        task_of(corpora, mixture="weights", **options)


def test_what_is_trained_on_is_said(corpora: Corpora) -> None:
    lines = task_of(corpora, bidirectional=True, mixture="equal").describe()
    assert lines[0].startswith("news.en-fr, 0.25 of the mixture: train: 60 pairs en-fr, 0 sources")
    assert lines[3].startswith("talks.fr-en, 0.25 of the mixture: train: 20 pairs fr-en")


def test_prompts_name_the_languages_of_each_direction(tmp_path: Path) -> None:
    data = data_bin(tmp_path / "bin", save_student(tmp_path / "small"), PAIRS)
    config = TranslationConfig(bidirectional=True, source_prompt="{source} a {target} b ")
    task = TranslationTask(config, data, pad=1, decoder_start=2)
    tokenizer = student(tmp_path / "small", device="cpu").tokenizer
    for name, prompt in (("en-fr", "English a French b"), ("fr-en", "French a English b")):
        source = task._corpora[name].rows("test").source_ids(0).tolist()
        text = PAIRS[0][name == "fr-en"]
        assert source == tokenizer(f"{prompt} {text}")["input_ids"]


def test_scores_of_each_direction_and_their_mean(tmp_path: Path) -> None:
    folder = save_student(tmp_path / "small")
    opened = student(folder, device="cpu", beam=2, max_len_a=0.0, max_len_b=8)
    pairs = [*PAIRS, ("a b c", opened.translate(["a b c"])[0])]
    data = data_bin(tmp_path / "bin", folder, pairs)
    search = {"eval_bleu": True, "eval_beam": 2, "eval_max_len_a": 0.0, "eval_max_len_b": 8}
    task = TranslationTask(TranslationConfig(bidirectional=True, **search), data, pad=1, decoder_start=2)
    world = World(0, 1, torch.device("cpu"))
    scorer = task.scorer(opened.model, opened.tokenizer, "test", world, None)
    assert isinstance(scorer, CorporaScorer)
    found = scorer()
    chrf = []
    for name, side in (("en-fr", 0), ("fr-en", 1)):
        texts = [pair[side] for pair in pairs]
        expected = score_translations(opened.translate(texts), [pair[1 - side] for pair in pairs])
        assert (found[f"bleu/{name}"], found[f"chrf/{name}"]) == (expected.bleu, expected.chrf)
        chrf.append(expected.chrf)
    assert found["chrf"] == pytest.approx(sum(chrf) / 2) and chrf[0] != chrf[1]


def test_a_language_that_the_tokenizer_does_not_know_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = mbart_data(tmp_path, 25)
    with pytest.raises(ConfigError, match="--target-lang xx_XX: .* holds en_XX and ro_RO"):
        TranslationTask(TranslationConfig(target_lang="xx_XX"), data, pad=1, decoder_start=None)
    flags = ["--source-lang", "en_XX", "--target-lang", "ro_XX", "--tokenizer", str(tmp_path / "tokenizer")]
    (tmp_path / "train.ro_XX").write_text("a\n" * len(PAIRS))
    assert preprocess(["--train-prefix", str(tmp_path / "train"), *flags, "--dest-dir", str(tmp_path / "other")]) != 0
    assert "has no language 'ro_XX'" in capsys.readouterr().err


def test_data_of_another_task_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    data = make(tmp_path / "text", [[[5]]])
    data.languages = {}
    with pytest.raises(DataError, match="translation needs pairs in two languages: preprocess with --task translation"):
        task_of(Corpora.of(data))
