"""cktk-trim-vocab from a teacher and its data to a smaller pair that trains; bad input is one clear line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoTokenizer,
    ByT5Tokenizer,
    MBartConfig,
    MBartForConditionalGeneration,
    MBartTokenizer,
    PreTrainedTokenizerFast,
)

import cktk.hub
from cktk.architectures.loading import load_model, load_tokenizer, write_model
from cktk.data.shards import DataFolder
from cktk.data.tokenization.vocabulary_map import VocabularyMap
from cktk_cli.preprocess import main as preprocess
from cktk_cli.train import main as train
from cktk_cli.trim_vocab import main
from tests.integration import toy

FEW = ["the library of files.", "this simple game.", "a music server."]


def prepare(corpus: Path, tokenizer: Path, dest: Path, source: str = "en", target: str = "fr") -> Path:
    """The train and valid splits of ``corpus`` as a data folder."""
    languages = ["--source-lang", source, "--target-lang", target]
    prefixes = [f"--{split}-prefix={corpus / split}" for split in ("train", "valid")]
    assert preprocess([*prefixes, *languages, "--tokenizer", str(tokenizer), "--dest-dir", str(dest)]) == 0
    return dest


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text that uses a part of the toy's words."""
    folder = tmp_path_factory.mktemp("corpus")
    french = [" ".join(toy.WORDS[word.strip(".")] for word in line.split()) + "." for line in FEW]
    for split, copies in (("train", 12), ("valid", 1)):
        (folder / f"{split}.en").write_text("\n".join(FEW * copies) + "\n", encoding="utf-8")
        (folder / f"{split}.fr").write_text("\n".join(french * copies) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def few(corpus: Path, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(corpus, teacher, tmp_path_factory.mktemp("few") / "bin")


@pytest.fixture(scope="module")
def trimmed(few: Path, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders teacher, student and data, all in one vocabulary; the student is the teacher in another folder."""
    folder = tmp_path_factory.mktemp("trimmed")
    flags = ["--model", str(teacher), "--data-bin", str(few), "--dest-dir", str(folder / "teacher")]
    flags += ["--student", str(teacher), "--dest-student", str(folder / "student"), "--dest-data", str(folder / "data")]
    assert main(flags) == 0
    return folder


def files(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(folder.iterdir()):
        if path.suffix in (".bin", ".idx"):
            yield path.name, path.read_bytes()


def error_of(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    assert main(list(map(str, arguments))) != 0
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    return lines[0].removeprefix("cktk-trim-vocab: error: ")


class TestOwnTokenizer:
    def test_vocabulary_is_smaller_and_texts_split_as_before(self, trimmed: Path, teacher: Path) -> None:
        whole, small = (AutoTokenizer.from_pretrained(folder) for folder in (teacher, trimmed / "teacher"))
        vocabulary = VocabularyMap.read(trimmed / "teacher")
        assert len(small) == vocabulary.new_size < len(whole) == vocabulary.old_size
        assert small(FEW)["input_ids"] == [vocabulary.to_new(ids).tolist() for ids in whole(FEW)["input_ids"]]
        assert [small.tokenize(text) for text in FEW] == [whole.tokenize(text) for text in FEW]
        unseen = "bibliothèque <s> \U0001f44d"
        assert small.decode(small(unseen)["input_ids"], skip_special_tokens=True) == unseen

    def test_data_is_what_preprocessing_with_the_new_tokenizer_gives(
        self, trimmed: Path, corpus: Path, tmp_path: Path
    ) -> None:
        again = prepare(corpus, trimmed / "teacher", tmp_path / "again")
        assert dict(files(trimmed / "data")) == dict(files(again))
        ours, theirs = DataFolder(trimmed / "data"), DataFolder(again)
        ours.verify()
        assert (ours.fingerprint, ours.vocab_size, ours.templates) == (
            theirs.fingerprint,
            theirs.vocab_size,
            theirs.templates,
        )
        assert (ours.pad, ours.bos, ours.eos, ours.unk) == (theirs.pad, theirs.bos, theirs.eos, theirs.unk)

    def test_data_of_other_tasks_keep_labels_and_templates(self, teacher: Path, tmp_path: Path) -> None:
        rows = [f"{FEW[row % 3]}\t{FEW[row % 2]}\t{'yes' if row % 3 else 'no'}" for row in range(30)]
        (tmp_path / "t.tsv").write_text("\n".join(["a\tb\tlabel", *rows]) + "\n", encoding="utf-8")
        given = ["--task=glue", "--text-columns=a,b", f"--train-file={tmp_path}/t.tsv"]

        def prepared(tokenizer: Path, dest: Path) -> DataFolder:
            assert preprocess([*given, f"--tokenizer={tokenizer}", f"--dest-dir={dest}"]) == 0
            return DataFolder(dest)

        before = prepared(teacher, tmp_path / "bin")
        flags = ["--model", str(teacher), "--data-bin", str(before.path), "--dest-dir", str(tmp_path / "small")]
        assert main([*flags, "--dest-data", str(tmp_path / "data")]) == 0
        ours, theirs = DataFolder(tmp_path / "data"), prepared(tmp_path / "small", tmp_path / "again")
        ours.verify()
        assert dict(files(ours.path)) == dict(files(theirs.path))
        for name in ("task", "labels", "kinds", "languages", "templates", "pair_template", "vocab_size"):
            assert getattr(ours, name) == getattr(theirs, name)
        assert ours.vocab_size < before.vocab_size and ours.labels == ("no", "yes")
        assert ours.pair_template is not None and len(ours.pair_template.middle) == 2

    def test_logits_of_teacher_and_student(self, trimmed: Path, teacher: Path) -> None:
        vocabulary = VocabularyMap.read(trimmed / "student")
        whole: Any = load_model(teacher)
        new = torch.randint(4, vocabulary.new_size, (2, 7))
        old = torch.from_numpy(vocabulary.to_old(new))
        for name in ("teacher", "student"):
            small: Any = load_model(trimmed / name)
            with torch.no_grad():
                ours = small(input_ids=new, decoder_input_ids=new).logits
                theirs = whole(input_ids=old, decoder_input_ids=old).logits[..., vocabulary.kept]
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)

    def test_the_pair_trains(self, trimmed: Path, tmp_path: Path) -> None:
        flags = toy.flags(trimmed / "data", tmp_path / "run", "--teacher", str(trimmed / "teacher"), *toy.SHAPE)
        assert train([*flags, "--criterion", "cka_kd", "--max-update", "3", "--disable-validation"]) == 0
        student = load_model(tmp_path / "run")
        assert student.config.vocab_size == VocabularyMap.read(trimmed / "teacher").new_size
        assert len(cktk.hub.student(tmp_path / "run").translate(FEW)) == 3

    def test_the_whole_vocabulary_comes_back(self, trimmed: Path, teacher: Path, tmp_path: Path) -> None:
        flags = ["--model", str(teacher), "--restore", str(trimmed / "teacher"), "--dest-dir", str(tmp_path / "again")]
        assert main(flags) == 0
        for name in ("model.safetensors", "tokenizer.json"):
            assert (tmp_path / "again" / name).read_bytes() == (teacher / name).read_bytes()

    def test_half_precision_stays(self, few: Path, teacher: Path, tmp_path: Path) -> None:
        model = load_model(teacher)
        (tmp_path / "half").mkdir()
        write_model(model, load_tokenizer(teacher), tmp_path / "half", torch.float16)
        assert (
            main(["--model", str(tmp_path / "half"), "--data-bin", str(few), "--dest-dir", str(tmp_path / "cut")]) == 0
        )
        (folder,) = {path.parent for path in (tmp_path / "cut").rglob("model.safetensors")}
        assert {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()} == {torch.float16}

    def test_fewer_tokens_than_the_data_has(
        self, few: Path, teacher: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        common = ["--model", teacher, "--data-bin", few]
        line = error_of(capsys, *common, "--dest-dir", tmp_path / "t", "--size", "100")
        least = int(line.rpartition(" ")[2])
        assert line == (
            "--size 100: too small: special tokens, bytes and single characters of this data alone are " + str(least)
        )
        assert main([*map(str, common), "--dest-dir", str(tmp_path / "t"), "--size", str(least + 4)]) == 0
        assert VocabularyMap.read(tmp_path / "t").new_size == least + 4
        assert f"preprocess the text again with --tokenizer {tmp_path / 't'}" in capsys.readouterr().out
        again = DataFolder(prepare(corpus, tmp_path / "t", tmp_path / "bin"))
        assert again.vocab_size == least + 4

    @pytest.mark.parametrize("flag", ["--min-count", "--size"])
    def test_data_cannot_be_written_without_its_tokens(
        self, flag: str, few: Path, teacher: Path, trimmed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        number = 14 if flag == "--min-count" else VocabularyMap.read(trimmed / "teacher").new_size - 1
        flags = ["--model", teacher, "--data-bin", few, "--dest-dir", tmp_path / "t", "--dest-data", tmp_path / "d"]
        line = error_of(capsys, *flags, flag, number)
        assert "tokens of the data are left out by --min-count or --size; leave out --dest-data" in line
        assert list(tmp_path.iterdir()) == []


PIECES = ["▁", *"abcdefghilmnoprstuvy.éèà", *(f"▁{word}" for pair in toy.WORDS.items() for word in pair)]
SPECIALS = ["<s>", "<pad>", "</s>", "<unk>"]
CODES = ["de_DE", "en_XX", "fr_XX", "ro_RO", "ru_RU"]


@pytest.fixture(scope="module")
def mbart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An mBART whose pieces and then codes stand in the model's vocabulary, as in the published ones."""
    folder: Path = tmp_path_factory.mktemp("mbart")
    scores = [*((name, 0.0) for name in SPECIALS), *((piece, -5.0) for piece in dict.fromkeys(PIECES))]
    tokenizer = MBartTokenizer(vocab=[*scores, *((code, 0.0) for code in CODES)], src_lang="en_XX")
    english = tokenizer.convert_tokens_to_ids("en_XX")
    torch.manual_seed(3)
    config = MBartConfig(
        vocab_size=len(tokenizer), d_model=16, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=32,
        decoder_ffn_dim=32, encoder_attention_heads=2, decoder_attention_heads=2, max_position_embeddings=64,
        scale_embedding=True, decoder_start_token_id=english, init_std=0.3,
    )  # fmt: skip
    MBartForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


class TestLanguages:
    def test_only_languages_asked_for_stay(
        self, mbart: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        few = prepare(corpus, mbart, tmp_path / "bin", "en_XX", "fr_XX")
        flags = ["--model", str(mbart), "--data-bin", str(few), "--keep-languages", "ro", "--dest-dir"]
        assert main([*flags, str(tmp_path / "t"), "--dest-data", str(tmp_path / "d")]) == 0
        assert "languages: en_XX, fr_XX, ro_RO" in capsys.readouterr().out
        small = AutoTokenizer.from_pretrained(tmp_path / "t")
        model: Any = load_model(tmp_path / "t")
        assert len(small) == model.config.vocab_size
        assert model.config.decoder_start_token_id == small.convert_tokens_to_ids("en_XX")
        again = prepare(corpus, tmp_path / "t", tmp_path / "again", "en_XX", "fr_XX")
        assert dict(files(again)) == dict(files(tmp_path / "d"))
        french = small.convert_tokens_to_ids("fr_XX")
        assert DataFolder(tmp_path / "d").template("target", "fr_XX").suffix == (2, french)
        translator = cktk.hub.student(tmp_path / "t", source_lang="en_XX", target_lang="fr_XX", max_len_b=6)
        assert len(translator.translate(FEW)) == 3
        line = error_of(capsys, *flags[:4], "--keep-languages", "rm", "--dest-dir", tmp_path / "u")
        assert "--keep-languages: the data's tokenizer has no language 'rm'; known: ar_AR, cs_CZ" in line


def test_bpe(corpus: Path, tmp_path: Path) -> None:
    """A tokenizer like BART's, with merges over bytes."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([" ".join(toy.WORDS), " ".join(toy.WORDS.values())] * 5, trainer)
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    names = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **names).save_pretrained(tmp_path / "tokenizer")
    few = prepare(corpus, tmp_path / "tokenizer", tmp_path / "bin")
    # Padded to a round number, as vocabularies of published models are.
    teacher = toy.make_teacher(tmp_path / "teacher", few, vocab_size=408)
    flags = ["--model", str(teacher), "--data-bin", str(few), "--dest-dir", str(tmp_path / "t")]
    assert main([*flags, "--dest-data", str(tmp_path / "d")]) == 0
    vocabulary = VocabularyMap.read(tmp_path / "t")
    assert vocabulary.new_size < 400 < vocabulary.old_size == 408
    again = prepare(corpus, tmp_path / "t", tmp_path / "again")
    assert dict(files(again)) == dict(files(tmp_path / "d"))


class TestErrors:
    def test_flags(self, teacher: Path, few: Path, capsys: pytest.CaptureFixture[str]) -> None:
        common = ["--model", teacher, "--dest-dir", "new"]
        assert "give either --data-bin DIR" in error_of(capsys, *common)
        assert "give either --data-bin DIR" in error_of(capsys, *common, "--data-bin", few, "--restore", "x")
        assert "--student and --dest-student go together" in error_of(capsys, *common, "--data-bin", few, "--student=x")
        assert "--restore takes --model, --dest-dir" in error_of(capsys, *common, "--restore", "x", "--min-count", "2")
        line = error_of(capsys, *common, "--data-bin", few, "--keep-languages", "en,ro")
        assert line == "--keep-languages en: the data's tokenizer knows no languages; leave the flag out"

    def test_places(self, teacher: Path, few: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert "no such data folder" in error_of(
            capsys, "--model", teacher, "--data-bin", tmp_path / "none", "--dest-dir", tmp_path / "t"
        )
        (tmp_path / "t").mkdir()
        assert error_of(capsys, "--model", teacher, "--data-bin", few, "--dest-dir", tmp_path / "t") == (
            f"{tmp_path / 't'}: exists already; choose a new folder"
        )

    def test_data_of_another_tokenizer(
        self, teacher: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        other = toy.make_data(tmp_path)
        smaller = toy.make_teacher(tmp_path / "smaller", other, vocab_size=300)
        line = error_of(capsys, "--model", smaller, "--data-bin", other, "--dest-dir", tmp_path / "t")
        assert "has a vocabulary of" in line and "preprocess the data with the model's tokenizer" in line
        assert not (tmp_path / "t").exists()

    def test_tokenizers_in_python(self, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        ByT5Tokenizer().save_pretrained(tmp_path / "tokenizer")
        few = prepare(corpus, tmp_path / "tokenizer", tmp_path / "bin")
        teacher = toy.make_teacher(tmp_path / "teacher", few, vocab_size=384)
        line = error_of(capsys, "--model", teacher, "--data-bin", few, "--dest-dir", tmp_path / "t")
        assert "the tokenizer has no tokenizer.json (it is written in Python)" in line

    def test_nothing_to_restore(
        self, teacher: Path, trimmed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        line = error_of(capsys, "--model", trimmed / "teacher", "--restore", teacher, "--dest-dir", tmp_path / "again")
        assert f"--restore {teacher}: was not trimmed from {trimmed / 'teacher'}: token" in line
