"""cktk-preprocess from text to a data folder that opens, in every form of input; bad input is one clear line."""

from __future__ import annotations

import gzip
import json
import os
import platform
import random
import re
import subprocess
from pathlib import Path

import datasets
import pytest
from transformers import AutoTokenizer, BertTokenizer, MBartTokenizer

from cktk.data.shards import DataFolder
from cktk.protocols import Template
from cktk_cli.preprocess import main

SYLLABLES = ["ka", "lo", "mi", "tre", "sun", "po", "ré", "xi", "den", "ou", "fla", "gi"]


def make_pairs(count: int, seed: int) -> list[tuple[str, str]]:
    draw = random.Random(seed)
    words = ["".join(draw.choices(SYLLABLES, k=draw.randint(1, 3))) for _ in range(60)]
    return [tuple(" ".join(draw.choices(words, k=draw.randint(1, 8))) for _ in "ab") for _ in range(count)]  # type: ignore[misc]


TRAIN, VALID, TEST = make_pairs(300, 1), make_pairs(20, 2), [*make_pairs(10, 3), ("", "vide\u2028là"), ("x y", "")]


def write(path: Path, lines: list[str]) -> None:
    content = "".join(line + "\n" for line in lines).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """Folder with {train,valid,test}.{en,fr}; the French train file is gzipped."""
    folder = tmp_path / "text"
    folder.mkdir()
    for name, pairs in (("train", TRAIN), ("valid", VALID), ("test", TEST)):
        write(folder / f"{name}.en", [pair[0] for pair in pairs])
        write(folder / (f"{name}.fr.gz" if name == "train" else f"{name}.fr"), [pair[1] for pair in pairs])
    return folder


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A unigram tokenizer trained by the command itself."""
    folder: Path = tmp_path_factory.mktemp("made")
    write(folder / "train.en", [pair[0] for pair in TRAIN])
    write(folder / "train.fr", [pair[1] for pair in TRAIN])
    code = main(
        f"--train-prefix {folder}/train --source-lang en --target-lang fr --train-tokenizer unigram --vocab-size 360 "
        f"--dest-dir {folder}/bin".split()
    )
    assert code == 0
    return str(folder / "bin" / "tokenizer")


def command(text: Path, dest: Path, *more: str) -> list[str]:
    given = [f"--train-prefix={text}/train", f"--valid-prefix={text}/valid", f"--test-prefix={text}/test"]
    return [*given, "--source-lang=en", "--target-lang=fr", f"--dest-dir={dest}", *more]


def ids_of(folder: DataFolder, split: str) -> list[tuple[list[int], list[int]]]:
    rows = folder.split(split)
    return [(rows[i]["source"].tolist(), rows[i]["target"].tolist()) for i in range(len(rows))]


def expected_ids(tokenizer: str, pairs: list[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
    opened = AutoTokenizer.from_pretrained(tokenizer)
    return [tuple(opened(side, add_special_tokens=False)["input_ids"] for side in pair) for pair in pairs]  # type: ignore[misc]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def fails(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    """Run a command that must fail and return the one line that it printed."""
    capsys.readouterr()
    assert main(arguments) != 0
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("cktk-preprocess: error: ")
    return lines[0]


class TestDataFolder:
    def test_text_with_two_workers(
        self, text: Path, tokenizer: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        dest = tmp_path / "bin"
        more = ["--tokenizer", tokenizer, "--shard-size=128"]
        assert main(command(text, dest, *more, "--workers=2")) == 0
        folder = DataFolder(dest)
        folder.verify()
        assert folder.splits == ["train", "valid", "test"]
        assert folder.languages == {"source": "en", "target": "fr"}
        assert folder.split("train").shard_rows == [128, 128, 44]
        assert folder.template("target", "en") == Template((0,), (2,))
        assert (folder.pad, folder.bos, folder.eos, folder.unk) == (1, 0, 2, 3)
        assert AutoTokenizer.from_pretrained(folder.tokenizer_path)("ka lo")["input_ids"][0] == 0
        for split, pairs in (("train", TRAIN), ("valid", VALID), ("test", TEST)):
            assert ids_of(folder, split) == expected_ids(tokenizer, pairs)
        printed = capsys.readouterr().out
        assert re.search(r"lines +│ +300 │ +20 │ +12", printed)
        assert re.search(r"empty side +│ +0 │ +0 │ +2", printed)
        # The number of workers changes nothing.
        assert main(command(text, tmp_path / "one", *more)) == 0
        assert contents(tmp_path / "one") == contents(dest)

    def test_trained_tokenizer_is_not_trained_again(self, text: Path, tmp_path: Path) -> None:
        dest = tmp_path / "bin"
        arguments = command(text, dest, "--train-tokenizer=unigram", "--vocab-size=360")
        assert main(arguments) == 0
        assert DataFolder(dest).vocab_size == 360
        times = {path: path.stat().st_mtime_ns for path in dest.rglob("*")}
        assert main(arguments) == 0
        assert {path: path.stat().st_mtime_ns for path in dest.rglob("*")} == times

    def test_rules_from_flags(self, text: Path, tokenizer: str, tmp_path: Path) -> None:
        write(text / "train.en", ["", *(pair[0] for pair in TRAIN[1:])])
        more = ["--tokenizer", tokenizer, "--max-length=9", "--overlong-lines=drop"]
        assert main(command(text, tmp_path / "bin", *more)) == 0
        kept = [pair for pair in expected_ids(tokenizer, TRAIN[1:]) if max(map(len, pair)) <= 9]
        folder = DataFolder(tmp_path / "bin")
        assert 0 < len(kept) < len(TRAIN) - 1
        assert ids_of(folder, "train") == kept
        assert len(folder.split("test")) == len(TEST)

    def test_languages_of_mbart(self, text: Path, tmp_path: Path) -> None:
        specials = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
        made = MBartTokenizer(vocab=[*specials, *((piece, -3.0) for piece in ["▁", *SYLLABLES])])
        made.save_pretrained(tmp_path / "mbart")
        arguments = command(text, tmp_path / "bin", "--tokenizer", str(tmp_path / "mbart"))
        arguments += ["--source-lang=en_XX", "--target-lang=fr_XX"]
        assert main(arguments) == 0
        folder = DataFolder(tmp_path / "bin")
        english, french = made.convert_tokens_to_ids(["en_XX", "fr_XX"])
        assert folder.template("source", "en_XX") == Template((), (2, english))
        assert folder.template("target", "fr_XX") == Template((), (2, french))
        # Ids are without codes, and a target never carries the source language's.
        assert not {english, french, 2} & {token for pair in ids_of(folder, "train") for side in pair for token in side}

    @pytest.mark.parametrize("kind", ["tsv", "csv", "jsonl", "datasets"])
    def test_kind_is_told_by_the_flags(self, tokenizer: str, tmp_path: Path, kind: str) -> None:
        pairs = make_pairs(12, 7)
        if kind == "datasets":
            rows = [{"translation": {"en": a, "fr": b}} for a, b in pairs]
            datasets.DatasetDict(train=datasets.Dataset.from_list(rows)).save_to_disk(str(tmp_path / "set"))
            given = ["--dataset", str(tmp_path / "set")]
        else:
            mark = {"tsv": "\t", "csv": ","}.get(kind)
            lines = [json.dumps({"en": a, "fr": b}) if mark is None else f"{a}{mark}{b}" for a, b in pairs]
            write(tmp_path / f"t.{kind}", ([f"en{mark}fr"] if mark else []) + lines)
            given = ["--train-file", str(tmp_path / f"t.{kind}")]
        arguments = [*given, "--source-lang=fr", "--target-lang=en", "--tokenizer", tokenizer]
        assert main([*arguments, "--dest-dir", str(tmp_path / "bin")]) == 0
        assert ids_of(DataFolder(tmp_path / "bin"), "train") == expected_ids(tokenizer, [(b, a) for a, b in pairs])

    def test_run_file_and_explicit_source(self, tokenizer: str, tmp_path: Path) -> None:
        write(tmp_path / "table.txt", ["b\ta", "ka\tlo"])
        (tmp_path / "run.yaml").write_text(
            f"train-file: {tmp_path}/table.txt\nsource: tsv\nsource_lang: a\ntarget_lang: b\ntokenizer: {tokenizer}\n"
        )
        assert main([f"--config={tmp_path}/run.yaml", f"--dest-dir={tmp_path}/bin"]) == 0
        assert ids_of(DataFolder(tmp_path / "bin"), "train") == expected_ids(tokenizer, [("lo", "ka")])


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tokenizer as BERT's."""
    folder: Path = tmp_path_factory.mktemp("bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *SYLLABLES, *(f"##{part}" for part in SYLLABLES)]
    BertTokenizer(vocab={word: number for number, word in enumerate(words)}).save_pretrained(folder)
    return str(folder)


class TestTasks:
    def test_glue(self, bert: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """Two texts and a label, from a task's own files: labels beside texts, and all that a model needs to join."""
        lines = [f"{row}\t{a}\t{b}\t{'not_' * (row % 2)}entailment" for row, (a, b) in enumerate(TRAIN)]
        lines[7] = f"7\t\t{TRAIN[7][1]}\tentailment"
        write(tmp_path / "train.tsv", ["index\tsentence1\tsentence2\tlabel", *lines])
        write(
            tmp_path / "test.tsv", ["index\tsentence1\tsentence2", *(f"{r}\t{a}\t{b}" for r, (a, b) in enumerate(TEST))]
        )
        arguments = ["--task=glue", "--glue-task=rte", f"--glue-dir={tmp_path}", f"--tokenizer={bert}"]
        assert main([*arguments, f"--dest-dir={tmp_path}/bin", "--shard-size=128", "--workers=2"]) == 0
        printed = capsys.readouterr().out
        assert re.search(r"rows without label +│ +0 │ +12", printed) and re.search(r"empty side +│ +1 │ +2", printed)
        assert "labels: entailment, not_entailment" in printed
        folder = DataFolder(tmp_path / "bin")
        folder.verify()
        assert (folder.task, folder.benchmark) == ("glue", "rte")
        assert folder.labels == ("entailment", "not_entailment") and folder.languages == {"text_a": "", "text_b": ""}
        assert folder.kinds == {"text_a": "tokens", "text_b": "tokens", "label": "integer"}
        train, opened = folder.split("train"), AutoTokenizer.from_pretrained(bert)
        # A row with an empty text stays: predictions and labels are counted.
        assert train.values("label", 0, len(train)).tolist() == [row % 2 * (row != 7) for row in range(len(TRAIN))]
        assert train[7]["text_a"].tolist() == []
        assert folder.split("test").values("label", 0, 3).tolist() == [-1] * 3
        pair = folder.pair_template
        assert pair is not None and pair.token_types
        for row in (0, 130, 299):
            one, other = (train[row][name].tolist() for name in ("text_a", "text_b"))
            expected = opened(*TRAIN[row])
            assert [*pair.prefix, *one, *pair.middle, *other, *pair.suffix] == expected["input_ids"]
            before = len(pair.prefix) + len(one) + len(pair.middle)
            assert expected["token_type_ids"] == [0] * before + [1] * (len(other) + len(pair.suffix))
        before_again = contents(tmp_path / "bin")
        assert main([*arguments, f"--dest-dir={tmp_path}/bin", "--shard-size=128"]) == 0
        assert "already made from this text" in capsys.readouterr().out
        assert contents(tmp_path / "bin") == before_again

    def test_labels_are_part_of_what_a_folder_was_made_of(
        self, bert: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        write(tmp_path / "t.csv", ["review,stars", "ka lo,3", "mi,5"])
        given = ["--task=glue", "--text-columns=review", "--label-column=stars", f"--train-file={tmp_path}/t.csv"]
        given += [f"--tokenizer={bert}", f"--dest-dir={tmp_path}/bin"]
        assert main(given) == 0
        folder = DataFolder(tmp_path / "bin")
        assert folder.labels == ("3", "5") and folder.pair_template is None
        assert folder.split("train")[1]["label"] == 1
        assert "was made with labels ['3', '5'], not None" in fails(capsys, [*given, "--regression"])
        assert main([*given[:-1], "--regression", f"--dest-dir={tmp_path}/scores"]) == 0
        folder = DataFolder(tmp_path / "scores")
        assert (folder.labels, folder.kinds["label"], folder.split("train")[1]["label"]) == (None, "number", 5.0)

    def test_summarization(self, tokenizer: str, tmp_path: Path) -> None:
        rows = [json.dumps({"article": a, "highlights": b, "id": "x"}) for a, b in TRAIN[:20]]
        write(tmp_path / "train.jsonl.gz", [*rows, json.dumps({"article": "", "highlights": "ka"})])
        given = ["--task=summarization", f"--train-file={tmp_path}/train.jsonl.gz", f"--tokenizer={tokenizer}"]
        assert main([*given, f"--dest-dir={tmp_path}/bin"]) == 0
        folder = DataFolder(tmp_path / "bin")
        assert (folder.task, folder.languages) == ("summarization", {"source": "", "target": ""})
        assert ids_of(folder, "train") == expected_ids(tokenizer, TRAIN[:20])
        assert folder.template("target") == Template((0,), (2,))

    def test_pretraining(self, text: Path, tokenizer: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        write(text / "valid.en", ["ka lo", "", "mi"])
        write(text / "train", ["one. two.", "", "ka"])
        given = ["--task=pretraining", "--lang=en", f"--train-prefix={text}/train", f"--valid-prefix={text}/valid"]
        given += [f"--dest-dir={tmp_path}/bin"]
        assert main([*given, f"--tokenizer={tokenizer}"]) == 0
        assert re.search(r"empty texts +│ +1 │ +1", capsys.readouterr().out)
        folder = DataFolder(tmp_path / "bin")
        assert (folder.task, folder.columns, folder.languages) == ("pretraining", ["text"], {"text": "en"})
        train, valid = folder.split("train"), folder.split("valid")
        found = [[split[row]["text"].tolist() for row in range(len(split))] for split in (train, valid)]
        opened = AutoTokenizer.from_pretrained(tokenizer)
        assert found == [
            [opened(line, add_special_tokens=False)["input_ids"] for line in lines]
            for lines in (["one. two.", "ka"], ["ka lo", "", "mi"])
        ]

    def test_documents_of_a_translation(self, text: Path, tokenizer: str, tmp_path: Path) -> None:
        for name, pairs in (("train", TRAIN), ("valid", VALID), ("test", TEST)):
            write(text / f"{name}.doc", [f"talk {row // 7}" for row in range(len(pairs))])
        write(text / "train.en", [pair[0] if row != 3 else "" for row, pair in enumerate(TRAIN)])
        more = ["--tokenizer", tokenizer, "--shard-size=64", "--document-column=doc"]
        assert main(command(text, tmp_path / "bin", *more)) == 0
        split = DataFolder(tmp_path / "bin").split("train")
        expected = [row // 7 for row in range(len(TRAIN)) if row != 3]
        assert split.values("document", 0, len(split)).tolist() == expected
        assert split[70]["document"] == 71 // 7


class TestErrors:
    @pytest.mark.parametrize(
        ("given", "message"),
        [
            (["--task=glue", "--train-file=t.tsv"], "give --glue-task NAME, or --text-columns A[,B]"),
            (["--task=summarisation"], "did you mean summarization?"),
            (["--task=summarization", "--glue-task=rte"], "--glue-task belongs to --task glue, which was not chosen"),
            (["--task=pretraining", "--source-lang=en"], "--source-lang belongs to --task translation"),
            (["--train-prefix=x", "--source-lang=en"], "--target-lang is required"),
            (
                ["--task=glue", "--glue-task=rtee", "--glue-dir=."],
                "--glue-task: unknown name 'rtee'; did you mean rte?",
            ),
            (["--task=glue", "--glue-task=rte", "--glue-dir=nowhere"], "--glue-dir nowhere: holds no file of RTE"),
        ],
    )
    def test_bad_tasks(self, bert: str, capsys: pytest.CaptureFixture[str], given: list[str], message: str) -> None:
        assert message in fails(capsys, [*given, f"--tokenizer={bert}"])

    def test_languages_of_other_tasks(self, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        MBartTokenizer().save_pretrained(tmp_path / "mbart")
        write(text / "train", ["ka"])
        given = ["--task=pretraining", f"--train-prefix={text}/train", f"--tokenizer={tmp_path}/mbart"]
        given += [f"--dest-dir={tmp_path}/bin"]
        assert "--lang is needed: MBartTokenizer marks the language of a text; known: ar_AR" in fails(capsys, given)
        assert "--lang: MBartTokenizer has no language 'ro'; did you mean ro_RO?" in fails(
            capsys, [*given, "--lang=ro"]
        )
        assert not (tmp_path / "bin").exists()
        assert main([*given, "--lang=ro_RO"]) == 0

    def test_a_folder_begun_by_an_earlier_version_is_continued(
        self, text: Path, tokenizer: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        arguments = command(text, tmp_path / "bin", "--tokenizer", tokenizer)
        assert main(arguments) == 0
        record = json.loads((tmp_path / "bin" / "preprocess.json").read_text())
        for name in ("task", "columns", "labels"):
            del record[name]
        (tmp_path / "bin" / "preprocess.json").write_text(json.dumps(record))
        (tmp_path / "bin" / "manifest.json").unlink()
        assert main(arguments) == 0
        given = [argument for argument in arguments if "lang" not in argument]
        changed = fails(capsys, [*given, "--task=summarization", "--source-column=en", "--target-column=fr"])
        assert "was made with" in changed

    @pytest.mark.parametrize(
        ("file", "content", "message"),
        [
            ("valid.fr", b"only one line\n", r"valid\.en has 20 lines but \S*valid\.fr has 1"),
            ("test.en", b"", r"test\.en: the file is empty"),
            ("valid.en", b"good\n" * 6 + b"caf\xe9\n" + b"good\n" * 13, r"valid\.en:7: not valid UTF-8"),
            ("train.en", None, r"--train-prefix \S*: no such file: \S*train\.en or \S*train\.en\.gz"),
        ],
    )
    def test_bad_text(
        self,
        text: Path,
        tokenizer: str,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        file: str,
        content: bytes | None,
        message: str,
    ) -> None:
        good = (text / file).read_bytes()
        (text / file).unlink()
        if content is not None:
            (text / file).write_bytes(content)
        arguments = command(text, tmp_path / "bin", "--tokenizer", tokenizer)
        assert re.search(message, fails(capsys, arguments))
        assert not (tmp_path / "bin" / "manifest.json").exists()
        # Mended, the same command goes through.
        (text / file).write_bytes(good)
        assert main(arguments) == 0

    @pytest.mark.parametrize(
        ("more", "message"),
        [
            ([], "give either --tokenizer PATH or --train-tokenizer unigram"),
            (["--tokenizer=./nowhere"], "--tokenizer ./nowhere: no such folder"),
            (["--train-tokenizer=unigrm"], "did you mean unigram?"),
            (["--train-tokenizer=unigram"], "--vocab-size is required"),
            (["--train-tokenizer=unigram", "--vocab-size=90000"], "--vocab-size 90000: too large for this text"),
            (["--vocab-size=100"], "--vocab-size belongs to --train-tokenizer unigram, which was not chosen"),
            (["--train-file=data.xyz"], "--train-file data.xyz: its name does not tell the format"),
            (["--train-file=data.tsv"], "--train-prefix belongs to --source text, which was not chosen"),
            (["--worker=2"], "did you mean --workers?"),
            (["--empty-lines=remove"], "--empty-lines"),
        ],
    )
    def test_bad_settings(
        self,
        text: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        more: list[str],
        message: str,
    ) -> None:
        assert message in fails(capsys, command(text, tmp_path / "bin", *more))
        assert not (tmp_path / "bin" / "preprocess.json").exists()

    def test_language_that_mbart_does_not_know(
        self, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        MBartTokenizer().save_pretrained(tmp_path / "mbart")
        line = fails(capsys, command(text, tmp_path / "bin", "--tokenizer", str(tmp_path / "mbart")))
        assert "has no language 'en'; did you mean en_XX?" in line
        assert not (tmp_path / "bin").exists()

    def test_folders_that_hold_something_else(
        self, text: Path, tokenizer: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        dest = tmp_path / "bin"
        dest.mkdir()
        (dest / "thesis.tex").write_text("dear")
        arguments = command(text, dest, "--tokenizer", tokenizer)
        assert f"--dest-dir {dest}: holds other data (thesis.tex)" in fails(capsys, arguments)
        (dest / "thesis.tex").unlink()
        assert main(arguments) == 0
        before = contents(dest)
        assert "was made with shard_size 100000, not 7" in fails(capsys, [*arguments, "--shard-size=7"])
        assert "also holds the split train" in fails(capsys, [*arguments[1:]])
        swapped = [*arguments, "--source-lang=fr", "--target-lang=en"]
        assert "was made with source_lang en, not fr" in fails(capsys, swapped)
        write(text / "valid.en", ["changed"] * len(VALID))
        assert "valid-00000: was made from other text" in fails(capsys, arguments)
        assert contents(dest) == before

    def test_left_overs_of_killed_processes_go(self, text: Path, tokenizer: str, tmp_path: Path) -> None:
        dest = tmp_path / "bin"
        with subprocess.Popen(["true"]) as dead:
            pass
        left = dest / f".tokenizer.{dead.pid}@{platform.node()}.tmp"
        left.mkdir(parents=True)
        (left / "tokenizer.json").write_text("{")
        elsewhere = dest / f".train-00000.source.bin.{dead.pid}@another.machine.tmp"
        elsewhere.write_bytes(b"half")
        assert main(command(text, dest, "--tokenizer", tokenizer)) == 0
        assert not left.exists()
        assert elsewhere.exists()

    def test_full_disk_leaves_nothing_that_looks_whole(
        self,
        text: Path,
        tokenizer: str,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        arguments = command(text, tmp_path / "bin", "--tokenizer", tokenizer, "--shard-size=128")
        real, calls = os.fsync, [0]

        def full(descriptor: int) -> None:
            calls[0] += 1
            if calls[0] > 30:
                raise OSError(28, "No space left on device")
            real(descriptor)

        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", full)
            line = fails(capsys, arguments)
        assert re.search(r"cannot write \S*/bin/\S*: No space left on device", line)
        assert not (tmp_path / "bin" / "manifest.json").exists()
        assert (tmp_path / "bin" / "train-00000.json").exists()
        assert not list((tmp_path / "bin").glob("*.tmp"))
        assert main(arguments) == 0
        assert ids_of(DataFolder(tmp_path / "bin"), "train") == expected_ids(tokenizer, TRAIN)
