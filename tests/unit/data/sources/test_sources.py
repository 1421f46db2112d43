"""Sources: the same pairs from every format, only \\n ends a line, and one clear line for each kind of bad input."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cktk.data.preprocessing.configs import (
    DatasetsSourceConfig,
    DelimitedSourceConfig,
    TableSourceConfig,
    TextSourceConfig,
)
from cktk.data.preprocessing.layout_configs import TranslationDataConfig
from cktk.data.preprocessing.layouts import Layout, translation
from cktk.data.sources.hub_source import DatasetsSource
from cktk.data.sources.sources import TextSource
from cktk.data.sources.tables import CsvSource, JsonlSource, ParquetSource, TsvSource
from cktk.data.sources.text import count_lines, read_lines
from cktk.errors import ConfigError, DataError

PAIRS = [("A house.", "Une maison."), ("x\u2028y\x0bz\x0c\x85", 'dit "oui", l\'été'), ("", "vide"), ("  end ", "汉字")]


def pairs_of(source: str = "en", target: str = "fr", **columns: str) -> Layout:
    """The layout of translations between two languages."""
    return translation(TranslationDataConfig(source_lang=source, target_lang=target, **columns))


def write_text(prefix: Path, pairs: list[tuple[str, str]], end: str = "\n") -> None:
    for side, lang in enumerate(("en", "fr")):
        Path(f"{prefix}.{lang}").write_bytes("".join(pair[side] + end for pair in pairs).encode())


def text_source(tmp_path: Path, **prefixes: str) -> TextSource:
    return TextSource(TextSourceConfig(**{k: str(tmp_path / v) for k, v in prefixes.items()}), pairs_of())


class TestLines:
    @given(
        lines=st.lists(st.text(st.characters(exclude_characters="\n\r", exclude_categories=["Cs"]))), bom=st.booleans()
    )
    def test_only_newline_ends_a_line(
        self, tmp_path_factory: pytest.TempPathFactory, lines: list[str], bom: bool
    ) -> None:
        lines = ["first", *lines]
        path = tmp_path_factory.mktemp("lines") / "text"
        path.write_bytes((b"\xef\xbb\xbf" if bom else b"") + "".join(line + "\r\n" for line in lines).encode())
        assert list(read_lines(path)) == lines
        assert count_lines(path) == len(lines)

    def test_last_line_without_end_counts(self, tmp_path: Path) -> None:
        (tmp_path / "text").write_bytes(b"one\n\ntwo")
        assert list(read_lines(tmp_path / "text")) == ["one", "", "two"]
        assert count_lines(tmp_path / "text") == 3

    def test_one_carriage_return_belongs_to_the_end(self, tmp_path: Path) -> None:
        (tmp_path / "text").write_bytes(b"a\rb\r\r\n")
        assert list(read_lines(tmp_path / "text")) == ["a\rb\r"]

    @pytest.mark.parametrize("bad", [b"\xff", b"caf\xe9 noir", b"\xed\xa0\x80", b"\xc3"])
    def test_invalid_utf8_names_file_and_line(self, tmp_path: Path, bad: bytes) -> None:
        (tmp_path / "text").write_bytes(b"fine\n" + bad + b"\n")
        with pytest.raises(DataError, match=r"text:2: not valid UTF-8"):
            list(read_lines(tmp_path / "text"))

    def test_damaged_gzip(self, tmp_path: Path) -> None:
        whole = gzip.compress(b"some text\n" * 1000)
        for name, content in (("cut.gz", whole[:-20]), ("plain.gz", b"not gzip at all")):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(DataError, match=rf"{name}: damaged gzip"):
                list(read_lines(tmp_path / name))


class TestParallelText:
    @pytest.mark.parametrize("end", ["\n", "\r\n"])
    def test_pairs(self, tmp_path: Path, end: str) -> None:
        write_text(tmp_path / "train", PAIRS, end)
        source = text_source(tmp_path, train_prefix="train")
        assert source.splits() == ["train"]
        assert source.count("train") == len(PAIRS)
        assert list(source.rows("train")) == PAIRS

    def test_gzip_and_short_language_names(self, tmp_path: Path) -> None:
        write_text(tmp_path / "t", PAIRS)
        (tmp_path / "t.fr.gz").write_bytes(gzip.compress((tmp_path / "t.fr").read_bytes()))
        (tmp_path / "t.fr").unlink()
        source = TextSource(TextSourceConfig(test_prefix=str(tmp_path / "t")), pairs_of("en_XX", "fr_XX"))
        assert list(source.rows("test")) == PAIRS

    def test_unequal_counts_name_both_files(self, tmp_path: Path) -> None:
        write_text(tmp_path / "train", PAIRS)
        with open(tmp_path / "train.fr", "a") as stream:
            stream.write("one more\n")
        with pytest.raises(DataError, match=r"train\.en has 4 lines but .*train\.fr has 5"):
            text_source(tmp_path, train_prefix="train").count("train")

    def test_empty_file(self, tmp_path: Path) -> None:
        write_text(tmp_path / "train", [])
        with pytest.raises(DataError, match=r"train\.en: the file is empty"):
            text_source(tmp_path, train_prefix="train").count("train")

    def test_missing_file_names_what_was_tried(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"--valid-prefix .*nothing\.en or \S*nothing\.en\.gz$"):
            text_source(tmp_path, valid_prefix="nothing")

    def test_missing_file_lists_the_endings_that_there_are(self, tmp_path: Path) -> None:
        for name in ("t[1].en", "t[1].de", "t[1].ro.gz", "t[1].gz", "t1.it"):
            (tmp_path / name).write_bytes(b"x\n")
        (tmp_path / "t[1].folder").mkdir()
        message = r"t\[1\]\.fr or \S*t\[1\]\.fr\.gz; choose with --target-column among: de, en, ro$"
        with pytest.raises(DataError, match=message):
            text_source(tmp_path, train_prefix="t[1]")

    def test_no_split(self) -> None:
        with pytest.raises(ConfigError, match="--train-prefix"):
            TextSource(TextSourceConfig(), pairs_of())


def tsv_bytes(header: bool = True) -> bytes:
    rows = [("en", "id", "fr")] * header + [(a, "7", b) for a, b in PAIRS]
    return "".join("\t".join(row) + "\n" for row in rows).encode()


def csv_bytes() -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerows([("en", "fr"), *PAIRS])
    return text.getvalue().encode()


class TestTables:
    @pytest.mark.parametrize("ending", ["", ".gz"])
    @pytest.mark.parametrize("kind", ["tsv", "csv", "jsonl", "parquet"])
    def test_pairs(self, tmp_path: Path, kind: str, ending: str) -> None:
        path = tmp_path / f"train.{kind}{ending}"
        nested = [{"translation": {"en": a, "fr": b}} for a, b in PAIRS]
        if kind == "parquet":
            path = tmp_path / "train.parquet"
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(nested), path)
        else:
            jsonl = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in nested).encode()
            content = {"tsv": tsv_bytes(), "csv": csv_bytes(), "jsonl": jsonl}[kind]
            path.write_bytes(gzip.compress(content) if ending else content)
        delimited = kind in ("tsv", "csv")
        config = (DelimitedSourceConfig if delimited else TableSourceConfig)(train_file=str(path))
        made = {"tsv": TsvSource, "csv": CsvSource, "jsonl": JsonlSource, "parquet": ParquetSource}[kind]
        source = made(config, pairs_of())  # type: ignore[arg-type]
        assert list(source.rows("train")) == PAIRS
        assert source.count("train") == (None if kind == "csv" else len(PAIRS))

    def test_named_and_numbered_columns_and_no_header(self, tmp_path: Path) -> None:
        (tmp_path / "a.tsv").write_bytes(tsv_bytes(header=False))
        config = DelimitedSourceConfig(test_file=str(tmp_path / "a.tsv"), header=False)
        source = TsvSource(config, pairs_of("xx", "yy", source_column="3", target_column="1"))
        assert list(source.rows("test")) == [(b, a) for a, b in PAIRS]
        assert source.count("test") == len(PAIRS)

    def test_quoted_line_end_stays_in_its_cell(self, tmp_path: Path) -> None:
        (tmp_path / "a.csv").write_bytes(b'en,fr\n"two\nlines","deux, lignes"\n')
        source = CsvSource(DelimitedSourceConfig(train_file=str(tmp_path / "a.csv")), pairs_of())
        assert list(source.rows("train")) == [("two\nlines", "deux, lignes")]

    def test_pattern_takes_files_in_order(self, tmp_path: Path) -> None:
        for name in ("b", "a"):
            (tmp_path / f"part-{name}.jsonl").write_text(json.dumps({"en": name, "fr": None}) + "\n")
        source = JsonlSource(TableSourceConfig(train_file=str(tmp_path / "part-*.jsonl")), pairs_of())
        assert list(source.rows("train")) == [("a", ""), ("b", "")]
        assert source.count("train") == 2

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("a.tsv", b"en\tde\nx\ty\n", r"a\.tsv: no column 'fr'; choose with --target-column among: en, de"),
            ("a.tsv", b"en\tfr\nx\ty\nonly\n", r"a\.tsv:3: 1 columns, but line 1 has 2"),
            ("a.tsv", b"en\tfr\n", r"a\.tsv: the file holds no rows"),
            ("a.csv", b'en,fr\n"open,y\n', r"a\.csv:2: not valid CSV"),
            ("a.jsonl", b'{"en": "x", "fr": "y"}\n{"en"\n', r"a\.jsonl:2: not valid JSON"),
            ("a.jsonl", b'{"en": "x", "fr": "y"}\n{"en": "x"}\n', r"a\.jsonl:2: no column 'fr'"),
            ("a.jsonl", b'{"en": "x", "fr": 3}\n', r"a\.jsonl:1: column 'fr' holds int, not text"),
            ("a.jsonl", b'{"en": "x", "fr": "\\ud800"}\n', r"a\.jsonl:1: holds half of a surrogate pair"),
            ("a.jsonl", b"[1]\n", r"a\.jsonl:1: holds a JSON list"),
            ("a.jsonl", b'{"translation": {"en": "x", "de": "y"}}\n', r"among: translation\.en, translation\.de"),
            ("a.parquet", b"PAR1 not really", r"a\.parquet: cannot be read as Parquet"),
        ],
    )
    def test_bad_tables(self, tmp_path: Path, name: str, content: bytes, message: str) -> None:
        (tmp_path / name).write_bytes(content)
        kind = {"tsv": TsvSource, "csv": CsvSource, "jsonl": JsonlSource, "parquet": ParquetSource}[name[2:]]
        config = DelimitedSourceConfig if kind in (TsvSource, CsvSource) else TableSourceConfig
        with pytest.raises(DataError, match=message):
            source = kind(config(train_file=str(tmp_path / name)), pairs_of())  # type: ignore[arg-type]
            source.count("train")
            list(source.rows("train"))

    def test_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="--train-file .*gone.tsv: no such file"):
            TsvSource(DelimitedSourceConfig(train_file=str(tmp_path / "gone.tsv")), pairs_of())


class TestDatasets:
    def save(self, path: Path) -> None:
        rows = [{"translation": {"en": a, "fr": b}, "id": i} for i, (a, b) in enumerate(PAIRS)]
        features = datasets.Features(
            {"translation": datasets.Translation(languages=["en", "fr"]), "id": datasets.Value("int64")}
        )
        data = datasets.Dataset.from_list(rows, features=features)
        datasets.DatasetDict(train=data, validation=data.select([0]), extra=data.select([1])).save_to_disk(str(path))

    def test_wmt_style_folder(self, tmp_path: Path) -> None:
        self.save(tmp_path / "set")
        config = DatasetsSourceConfig(dataset=str(tmp_path / "set"), test_split="extra")
        source = DatasetsSource(config, pairs_of("en", "fr_XX"))
        assert source.splits() == ["train", "valid", "test"]
        assert [source.count(split) for split in source.splits()] == [4, 1, 1]
        assert list(source.rows("train")) == PAIRS
        assert list(source.rows("test")) == PAIRS[1:2]

    def test_errors(self, tmp_path: Path) -> None:
        self.save(tmp_path / "set")
        name = str(tmp_path / "set")
        with pytest.raises(DataError, match=r"--test-split: unknown name 'extr'; did you mean extra\?"):
            DatasetsSource(DatasetsSourceConfig(dataset=name, test_split="extr"), pairs_of())
        with pytest.raises(DataError, match=r"no column 'de'; .* among: translation\.en, translation\.fr"):
            DatasetsSource(DatasetsSourceConfig(dataset=name), pairs_of("en", "de")).count("train")
        with pytest.raises(DataError, match="nowhere: cannot be loaded"):
            DatasetsSource(DatasetsSourceConfig(dataset=str(tmp_path / "nowhere")), pairs_of())
