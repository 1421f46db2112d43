"""Rows of classification and regression: GLUE's own, and those of any table."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from cktk.data.glue import GLUE_TASKS
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
)
from cktk.data.preprocessing.layouts import glue, pretraining
from cktk.data.sources import hub_source
from cktk.data.sources.glue_files import GlueSource
from cktk.data.sources.hub_source import DatasetsSource
from cktk.data.sources.sources import TextSource, open_source
from cktk.data.sources.tables import CsvSource, JsonlSource, ParquetSource, TsvSource
from cktk.errors import ConfigError, DataError
from tests.unit.data.preprocessing.rows import glue_task, read, save_classes, saved, table


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
