"""Layouts: the columns of each task from every kind of source, and one clear line for what does not belong there."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cktk.data.preprocessing.blocks import BlockEncoder, Rules
from cktk.data.preprocessing.configs import (
    DelimitedSourceConfig,
    TableSourceConfig,
    TextSourceConfig,
)
from cktk.data.preprocessing.layout_configs import (
    GlueDataConfig,
    PretrainingDataConfig,
    SummarizationDataConfig,
    TranslationDataConfig,
)
from cktk.data.preprocessing.layouts import glue, pretraining, summarization, translation
from cktk.data.sources.sources import TextSource
from cktk.data.sources.tables import CsvSource, JsonlSource, ParquetSource
from cktk.data.sources.values import Labels, Numbers
from cktk.data.tokenization.encoder import Rows
from cktk.errors import DataError
from tests.unit.data.preprocessing.rows import read, table


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
