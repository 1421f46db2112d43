"""Layouts: the columns of each task from every kind of source, and one clear line for what does not belong there."""

from __future__ import annotations

import json
import math
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cktk.data.glue import GLUE_TASKS
from cktk.data.preprocessing.blocks import BlockEncoder, Rules
from cktk.data.preprocessing.configs import (
    DatasetsSourceConfig,
    DelimitedSourceConfig,
    GlueSourceConfig,
    TableSourceConfig,
    TextSourceConfig,
)
from cktk.data.preprocessing.layout_configs import (
    GlueDataConfig,
    PretrainingDataConfig,
    SummarizationDataConfig,
    TranslationDataConfig,
)
from cktk.data.preprocessing.layouts import Layout, glue, pretraining, summarization, translation
from cktk.data.sources import hub_source
from cktk.data.sources.glue_files import GlueSource
from cktk.data.sources.hub_source import DatasetsSource
from cktk.data.sources.sources import TextSource, open_source
from cktk.data.sources.tables import CsvSource, JsonlSource, ParquetSource, TsvSource
from cktk.data.sources.values import Labels, Numbers
from cktk.data.tokenization.encoder import Rows
from cktk.errors import ConfigError, DataError


def glue_task(name: str, **more: Any) -> Layout:
    return glue(GlueDataConfig(glue_task=name, **more))


def table(path: Path, *lines: str) -> str:
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return str(path)


def saved(path: Path) -> DatasetsSourceConfig:
    return DatasetsSourceConfig(dataset=str(path))


def save_classes(path: Path, names: list[str], labels: list[int], nested: bool = False) -> None:
    """Save a dataset with ``labels`` that count in ``names``, as ``label`` or as ``y.label``."""
    text, classes = datasets.Value("string"), datasets.ClassLabel(names=names)
    features: dict[str, Any] = {"premise": text, "hypothesis": text}
    features |= {"y": {"label": classes}} if nested else {"label": classes}
    cells = [{"y": {"label": label}} if nested else {"label": label} for label in labels]
    rows = [{"premise": "a", "hypothesis": "b", **cell} for cell in cells]
    datasets.Dataset.from_list(rows, features=datasets.Features(features)).save_to_disk(str(path))


def read(source: Any) -> dict[str, list[tuple[Any, ...]]]:
    """All rows by split; what `count` says has to be true."""
    found = {split: list(source.rows(split)) for split in source.splits()}
    assert all(source.count(split) in (None, len(rows)) for split, rows in found.items())
    return found


class TestValues:
    @given(
        st.lists(st.text(st.characters(categories=["L"]), min_size=1), min_size=1, max_size=5, unique=True),
        st.data(),
    )
    def test_labels_by_name_and_by_number(self, names: list[str], data: st.DataObject) -> None:
        labels, index = Labels(tuple(names)), data.draw(st.integers(0, len(names) - 1))
        for cell in (names[index], index, str(index), float(index), np.int64(index).item()):
            assert labels.read(cell, "here") == index
        unknown: tuple[object, ...] = (None, "", -1, "-1", math.nan)
        assert [labels.read(cell, "here") for cell in unknown] == [-1] * len(unknown)
        for other in (len(names), str(len(names)), -2, names[0] + "?"):
            with pytest.raises(DataError, match=r"^here: label .* is not one of "):
                labels.read(other, "here")

    def test_names_that_are_numbers_are_names(self) -> None:
        labels = Labels(("1", "2", "10"))
        assert [labels.read(cell, "") for cell in (1, "2", 10.0)] == [0, 1, 2]
        with pytest.raises(DataError, match="label '0' is not one of 1, 2, 10"):
            labels.read(0, "here")
        assert Labels(("0", "1")).read(True, "") == 1

    @pytest.mark.parametrize(
        ("cell", "words"), [(0.5, "label 0.5 is a number and not a class; add --regression"), ([1], "not list")]
    )
    def test_what_is_no_label(self, cell: object, words: str) -> None:
        with pytest.raises(DataError, match=rf"^here: .*{words}"):
            Labels(("a", "b")).read(cell, "here")

    def test_numbers(self) -> None:
        numbers = Numbers(stand_in=-1.0)
        assert [numbers.read(cell, "") for cell in ("3.25", 2, 1e-3, "-7")] == [3.25, 2.0, 1e-3, -7.0]
        assert all(math.isnan(numbers.read(cell, "")) for cell in (None, "", "nan", -1, "-1.0"))
        assert Numbers().read(-1, "") == -1.0
        for cell in ("high", "inf", "1e999", [3]):
            with pytest.raises(DataError, match=r"^a\.tsv:3: .* is not a number"):
                numbers.read(cell, "a.tsv:3")


class TestTranslation:
    def test_documents_are_numbered_as_their_name_changes(self, tmp_path: Path) -> None:
        names = ["a", "a", "b", "a", "", "", "c", "c"]
        for column in ("en", "fr"):
            table(tmp_path / f"t.{column}", *(f"{column} {number}" for number in range(len(names))))
        table(tmp_path / "t.doc", *names)
        layout = translation(TranslationDataConfig(source_lang="en", target_lang="fr", document_column="doc"))
        source = TextSource(TextSourceConfig(train_prefix=str(tmp_path / "t")), layout)
        rows = list(layout.stored(source.rows("train")))
        assert [row[:2] for row in rows] == [(f"en {number}", f"fr {number}") for number in range(len(names))]
        assert [row[2] for row in rows] == [0, 0, 1, 2, 3, 4, 5, 5]
        assert [column.kind for column in layout.columns] == ["tokens", "tokens", "integer"]

    def test_documents_in_tables(self, tmp_path: Path) -> None:
        rows = [{"en": "x", "fr": "y", "talk": {"id": number // 2}} for number in range(4)]
        path = table(tmp_path / "a.jsonl", *map(json.dumps, rows))
        layout = translation(TranslationDataConfig(source_lang="en", target_lang="fr", document_column="talk.id"))
        source = JsonlSource(TableSourceConfig(train_file=path), layout)
        assert [row[2] for row in layout.stored(source.rows("train"))] == [0, 0, 1, 1]

    def test_files_of_other_names(self, tmp_path: Path) -> None:
        table(tmp_path / "t.src", "a"), table(tmp_path / "t.fr", "b")
        layout = translation(TranslationDataConfig(source_lang="en", target_lang="fr", source_column="src"))
        source = TextSource(TextSourceConfig(train_prefix=str(tmp_path / "t")), layout)
        assert read(source) == {"train": [("a", "b")]}

    def test_a_document_file_that_is_missing_or_short(self, tmp_path: Path) -> None:
        table(tmp_path / "t.en", "a", "b"), table(tmp_path / "t.fr", "c", "d")
        layout = translation(TranslationDataConfig(source_lang="en", target_lang="fr", document_column="doc"))
        config = TextSourceConfig(test_prefix=str(tmp_path / "t"))
        with pytest.raises(DataError, match=r"--test-prefix .*no such file: \S*t\.doc or \S*t\.doc\.gz"):
            TextSource(config, layout)
        table(tmp_path / "t.doc", "one")
        with pytest.raises(DataError, match=r"t\.en has 2 lines but \S*t\.doc has 1"):
            TextSource(config, layout).count("test")


class TestSummarization:
    @pytest.mark.parametrize(("text", "summary"), [("document", "summary"), ("article", "highlights")])
    def test_columns_of_the_usual_data(self, tmp_path: Path, text: str, summary: str) -> None:
        pyarrow.parquet.write_table(
            pyarrow.Table.from_pylist([{"id": 7, text: "long\ntext", summary: "short"}]), tmp_path / "a.parquet"
        )
        layout = summarization(SummarizationDataConfig(lang="en_XX"))
        source = ParquetSource(TableSourceConfig(valid_file=str(tmp_path / "a.parquet")), layout)
        assert read(source) == {"valid": [("long\ntext", "short")]}
        assert layout.languages == {"source": "en_XX", "target": "en_XX"}

    def test_text_files(self, tmp_path: Path) -> None:
        table(tmp_path / "t.source", "long"), table(tmp_path / "t.target", "short")
        source = TextSource(
            TextSourceConfig(train_prefix=str(tmp_path / "t")), summarization(SummarizationDataConfig())
        )
        assert read(source) == {"train": [("long", "short")]}

    def test_missing_columns_list_those_present(self, tmp_path: Path) -> None:
        path = table(tmp_path / "a.csv", "body,summary", "x,y")
        source = CsvSource(DelimitedSourceConfig(train_file=path), summarization(SummarizationDataConfig()))
        with pytest.raises(
            DataError, match=r"a\.csv: no column 'source' or .*; choose with --source-column among: body, summary"
        ):
            source.count("train")


class TestPretraining:
    @pytest.mark.parametrize("name", ["corpus.txt", "corpus.txt.en", "corpus.txt.gz"])
    def test_lines_of_a_file_with_or_without_language(self, tmp_path: Path, name: str) -> None:
        if name.endswith("gz"):
            import gzip

            (tmp_path / name).write_bytes(gzip.compress(b"one text.  Two sentences\n\nlast\n"))
        else:
            table(tmp_path / name, "one text.  Two sentences", "", "last")
        layout = pretraining(PretrainingDataConfig(lang="en_XX"))
        source = TextSource(TextSourceConfig(train_prefix=str(tmp_path / "corpus.txt")), layout)
        assert read(source) == {"train": [("one text.  Two sentences",), ("",), ("last",)]}

    def test_tables(self, tmp_path: Path) -> None:
        path = table(tmp_path / "a.jsonl", json.dumps({"url": "u", "text": "two\nlines"}))
        assert read(JsonlSource(TableSourceConfig(train_file=path), pretraining(PretrainingDataConfig()))) == {
            "train": [("two\nlines",)]
        }
        layout = pretraining(PretrainingDataConfig(text_column="url"))
        assert read(JsonlSource(TableSourceConfig(train_file=path), layout)) == {"train": [("u",)]}


class TestGlue:
    @pytest.mark.parametrize("name", sorted(GLUE_TASKS))
    def test_datasets_of_the_hub(self, tmp_path: Path, name: str) -> None:
        """Rows as nyu-mll/glue has them, with label -1 in the test splits."""
        task = GLUE_TASKS[name]
        columns = [column[0] for column in (task.text_a, task.text_b) if column]
        labels = [1.5, 5.0] if task.regression else [len(task.labels or ()) - 1, 0]

        def rows(split: str) -> datasets.Dataset:
            given = [-1, -1] if split.startswith("test") else labels
            texts = [{column: f"{split} {column} {row}" for column in columns} for row in range(2)]
            return datasets.Dataset.from_list(
                [{**text, "label": label, "idx": 9} for text, label in zip(texts, given, strict=True)]
            )

        made = {task.hub_splits[split]: rows(split) for split in task.splits}
        datasets.DatasetDict(made).save_to_disk(str(tmp_path / "set"))
        found = read(DatasetsSource(DatasetsSourceConfig(dataset=str(tmp_path / "set")), glue_task(name)))
        assert list(found) == list(task.splits)
        for split, read_rows in found.items():
            expected = [tuple(f"{split} {column} {row}" for column in columns) for row in range(2)]
            assert [row[:-1] for row in read_rows] == expected
            unknown = math.nan if task.regression else -1
            wanted = [unknown] * 2 if split.startswith("test") else labels
            np.testing.assert_array_equal([row[-1] for row in read_rows], wanted)

    @pytest.mark.parametrize(
        ("dataset", "given", "expected"),
        [("nyu-mll/glue", None, "rte"), ("glue", "ax", "ax"), ("owner/rte", None, None), ("./glue/rte", None, None)],
    )
    def test_the_hubs_collection_has_a_configuration_a_task(
        self, monkeypatch: pytest.MonkeyPatch, dataset: str, given: str | None, expected: str | None
    ) -> None:
        asked: list[tuple[str, str | None]] = []

        def load(name: str, config: str | None) -> datasets.DatasetDict:
            asked.append((name, config))
            return datasets.DatasetDict(train=datasets.Dataset.from_list([{"label": 1}]))

        monkeypatch.setattr(hub_source, "_load", load)
        DatasetsSource(DatasetsSourceConfig(dataset=dataset, dataset_config=given), glue_task("rte"))
        assert asked == [(dataset, expected)]

    def test_cola_has_no_header_but_in_its_test_file(self, tmp_path: Path) -> None:
        table(tmp_path / "train.tsv", "gj04\t1\t\tOur friends.", "gj05\t0\t*\tFriends our.")
        table(tmp_path / "dev.tsv", "gj06\t1\t\tNow.")
        table(tmp_path / "test.tsv", "index\tsentence", "0\tThen.")
        found = read(GlueSource(GlueSourceConfig(glue_dir=str(tmp_path)), glue_task("cola")))
        assert found == {
            "train": [("Our friends.", 1), ("Friends our.", 0)],
            "valid": [("Now.", 1)],
            "test": [("Then.", -1)],
        }

    def test_mnli_has_two_valid_and_two_test_sets(self, tmp_path: Path) -> None:
        header = "index\tgenre\tsentence1_parse\tsentence1\tsentence2\tlabel1\tgold_label"
        for name, label in (("train", "neutral"), ("dev_matched", "entailment"), ("dev_mismatched", "contradiction")):
            table(tmp_path / f"{name}.tsv", header, f"0\tfiction\t(x)\t{name} a\t{name} b\tneutral\t{label}")
        for name in ("test_matched", "test_mismatched"):
            table(tmp_path / f"{name}.tsv", "index\tsentence1\tsentence2", f"0\t{name} a\t{name} b")
        layout = glue_task("mnli")
        assert read(GlueSource(GlueSourceConfig(glue_dir=str(tmp_path)), layout)) == {
            "train": [("train a", "train b", 1)],
            "valid": [("dev_matched a", "dev_matched b", 0)],
            "valid_mm": [("dev_mismatched a", "dev_mismatched b", 2)],
            "test": [("test_matched a", "test_matched b", -1)],
            "test_mm": [("test_mismatched a", "test_mismatched b", -1)],
        }
        layout = glue_task("mnli", valid_mm_file=str(tmp_path / "dev_mis*.tsv"))
        found = read(TsvSource(DelimitedSourceConfig(train_file=str(tmp_path / "train.tsv")), layout))
        assert {split: rows[0][-1] for split, rows in found.items()} == {"train": 1, "valid_mm": 2}

    def test_damaged_rows_of_qqp(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        header = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate"
        table(tmp_path / "train.tsv", header, "1\t2\t3\tWhy?\tHow?\t0", "4\t5\t6\tcut", "7\t8\t9\tWho?\tWho?\t1\textra")
        table(tmp_path / "test.tsv", "id\tquestion1\tquestion2", "0\tcut")
        source = GlueSource(GlueSourceConfig(glue_dir=str(tmp_path)), glue_task("qqp"))
        assert list(source.rows("train")) == [("Why?", "How?", 0), ("Who?", "Who?", 1)]
        assert "train.tsv: 1 damaged rows are left out, the first of them in line 3" in caplog.text
        with pytest.raises(DataError, match=r"test\.tsv:2: ends with column 2"):
            list(source.rows("test"))

    def test_a_folder_of_something_else(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"holds no file of RTE: train\.tsv, dev\.tsv, test\.tsv"):
            GlueSource(GlueSourceConfig(glue_dir=str(tmp_path)), glue_task("rte"))
        with pytest.raises(ConfigError, match="say which with --task glue --glue-task NAME"):
            GlueSource(GlueSourceConfig(glue_dir=str(tmp_path)), pretraining(PretrainingDataConfig()))

    def test_own_columns_and_declared_labels(self, tmp_path: Path) -> None:
        path = table(tmp_path / "a.tsv", "y\tone\ttwo", "pos\tx\tz", "0\tx\tz", "\tx\tz")
        config = GlueDataConfig(text_columns=("two", "one"), label_column="y", label_names=("neg", "pos"))
        source = TsvSource(DelimitedSourceConfig(train_file=path), glue(config))
        assert read(source) == {"train": [("z", "x", 1), ("z", "x", 0), ("z", "x", -1)]}

    @pytest.mark.parametrize(
        ("cells", "names"),
        [
            (["good", "bad", "", "good"], ("bad", "good")),
            (["10", "2", "1"], ("1", "2", "10")),
            ([3, 4, None, 3], ("3", "4")),
        ],
    )
    def test_labels_are_found_in_the_train_split(
        self, tmp_path: Path, cells: list[Any], names: tuple[str, ...]
    ) -> None:
        path = table(tmp_path / "a.jsonl", *(json.dumps({"t": "x", "label": cell}) for cell in cells))
        layout = glue(GlueDataConfig(text_columns=("t",)))
        source, layout = open_source(partial(JsonlSource, TableSourceConfig(train_file=path)), layout)
        assert layout.labels == names
        known = [names.index(str(cell)) if cell not in ("", None) else -1 for cell in cells]
        assert [row[1] for row in source.rows("train")] == known

    def test_blanks_around_labels_do_not_count(self, tmp_path: Path) -> None:
        path = table(tmp_path / "a.tsv", "t\tlabel", "x\tpos", "x\t pos", "x\tneg ", "x\t  ")
        make = partial(TsvSource, DelimitedSourceConfig(train_file=path))
        source, layout = open_source(make, glue(GlueDataConfig(text_columns=("t",))))
        assert layout.labels == ("neg", "pos")
        assert [row[1] for row in source.rows("train")] == [1, 1, 0, -1]
        layout = glue(GlueDataConfig(text_columns=("t",), label_names=("pos ", " neg")))
        assert [row[1] for row in make(layout).rows("train")] == [0, 0, 1, -1]
        save_classes(tmp_path / "set", [" a", "b "], [0, 1])
        layout = glue(GlueDataConfig(text_columns=("premise",)))
        source, layout = open_source(partial(DatasetsSource, saved(tmp_path / "set")), layout)
        assert layout.labels == ("a", "b") and [row[1] for row in source.rows("train")] == [0, 1]

    @pytest.mark.parametrize(
        ("given", "names", "numbers"),
        [
            ({"text_columns": ("premise",)}, ("pos", "neg", "mixed"), [1, 2, -1]),
            (
                {"text_columns": ("premise",), "label_names": ("neg", "pos", "mixed")},
                ("neg", "pos", "mixed"),
                [0, 2, -1],
            ),
        ],
    )
    @pytest.mark.parametrize("nested", [False, True])
    def test_names_that_a_dataset_declares(
        self, tmp_path: Path, nested: bool, given: dict[str, Any], names: tuple[str, ...], numbers: list[int]
    ) -> None:
        save_classes(tmp_path / "set", ["pos", "neg", "mixed"], [1, 2, -1], nested)
        layout = glue(GlueDataConfig(**given, label_column="y.label" if nested else "label"))
        source, layout = open_source(partial(DatasetsSource, saved(tmp_path / "set")), layout)
        assert layout.labels == names
        assert [row[-1] for row in source.rows("train")] == numbers

    @pytest.mark.parametrize(
        ("names", "numbers"),
        [
            (("good", "bad", "so-so"), [1, 2, -1, 0]),  # new names in the order of the data
            (("pos", "bad", "mixed"), [1, 2, -1, 0]),  # some of them new
            (("mixed", "neg", "pos"), [1, 0, -1, 2]),  # the data's own in another order
            (("mixed", "neg", "pos", "none"), [1, 0, -1, 2]),  # and a further one
        ],
    )
    def test_classes_of_a_dataset_are_renamed(self, tmp_path: Path, names: tuple[str, ...], numbers: list[int]) -> None:
        save_classes(tmp_path / "set", ["pos", "neg", "mixed"], [1, 2, -1, 0])
        layout = glue(GlueDataConfig(text_columns=("premise",), label_names=names))
        source, layout = open_source(partial(DatasetsSource, saved(tmp_path / "set")), layout)
        assert layout.labels == names
        assert [row[-1] for row in source.rows("train")] == numbers

    @pytest.mark.parametrize("names", [("good", "bad"), ("neg", "good", "bad"), ("a", "b", "c", "d")])
    def test_names_that_could_be_for_any_class(self, tmp_path: Path, names: tuple[str, ...]) -> None:
        """Too few, too many, or one of the data's in another place beside new ones."""
        save_classes(tmp_path / "set", ["pos", "neg", "mixed"], [1, 2])
        layout = glue(GlueDataConfig(text_columns=("premise",), label_names=names))
        with pytest.raises(DataError, match=r"--label-names .* does not fit its classes pos, neg, mixed: give these"):
            list(DatasetsSource(saved(tmp_path / "set"), layout).rows("train"))

    def test_declared_names_of_a_published_task(self, tmp_path: Path) -> None:
        save_classes(tmp_path / "set", ["contradiction", "entailment", "neutral"], [0, 1, 2])
        rows = list(DatasetsSource(saved(tmp_path / "set"), glue_task("mnli")).rows("train"))
        assert [row[-1] for row in rows] == [2, 0, 1]
        save_classes(tmp_path / "other", ["yes", "no"], [0, 1])
        with pytest.raises(DataError, match="row 1: label 'yes' is not one of entailment, neutral, contradiction"):
            list(DatasetsSource(saved(tmp_path / "other"), glue_task("mnli")).rows("train"))

    def test_labels_that_cannot_be_found(self, tmp_path: Path) -> None:
        layout = glue(GlueDataConfig(text_columns=("t",)))
        path = table(tmp_path / "a.tsv", "t\tlabel", "x\t")
        with pytest.raises(DataError, match=r"the train split has no label \(-1 means unknown\); give --label-names"):
            open_source(partial(TsvSource, DelimitedSourceConfig(train_file=path)), layout)
        with pytest.raises(DataError, match="--label-names is needed: there is no train split"):
            open_source(partial(TsvSource, DelimitedSourceConfig(valid_file=path)), layout)
        path = table(tmp_path / "b.tsv", "t\tlabel", *(f"x\t{number}" for number in range(1001)))
        with pytest.raises(DataError, match="more than 1,000 different labels; --regression takes numbers"):
            open_source(partial(TsvSource, DelimitedSourceConfig(train_file=path)), layout)

    @pytest.mark.parametrize(
        ("cells", "message"),
        [
            ((1, -1, 1), r"label -1 beside others: -1 means unknown; .* \(--label-names=-1,1\)"),
            ((0, -1, 1), "label -1 beside others: -1 means unknown"),
            ((-1, -1), r"no label \(-1 means unknown\)"),
            (("good", "good"), "the label 'good' alone .* -1 mean unknown"),
            (("0.5", "2.0", "-1.25"), r"are numbers such as -1\.25; add --regression"),
        ],
    )
    def test_labels_that_may_be_unknown_are_not_guessed(
        self, tmp_path: Path, cells: tuple[object, ...], message: str
    ) -> None:
        path = table(tmp_path / "a.jsonl", *(json.dumps({"t": "x", "label": cell}) for cell in cells))
        with pytest.raises(DataError, match=message):
            open_source(
                partial(JsonlSource, TableSourceConfig(train_file=path)), glue(GlueDataConfig(text_columns=("t",)))
            )

    @pytest.mark.parametrize(("names", "numbers"), [(("-1", "1"), [0, 1, -1]), (("0", "1"), [-1, 1, -1])])
    def test_minus_one_is_a_class_where_it_is_declared(
        self, tmp_path: Path, names: tuple[str, ...], numbers: list[int]
    ) -> None:
        path = table(tmp_path / "a.tsv", "t\tlabel", "x\t-1", "x\t1", "x\t")
        layout = glue(GlueDataConfig(text_columns=("t",), label_names=names))
        source, _ = open_source(partial(TsvSource, DelimitedSourceConfig(train_file=path)), layout)
        assert [row[1] for row in source.rows("train")] == numbers

    @pytest.mark.parametrize(
        ("split", "lines", "message"),
        [
            ("train", ["sentence\tlabel", "x\t1", "y\t2"], r"a\.tsv:3: label '2' is not one of negative, positive"),
            ("train", ["sentence\tlabel", "x\tgood"], r"a\.tsv:2: label 'good' is not one of"),
            ("train", ["text\tlabel", "x\t1"], r"no column 'sentence'; .* --text-columns among: text, label"),
            ("valid", ["sentence\ty", "x\t1"], r"no column 'label'; .* --label-column among: sentence, y"),
        ],
    )
    def test_bad_rows(self, tmp_path: Path, split: str, lines: list[str], message: str) -> None:
        path = table(tmp_path / "a.tsv", *lines)
        config = DelimitedSourceConfig(**{f"{split}_file": path})  # type: ignore[arg-type]
        with pytest.raises(DataError, match=message):
            list(TsvSource(config, glue_task("sst2")).rows(split))

    def test_bad_cells_name_the_row_in_every_format(self, tmp_path: Path) -> None:
        rows = [{"sentence": "x", "label": 1}, {"sentence": "y", "label": 5}]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
        datasets.DatasetDict(train=datasets.Dataset.from_list(rows)).save_to_disk(str(tmp_path / "set"))
        table(tmp_path / "t.label", "1", "5"), table(tmp_path / "t.sentence", "x", "y")
        sources: list[tuple[Any, str]] = [
            (
                partial(ParquetSource, TableSourceConfig(train_file=str(tmp_path / "a.parquet"))),
                r"a\.parquet, row 2: label '5'",
            ),
            (
                partial(DatasetsSource, DatasetsSourceConfig(dataset=str(tmp_path / "set"))),
                "train split, row 2: label '5'",
            ),
            (partial(TextSource, TextSourceConfig(train_prefix=str(tmp_path / "t"))), r"t\.label:2: label '5'"),
        ]
        for make, message in sources:
            with pytest.raises(DataError, match=message):
                list(make(glue_task("sst2")).rows("train"))

    @pytest.mark.parametrize(
        ("task", "cell", "message"),
        [
            ("sst2", 7, "'7' is not one of negative, positive"),
            ("sst2", 0.5, "label 0.5 is a number and not a class"),
            ("stsb", "high", "'high' is not a number"),
            ("stsb", 5.1, "5.1 is not from 0 to 5"),
            ("stsb", "-0.5", "'-0.5' is not from 0 to 5"),
        ],
    )
    def test_advice_for_published_tasks_can_be_followed(
        self, tmp_path: Path, task: str, cell: object, message: str
    ) -> None:
        row = {"sentence": "x", "sentence1": "x", "sentence2": "x", "label": cell}
        path = table(tmp_path / "a.jsonl", json.dumps(row))
        with pytest.raises(DataError, match=f"{message}; mend the row, or choose another --label-column$"):
            list(JsonlSource(TableSourceConfig(train_file=path), glue_task(task)).rows("train"))

    def test_scores(self, tmp_path: Path) -> None:
        path = table(tmp_path / "a.csv", "sentence1,sentence2,score", 'a,"b, c",3.8', "d,e,")
        rows = list(CsvSource(DelimitedSourceConfig(train_file=path), glue_task("stsb")).rows("train"))
        assert rows[0] == ("a", "b, c", 3.8) and math.isnan(rows[1][2])
        path = table(tmp_path / "c.csv", "sentence1,sentence2,score", "a,b,0", "a,b,5.000", "a,b,-1")
        rows = list(CsvSource(DelimitedSourceConfig(train_file=path), glue_task("stsb")).rows("train"))
        np.testing.assert_array_equal([row[2] for row in rows], [0.0, 5.0, math.nan])
        path = table(tmp_path / "b.csv", "sentence1,sentence2,score", "a,b,high")
        with pytest.raises(DataError, match=r"b\.csv:2: 'high' is not a number"):
            list(CsvSource(DelimitedSourceConfig(train_file=path), glue_task("stsb")).rows("train"))

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({}, "give --glue-task NAME, or --text-columns"),
            ({"text_columns": ("a", "b", "c")}, "takes one column or two"),
            ({"text_columns": ("a",), "regression": True, "label_names": ("x", "y")}, "leave out one"),
            ({"text_columns": ("a",), "label_names": ("x", "x")}, "holds a name twice"),
            ({"glue_task": "rte", "label_names": ("x", "y")}, "--glue-task rte brings its own labels"),
            ({"glue_task": "rte", "text_columns": ("a",)}, "--glue-task rte has 2 of them, not 1"),
            ({"glue_task": "rte", "test_mm_file": "x.tsv"}, "--test-mm-file: only --glue-task mnli"),
        ],
    )
    def test_flags_that_do_not_go_together(self, given: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            GlueDataConfig(**given)


@given(
    rows=st.lists(
        st.tuples(st.text("ab", max_size=4), st.text("ab", max_size=4), st.integers(-1, 2)), min_size=1, max_size=9
    ),
    empty=st.sampled_from(["drop", "keep"]),
    may_drop=st.booleans(),
)
def test_values_stay_with_their_rows(rows: list[tuple[str, str, int]], empty: str, may_drop: bool) -> None:
    layout = glue(GlueDataConfig(text_columns=("a", "b"), label_names=("x", "y", "z")))

    def encode(texts: list[str], role: str) -> Rows:
        assert role == "source"
        return Rows.join([[ord(sign) for sign in text] for text in texts])

    encoder = BlockEncoder(encode, layout.columns, Rules(empty), None, [])
    found = encoder([list(cells) for cells in zip(*rows, strict=True)], may_drop)
    kept = [row for row in rows if all(row[:2]) or not may_drop or empty == "keep"]
    text_a, text_b, label = (found.columns[name] for name in ("text_a", "text_b", "label"))
    assert isinstance(text_a, Rows) and isinstance(text_b, Rows) and isinstance(label, np.ndarray)
    decoded = [["".join(map(chr, ids)) for ids in column.split()] for column in (text_a, text_b)]
    assert list(zip(*decoded, label.tolist(), strict=True)) == kept and label.dtype == np.int64
    expected = Counter(lines=len(rows), empty=sum(not all(row[:2]) for row in rows))
    expected += Counter(unlabelled=sum(row[2] == -1 for row in rows), dropped_empty=len(rows) - len(kept))
    assert +found.counts == expected
