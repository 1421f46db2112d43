from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cktk.data.teacher_cache import cached_split
from cktk.data.teacher_cache.cache_writer import cache_shard, prepare_cache, write_cache_manifest
from cktk.data.teacher_cache.cached_split import CachedSplit
from cktk.data.teacher_cache.reader import (
    CacheKey,
    TeacherCache,
    finished_cache_shard,
    row_digests,
    shard_fingerprint,
)
from cktk.errors import CktkError, ConfigError, DataError
from cktk.protocols import IGNORED, Batch, ModelOutput, SparseTargets
from tests.unit.data import folders

WIDTH = 3
KEY = CacheKey(
    teacher="t" * 64,
    vocab_size=100,
    width=WIDTH,
    kind="top_k",
    k=2,
    temperature=1.0,
    seed=None,
    precision="float32",
    states={"encoder": (0, 2), "decoder": (1,)},
    states_dtype="float32",
    rows={"task": "translation", "source_lang": "en"},
)


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch):
    """Waiting for the disk is not what these tests are about, and some make many files."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def make(folder, shards, **changes):
    folder.mkdir(parents=True)
    return folders.make(folder, shards, **changes)


def batch_of(lengths, first=0, extra=0):
    """Row i has ``lengths[i]`` = (attended, scored) positions, of tokens that follow from its number."""
    widest = [max((pair[side] for pair in lengths), default=0) + extra for side in (0, 1)]
    ids, labels = torch.full((len(lengths), widest[0]), 1), torch.full((len(lengths), widest[1]), IGNORED)
    mask, decoder = torch.zeros_like(ids), torch.full_like(labels, 1)
    for row, (source, target) in enumerate(lengths):
        generator = torch.Generator().manual_seed(first + row)
        ids[row, :source] = torch.randint(4, 100, (source,), generator=generator)
        labels[row, :target] = torch.randint(4, 100, (target,), generator=generator)
        mask[row, :source] = 1
        decoder[row, :target] = torch.randint(4, 100, (target,), generator=generator)
    inputs = {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": decoder}
    return Batch(inputs, labels, list(range(first, first + len(lengths))))


def select(lengths, rows):
    """The batch of ``rows`` in that order, each as in `batch_of` of all."""
    parts = [batch_of([lengths[row]], first=row) for row in rows]
    batch = batch_of([lengths[row] for row in rows])
    for at, part in enumerate(parts):
        for name, table in batch.inputs.items():
            table[at, : part.inputs[name].shape[1]] = part.inputs[name][0]
        batch.labels[at, : part.labels.shape[1]] = part.labels[0]
    batch.ids = list(rows)
    return batch


def answer(row, lengths, key):
    """What the teacher says about one row: every number tells row, position, column and what it is."""
    source, target = lengths[row]
    base = 1000.0 * row
    at = torch.arange(target)[:, None] * 10 + torch.arange(key.k)
    states = {
        (side, layer): base + 100.0 * layer + torch.arange(count)[:, None] * 4 + torch.arange(key.width)
        for side, count in (("encoder", source), ("decoder", target))
        for layer in key.states.get(side, ())
    }
    log_probs = -(base + at.float() / 16)
    return ModelOutput(
        hidden=states,
        targets=SparseTargets((row * 7 + at) % key.vocab_size, log_probs, key.kind == "sampled", key.temperature),
    )


def answers(rows, lengths, key):
    """The answers to ``rows`` joined, as a model would give them for the batch."""
    found = [answer(row, lengths, key) for row in rows]
    return ModelOutput(
        hidden={name: torch.cat([one.hidden[name] for one in found]) for name in found[0].hidden},
        targets=replace(
            found[0].targets,
            ids=torch.cat([one.targets.ids for one in found]),
            log_probs=torch.cat([one.targets.log_probs for one in found]),
        ),
    )


def write(folder, data, lengths, key=KEY, batches=None):
    """A cache of the split train of ``data``, whose rows have ``lengths``; ``batches`` lists rows by batch."""
    prepare_cache(folder, key)
    first, entries = 0, []
    for entry in data.entries("train"):
        stop = first + entry["rows"]
        fingerprint = shard_fingerprint(data, entry)
        with cache_shard(folder, entry["name"], key, fingerprint, first, entry["rows"]) as writer:
            for rows in batches or [[row] for row in range(first, stop)]:
                if rows := [row for row in rows if first <= row < stop]:
                    writer.add(select(lengths, rows), answers(rows, lengths, key))
        entries.append(finished_cache_shard(folder, entry["name"], key, fingerprint))
        first = stop
    write_cache_manifest(folder, key, {"train": entries})
    return TeacherCache(folder)


LENGTHS = [(3, 2), (1, 4), (2, 0), (5, 1)]


def small(tmp_path, **changes):
    data = make(tmp_path / "data", [[[5, 6], [7]], [[8], [9]]])
    return data, write(tmp_path / "cache", data, LENGTHS, replace(KEY, **changes))


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.lists(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 4)), max_size=4), min_size=1, max_size=4),
    st.sampled_from([100, 65_536, 65_537]),
    st.sampled_from(["float32", "bfloat16"]),
    st.sampled_from([{}, {"encoder": (1,)}, {"encoder": (0, 2), "decoder": (1, 3)}]),
    st.integers(1, 3),
    st.randoms(),
)
def test_what_was_written_comes_back_in_any_order(tmp_path_factory, shards, vocab, dtype, states, k, random):
    key = replace(KEY, vocab_size=vocab, states_dtype=dtype, states=states, k=k)
    folder = tmp_path_factory.mktemp("folder")
    data = make(folder / "data", [[[4]] * len(rows) for rows in shards])
    lengths = [pair for rows in shards for pair in rows]
    order = random.sample(range(len(lengths)), len(lengths))
    cache = write(folder / "cache", data, lengths, key, [order[at : at + 2] for at in range(0, len(order), 2)])
    cache.verify()
    cache.check(data, ["train"], key.rows)
    split = CachedSplit(cache, "train")
    assert len(split) == len(lengths) and cache.key == key
    asked = [random.choice(order) for _ in range(5)] if order else []
    if not asked:
        assert split.targets([]).ids.shape == (0, k)
        return
    expected = answers(asked, lengths, key)
    targets = split.targets(asked)
    assert torch.equal(targets.ids, expected.targets.ids) and targets.ids.dtype == torch.int64
    assert torch.equal(targets.log_probs, expected.targets.log_probs)
    for (side, layer), state in expected.hidden.items():
        found = split.states(side, layer, asked)
        assert found.dtype == getattr(torch, dtype) and torch.equal(found, state.to(found.dtype))
    np.testing.assert_array_equal(split.digests(asked), row_digests(select(lengths, asked)))


def test_nothing_is_asked_for(tmp_path):
    split = CachedSplit(small(tmp_path, states_dtype="bfloat16")[1], "train")
    assert split.targets([]).log_probs.shape == (0, 2)
    assert split.states("encoder", 2, []).shape == (0, WIDTH) and split.digests([]).shape == (0,)
    assert split.states("decoder", 1, [2]).shape == (0, WIDTH)


def test_few_files_are_open_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(cached_split, "_OPEN_FILES", 2)
    _, cache = small(tmp_path)
    split = CachedSplit(cache, "train")
    expected = answers([3, 0, 1], LENGTHS, KEY)
    assert torch.equal(split.states("encoder", 2, [3, 0, 1]), expected.hidden["encoder", 2])
    assert torch.equal(split.targets([3, 0, 1]).ids, expected.targets.ids)
    assert len(split._open) == 2


def test_size_is_foretold(tmp_path):
    for dtype in ("float32", "bfloat16"):
        _, cache = small(tmp_path / dtype, states_dtype=dtype)
        written = sum(path.stat().st_size for path in cache.path.iterdir() if path.suffix != ".json")
        positions = {"encoder": sum(s for s, _ in LENGTHS), "decoder": sum(t for _, t in LENGTHS)}
        assert cache.key.bytes(len(LENGTHS), positions) == written


@pytest.mark.parametrize("end", ["rows", "ids", "logp", "encoder-2", "decoder-1"])
def test_a_flipped_bit_is_found(tmp_path, end):
    _, cache = small(tmp_path)
    path = cache.path / f"train-00001.{end}"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"train-00001.{end}: checksum differs"):
        TeacherCache(cache.path).verify()


@pytest.mark.parametrize("end", ["rows", "ids", "logp", "encoder-0"])
def test_missing_and_cut_files_are_refused_when_it_is_opened(tmp_path, end):
    _, cache = small(tmp_path)
    path = cache.path / f"train-00000.{end}"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=rf"train-00000.{end}: has \d+ bytes instead of \d+; it is damaged"):
        TeacherCache(cache.path)
    path.unlink()
    with pytest.raises(DataError, match=rf"train-00000.{end}: file of the teacher cache is missing"):
        TeacherCache(cache.path)


def test_what_points_nowhere_is_damaged(tmp_path):
    _, cache = small(tmp_path)
    records = cache.path / "train-00000.rows"
    found = np.fromfile(records, cache.key.columns()["rows"].dtype)
    found["decoder"][1] = 1_000
    found.tofile(records)
    with pytest.raises(DataError, match="damaged in split train .*row 1 points beyond the end of train-00000.ids"):
        CachedSplit(cache, "train").targets([1])
    ids = cache.path / "train-00001.ids"
    ids.write_bytes(b"\xff" * ids.stat().st_size)
    with pytest.raises(DataError, match="token id 65535 of a vocabulary of 100"):
        CachedSplit(cache, "train").targets([3])


def test_folders_that_are_no_cache(tmp_path):
    with pytest.raises(DataError, match="no such teacher cache; make it with cktk-cache-teacher"):
        TeacherCache(tmp_path / "absent")
    with pytest.raises(DataError, match=r"not a teacher cache \(manifest.json is missing\)"):
        TeacherCache(tmp_path)
    data, cache = small(tmp_path)
    manifest = cache.path / "manifest.json"
    content = json.loads(manifest.read_text())
    for broken in ({**content, "schema": 2}, [], {**content, "splits": {"train": [{"name": "x"}]}}):
        manifest.write_text(json.dumps(broken))
        with pytest.raises(DataError, match=r"manifest.json: not a"):
            TeacherCache(cache.path)
    with pytest.raises(DataError, match="not a teacher cache"):
        TeacherCache(data.path)
    manifest.unlink()
    with pytest.raises(DataError, match="was not finished"):
        TeacherCache(cache.path)


def test_stale_caches_are_refused_with_their_mend(tmp_path):
    data, cache = small(tmp_path)
    cache.check(data, ["train"], KEY.rows)
    with pytest.raises(ConfigError, match=r"has no split valid \(but train\).*--splits valid"):
        cache.check(data, ["train", "valid"], KEY.rows)
    with pytest.raises(ConfigError, match="made with source-lang = en, now source-lang = fr"):
        cache.check(data, ["train"], {**KEY.rows, "source_lang": "fr"})
    with pytest.raises(ConfigError, match="prompt = None, now prompt = x"):
        cache.check(data, ["train"], {**KEY.rows, "prompt": "x"})
    cache.check_teacher(KEY.teacher, "T")
    with pytest.raises(ConfigError, match="another teacher than T"):
        cache.check_teacher("u" * 64, "T")
    others = [
        make(tmp_path / "tokens", [[[5, 6], [7]], [[8], [10]]]),
        make(tmp_path / "split", [[[5, 6], [7], [8]], [[9]]]),
        make(tmp_path / "tokenizer", [[[5, 6], [7]], [[8], [9]]], vocab_size=99),
    ]
    manifest = others[2].path / "manifest.json"
    manifest.write_text(manifest.read_text().replace("f" * 64, "e" * 64))
    others[2] = type(data)(others[2].path)
    for other in others:
        with pytest.raises(DataError, match=f"stale: the split train of {other.path} .*run cktk-cache-teacher again"):
            cache.check(other, ["train"], KEY.rows)


def test_a_finished_shard_is_known_by_key_and_data(tmp_path):
    data, cache = small(tmp_path)
    fingerprint = shard_fingerprint(data, data.entries("train")[1])
    assert finished_cache_shard(cache.path, "train-00001", KEY, fingerprint) == cache.entries()[1]
    assert finished_cache_shard(cache.path, "train-00002", KEY, fingerprint) is None
    content = bytearray((cache.path / "train-00001.logp").read_bytes())
    content[len(content) // 2] ^= 4
    (cache.path / "train-00001.logp").write_bytes(content)
    assert finished_cache_shard(cache.path, "train-00001", KEY, fingerprint) is None, "to be made again"
    assert finished_cache_shard(cache.path, "train-00001", replace(KEY, k=3), fingerprint) is None
    assert finished_cache_shard(cache.path, "train-00001", KEY, "0" * 64) is None
    (cache.path / "train-00001.logp").unlink()
    assert finished_cache_shard(cache.path, "train-00001", KEY, fingerprint) is None


def test_an_error_inside_a_shard_leaves_nothing(tmp_path):
    prepare_cache(tmp_path / "cache", KEY)
    with pytest.raises(RuntimeError), cache_shard(tmp_path / "cache", "train-00000", KEY, "d", 0, 2) as writer:
        writer.add(select(LENGTHS, [0]), answers([0], LENGTHS, KEY))
        raise RuntimeError
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["cache.json"]


KILLED = """
import os, sys
from pathlib import Path
from tests.unit.data.teacher_cache.test_teacher_cache import KEY, LENGTHS, answers, cache_shard, prepare_cache, select
folder = Path(sys.argv[1])
prepare_cache(folder, KEY)
with cache_shard(folder, "train-00000", KEY, "d", 0, 2) as writer:
    writer.add(select(LENGTHS, [0]), answers([0], LENGTHS, KEY))
    os._exit(9)
"""


def test_what_a_kill_inside_a_shard_left_is_swept(tmp_path):
    folder = tmp_path / "cache"
    root = Path(__file__).resolve().parents[4]
    done = subprocess.run([sys.executable, "-c", KILLED, str(folder)], cwd=root, check=False)
    assert done.returncode == 9 and len(list(folder.iterdir())) > 3
    assert finished_cache_shard(folder, "train-00000", KEY, "d") is None
    prepare_cache(folder, KEY)
    assert [path.name for path in folder.iterdir()] == ["cache.json"]
    data = make(tmp_path / "data", [[[5, 6], [7]], [[8], [9]]])
    write(folder, data, LENGTHS).verify()


def test_a_folder_is_continued_only_with_its_own_key(tmp_path):
    small(tmp_path)
    folder = tmp_path / "cache"
    prepare_cache(folder, KEY)
    for changes, words in (
        ({"k": 5}, "made with k = 2, not 5"),
        ({"teacher": "u" * 64}, "made from another teacher"),
        ({"rows": {**KEY.rows, "source_lang": "fr"}}, "made with source-lang = en, not fr"),
        ({"states": {}}, "made with states"),
    ):
        with pytest.raises(ConfigError, match=f"--cache-dir {folder}: was {words}.*another folder"):
            prepare_cache(folder, replace(KEY, **changes))
    with pytest.raises(ConfigError, match="holds other data"):
        prepare_cache(tmp_path / "data", KEY)
    with pytest.raises(ConfigError, match="is a file"):
        prepare_cache(folder / "cache.json", KEY)
    (folder / "cache.json").write_text("{}")
    with pytest.raises(ConfigError, match="not of this version"):
        prepare_cache(folder, KEY)


def test_splits_join_the_manifest(tmp_path):
    _, cache = small(tmp_path)
    write_cache_manifest(cache.path, KEY, {"valid": cache.entries("train")[:1]})
    found = TeacherCache(cache.path)
    assert found.splits == ["train", "valid"]
    assert len(CachedSplit(found, "train")) == 4 and len(CachedSplit(found, "valid")) == 2


@pytest.mark.parametrize("rows", [[[0, 1], [1]], [[0], [3]], [[0], [-1]]])
def test_every_row_of_the_shard_is_given_once(tmp_path, rows):
    prepare_cache(tmp_path / "cache", KEY)
    with pytest.raises(ValueError, match="rows twice or of another shard"):
        with cache_shard(tmp_path / "cache", "train-00000", KEY, "d", 0, 3) as writer:
            for ids in rows:
                writer.add(select(LENGTHS, ids), answers(ids, LENGTHS, KEY))
    with pytest.raises(ValueError, match="leaves out row 11"):
        with cache_shard(tmp_path / "cache", "train-00000", KEY, "d", 10, 2) as writer:
            batch = select(LENGTHS, [0])
            batch.ids = [10]
            writer.add(batch, answers([0], LENGTHS, KEY))


@pytest.mark.parametrize("what", ["probabilities", "state encoder-2"])
def test_what_is_not_finite_is_refused(tmp_path, what):
    prepare_cache(tmp_path / "cache", KEY)
    said = answers([1], LENGTHS, KEY)
    (said.targets.log_probs if what == "probabilities" else said.hidden["encoder", 2])[0, 0] = torch.nan
    with pytest.raises(CktkError, match=f"the teacher's {what} of the batch that begins with row 1 are not finite"):
        with cache_shard(tmp_path / "cache", "train-00000", KEY, "d", 0, 2) as writer:
            writer.add(select(LENGTHS, [1]), said)


def test_digests_see_every_token_and_no_padding():
    batch = batch_of(LENGTHS)
    digests = row_digests(batch)
    assert len(set(digests.tolist())) == len(LENGTHS)
    np.testing.assert_array_equal(row_digests(batch_of(LENGTHS, extra=3)), digests)
    np.testing.assert_array_equal(row_digests(select(LENGTHS, [3, 1])), digests[[3, 1]])
    for name in ("input_ids", "decoder_input_ids", "labels"):
        changed = batch_of(LENGTHS)
        (changed.labels if name == "labels" else changed.inputs[name])[1, 0] += 1
        assert (row_digests(changed) != digests).tolist() == [False, True, False, False], name
    longer = batch_of(LENGTHS)
    longer.inputs["attention_mask"][1, 1] = 1
    assert (row_digests(longer) != digests).tolist() == [False, True, False, False]
