"""Rules for unusual lines against a naive reference, and shards that are continued, never mixed or rewritten."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cktk.data.preprocessing import binarize
from cktk.data.preprocessing.binarize import Binarizer
from cktk.data.preprocessing.blocks import Block, BlockEncoder, Encoded, Rules
from cktk.data.preprocessing.layouts import Column
from cktk.data.tokenization.encoder import Rows
from cktk.errors import DataError

UNKNOWN, SPECIAL = 3, 2
SIDES = (Column("source", "--source-column"), Column("target", "--target-column", role="target"))


def encode(texts: list[str], role: str) -> Rows:
    """A toy tokenizer: one token a character, "?" is unknown, "$" spells a special token."""
    shift = 10 if role == "source" else 20
    table = {"?": UNKNOWN, "$": SPECIAL}
    return Rows.join([[table.get(sign, shift + ord(sign) % 10) for sign in text] for text in texts])


def lists(rows: Rows) -> list[list[int]]:
    return [row.tolist() for row in rows.split()]


texts = st.lists(st.tuples(st.text("ab?$", max_size=6), st.text("ab?$", max_size=6)), min_size=1, max_size=12)


@given(
    pairs=texts,
    empty=st.sampled_from(["drop", "keep"]),
    overlong=st.sampled_from(["keep", "truncate", "drop"]),
    limit=st.integers(1, 6),
    may_drop=st.booleans(),
)
def test_rules(pairs: list[tuple[str, str]], empty: str, overlong: str, limit: int, may_drop: bool) -> None:
    encoder = BlockEncoder(encode, SIDES, Rules(empty, overlong, limit), UNKNOWN, [SPECIAL])
    sources, targets = map(list, zip(*pairs, strict=True))
    found = encoder([sources, targets], may_drop)

    expected: list[tuple[list[int], list[int]]] = []
    counts: Counter[str] = Counter()
    for pair in pairs:
        is_empty, is_long = not all(pair), max(map(len, pair)) > limit
        counts += Counter(lines=1, empty=is_empty, overlong=is_long)
        if may_drop and empty == "drop" and is_empty:
            counts["dropped_empty"] += 1
            continue
        if may_drop and overlong == "drop" and is_long:
            counts["dropped_overlong"] += 1
            continue
        if overlong == "truncate":
            counts["truncated"] += is_long
            pair = (pair[0][:limit], pair[1][:limit])
        counts["unknown"] += pair[0].count("?") + pair[1].count("?")
        counts["special"] += "$" in pair[0] + pair[1]
        expected.append((encode([pair[0]], "source").ids.tolist(), encode([pair[1]], "target").ids.tolist()))
    assert list(zip(lists(found.columns["source"]), lists(found.columns["target"]), strict=True)) == expected
    assert {name: number for name, number in found.counts.items() if number} == +counts


PAIRS = [(f"a{'b' * (i % 5)}", f"b{'a' * (i % 7)}") for i in range(25)]


def submit(block: Block, may_drop: bool) -> Callable[[], Encoded]:
    return partial(BlockEncoder(encode, SIDES, Rules(), UNKNOWN, [SPECIAL]), block, may_drop)


def write(folder: Path, pairs: list[tuple[str, str]], shard_size: int = 10) -> dict[str, object]:
    return Binarizer(folder, submit, 40, shard_size).split("train", iter(pairs), lambda lines: None)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_blocks_and_shards_keep_the_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binarize, "BLOCK_LINES", 3)
    seen: list[int] = []
    split = Binarizer(tmp_path, submit, 40, 10).split("train", iter(PAIRS), seen.append)
    assert [shard["rows"] for shard in split["shards"]] == [10, 10, 5]
    assert sum(seen) == split["counts"]["lines"] == len(PAIRS)
    found = np.concatenate([np.fromfile(tmp_path / f"train-0000{i}.target.bin", "<u2") for i in range(3)])
    assert found.tolist() == encode([pair[1] for pair in PAIRS], "target").ids.tolist()


def test_interrupted_and_continued_is_uninterrupted(tmp_path: Path) -> None:
    whole, part = tmp_path / "whole", tmp_path / "part"
    whole.mkdir(), part.mkdir()
    expected = write(whole, PAIRS)

    def breaking() -> Iterator[tuple[str, str]]:
        yield from PAIRS[:22]
        raise DataError("line 23 is damaged")

    with pytest.raises(DataError, match="line 23"):
        Binarizer(part, submit, 40, 10).split("train", breaking(), lambda lines: None)
    before = {path.name: path.stat().st_mtime_ns for path in part.iterdir()}
    assert "train-00000.json" in before
    assert write(part, PAIRS) == expected
    assert files(part) == files(whole)
    assert all((part / name).stat().st_mtime_ns == time for name, time in before.items())


def test_a_shard_without_its_json_or_with_a_cut_file_is_made_again(tmp_path: Path) -> None:
    expected = write(tmp_path, PAIRS)
    before = files(tmp_path)
    (tmp_path / "train-00000.json").unlink()
    (tmp_path / "train-00001.source.bin").write_bytes(b"")
    assert write(tmp_path, PAIRS) == expected
    assert files(tmp_path) == before


@pytest.mark.parametrize("pairs", [[("other", "text"), *PAIRS[1:]], PAIRS[:10], [*PAIRS, ("one", "more")]])
def test_other_text_is_refused_and_nothing_overwritten(tmp_path: Path, pairs: list[tuple[str, str]]) -> None:
    write(tmp_path, PAIRS)
    before = files(tmp_path)
    with pytest.raises(DataError, match=r"train-0000\d: was made from other text"):
        write(tmp_path, pairs)
    assert files(tmp_path) == before


def test_a_shard_may_lose_all_its_rows_but_a_split_may_not(tmp_path: Path) -> None:
    split = write(tmp_path, [("", "x")] * 10 + PAIRS)
    assert [shard["rows"] for shard in split["shards"]] == [0, 10, 10, 5]  # type: ignore[index, attr-defined]
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match=r"train: no row remains \(10 lines"):
        write(tmp_path / "none", [("", "x")] * 10)
