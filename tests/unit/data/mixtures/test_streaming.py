from __future__ import annotations

import gc
import json
import logging
import threading
import time
from concurrent.futures import wait

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cktk.data.batch_config import BatchingConfig
from cktk.data.iterators import PlannedBatches
from cktk.data.mixtures.background import Background
from cktk.data.mixtures.mixture import StoredCorpus, mixed_batches
from cktk.data.mixtures.mixture_config import MixtureConfig
from cktk.data.mixtures.streaming import SampleStream, StreamCorpus, TextStream, open_streams
from cktk.data.sources.stream_sources import StreamSpec
from cktk.errors import CheckpointError, ConfigError, DataError
from cktk.protocols import Batch
from tests.unit.data.mixtures.test_mixture import play

TEXTS = [f"{number} " * (1 + number % 4) for number in range(10, 57)]
TEXTS[5] = ""


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The same texts in every form that a stream may have."""
    folder = tmp_path_factory.mktemp("streams")
    datasets.disable_progress_bars()
    for number, part in enumerate((TEXTS[:20], TEXTS[20:])):
        lines = [json.dumps({"text": text, "id": text[:2]}) for text in part]
        (folder / f"part{number}.jsonl").write_text("\n".join(lines) + "\n")
        datasets.Dataset.from_dict({"text": part}).to_parquet(folder / f"part{number}.parquet")
    whole = datasets.Dataset.from_dict({"text": TEXTS})
    whole.save_to_disk(folder / "single", num_shards=2)
    datasets.DatasetDict(train=whole.select([0]), more=whole).save_to_disk(folder / "splits")
    (folder / "lines.txt").write_text("\n".join(TEXTS) + "\n")
    return {
        "jsonl": f"en={folder}/part*.jsonl",
        "parquet": f"en={folder}/part*.parquet",
        "saved": f"en={folder}/single",
        "saved splits": f"en={folder}/splits::more",
        "text": f"en={folder}/lines.txt",
    }


def encode(texts: list[str]) -> list[np.ndarray]:
    return [np.array([int(word) for word in text.split()], np.int64) for text in texts]


def corpus(spec: str, column: str = "text", background: Background | None = None, **options) -> StreamCorpus:
    stream = TextStream(StreamSpec.parse(spec), column)
    stream.open()
    samples = SampleStream(stream, encode, **{"room": 3, "separator": None, "chunk_texts": 8, **options})
    return StreamCorpus(samples, lambda lengths: np.stack([lengths, lengths + 1], 1), background or Background(1))


def taken(one: StreamCorpus, start: int, stop: int) -> list[list[int]]:
    numbers, lengths = one.take(start, stop)
    found = [one.place(number).ids.tolist() for number in numbers.tolist()]
    assert lengths.tolist() == [[len(ids), len(ids) + 1] for ids in found]
    return found


WHOLE = [ids.tolist()[:3] for ids in encode(TEXTS) if len(ids)]


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "saved", "saved splits", "text"])
def test_every_form_gives_its_texts_pass_after_pass_and_goes_on_from_any_state(sources, kind, caplog):
    caplog.set_level(logging.INFO)
    one, seen = corpus(sources[kind]), []
    for start in range(0, 110, 11):
        seen += taken(one, start, start + 11)
    assert seen == (WHOLE * 3)[:110]
    assert "the stream en has ended after 46 samples and starts over" in caplog.text
    for start in (0, 33, 44, 99):
        ahead = corpus(sources[kind])
        for at in range(0, start, 11):
            taken(ahead, at, at + 11)
        state = json.loads(json.dumps(ahead.state(start)))
        again = corpus(sources[kind])
        again.load_state(start, state)
        assert taken(again, start, start + 30) == (WHOLE * 4)[start : start + 30]


@settings(max_examples=8, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.integers(1, 60), st.sampled_from([None, 2]), st.data())
def test_windows_and_chunks_of_any_size_give_one_sequence(sources, sizes, chunk, separator, data):
    options = {"chunk_texts": chunk, "separator": separator, "room": 4}
    whole = taken(corpus(sources["parquet"], **options), 0, sum(sizes))
    one, seen, at, states = corpus(sources["parquet"], **options), [], 0, {}
    for size in sizes:
        seen += taken(one, at, at + size)
        at += size
    assert seen == whole
    stop = data.draw(st.integers(0, len(sizes) - 1))
    one, at = corpus(sources["parquet"], **options), 0
    for size in sizes[:stop]:
        taken(one, at, at + size)
        at += size
    states[at] = one.state(at)
    again = corpus(sources["parquet"], **options)
    again.load_state(at, json.loads(json.dumps(states[at])))
    assert taken(again, at, sum(sizes)) == whole[at:]


def mixture(sources: dict[str, str], **dealing) -> PlannedBatches:
    lengths = np.random.default_rng(1).integers(1, 9, (40, 2))
    corpora = [corpus(sources["jsonl"]), StoredCorpus("fr", [25, 15], lambda start, stop: lengths[start:stop], 3, 4)]
    config = MixtureConfig(mixture="weights", mixture_weights=("en=0.7", "fr=0.3"))
    batching = BatchingConfig(max_tokens=30, samples_per_epoch=50, num_workers=dealing.pop("num_workers", 0))
    return mixed_batches(corpora, load_ids, config, batching, seed=3, window_rows=20, **dealing)


def load_ids(places):
    told = [[place.pass_, place.row, 0 if place.ids is None else int(place.ids.sum())] for place in places]
    return Batch({"attention_mask": torch.ones(len(told), 1)}, torch.tensor(told), [])


@pytest.mark.parametrize(("workers", "world"), [(0, 2), (1, 1)])
@pytest.mark.parametrize("point", [0, 10])
def test_a_mixture_with_streams_goes_on_as_if_nothing_had_happened(sources, workers, world, point):
    first = [mixture(sources, num_workers=workers)]
    before = play(first, 1, point)
    state = json.loads(json.dumps(first[0].state_dict()))
    again = [mixture(sources, rank=rank, world=world) for rank in range(world)]
    for rank in again:
        rank.load_state_dict(state)
    after = before + play(again, 2, 12)
    assert after == play([mixture(sources)], 1, len(after)) and None in after


def test_a_failed_batch_does_not_lose_the_window(sources):
    whole = play([mixture(sources)], 1, 12)
    one, broken = mixture(sources), [False]

    def fragile(places):
        if broken[0]:
            raise DataError("broken")
        return load_ids(places)

    one._load = fragile
    seen = play([one], 1, 5)
    broken[0] = True
    with pytest.raises(DataError):
        one.next_update(1)
    broken[0] = False
    assert seen + play([one], 1, 7) == whole


def test_a_state_without_the_stream_is_refused(sources):
    with pytest.raises(CheckpointError, match="no position of the stream en"):
        corpus(sources["text"]).load_state(5, {})


def test_bad_streams_are_one_clear_line(sources, tmp_path):
    with pytest.raises(DataError, match=r"no column 'body'; choose with --stream-column among: text, id"):
        taken(corpus(sources["jsonl"], column="body"), 0, 1)
    with pytest.raises(DataError, match="x.jsonl: no such file"):
        corpus(f"en={tmp_path}/x.jsonl")
    with pytest.raises(DataError, match="no split 'train2'; did you mean train"):
        corpus(sources["saved splits"].replace("more", "train2"))
    (tmp_path / "empty.txt").write_text("\n\n\n")
    with pytest.raises(DataError, match="empty.txt: it holds no text"):
        taken(corpus(f"en={tmp_path}/empty.txt"), 0, 1)
    (tmp_path / "numbers.jsonl").write_text('{"text": 5}\n')
    with pytest.raises(DataError, match="column 'text' holds int, not text"):
        taken(corpus(f"en={tmp_path}/numbers.jsonl"), 0, 1)
    (tmp_path / "broken.jsonl").write_text('{"text": "a"}\n{"text": \n')
    with pytest.raises(DataError, match="broken.jsonl: cannot be read"):
        taken(corpus(f"en={tmp_path}/broken.jsonl"), 0, 1)
    (tmp_path / "a_good.jsonl").write_text('{"text": "1"}\n' * 9)
    with pytest.raises(DataError, match=r"=\S*/\*o\*.jsonl: \S*/broken.jsonl: cannot be read"):
        taken(corpus(f"en={tmp_path}/*o*.jsonl"), 0, 10)
    with pytest.raises(DataError, match=r"=\S*/\*o\*.jsonl: \S*/a_good.jsonl: no column 'body'"):
        taken(corpus(f"en={tmp_path}/*o*.jsonl", column="body"), 0, 1)
    with pytest.raises(ConfigError, match="streams have no known size"):
        mixed_batches([corpus(sources["text"])], load_ids, MixtureConfig(), BatchingConfig(), seed=1)


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("en=allenai/c4", StreamSpec("en", "allenai/c4")),
        ("en=allenai/c4:en", StreamSpec("en", "allenai/c4", "en")),
        ("ro_RO=allenai/c4:ro:validation", StreamSpec("ro_RO", "allenai/c4", "ro", "validation")),
        ("en=data::more", StreamSpec("en", "data", None, "more")),
    ],
)
def test_specs(text, spec):
    assert StreamSpec.parse(text) == spec and str(spec) == text


@pytest.mark.parametrize("text", ["allenai/c4", "=x", "en=", "en=a:b:c:d"])
def test_bad_specs(text):
    with pytest.raises(ConfigError, match="give CORPUS=NAME"):
        StreamSpec.parse(text)


def test_only_the_window_is_held(sources):
    one = corpus(sources["text"])
    for start in range(0, 200, 10):
        one.take(start, start + 10)
        assert len(one._held) == 10 and len(one._samples._chunk) <= 8
        one._samples.go_to = None  # windows in a row are read without going back
    one.state(100)
    assert min(one._marks) == 100


def test_the_next_window_is_read_beside_the_training_and_is_no_part_of_the_state(sources):
    def settled(one: PlannedBatches) -> list:
        (stream,) = (corpus for corpus in one._planner._corpora if corpus.name == "en")
        start, stop, future = stream._ahead
        return [stop - start, len(future.result(timeout=30)), stream._samples._next]

    one, whole = mixture(sources), play([mixture(sources)], 1, 30)
    seen = play([one], 1, 1)
    assert settled(one)[:2] == [17, 17]  # 0.7 of 25, without anybody asking
    states, fresh = [], []
    for _ in range(3):
        seen += play([one], 1, 2)
        settled(one)
        states.append(json.loads(json.dumps(one.state_dict())))
    for state in states:
        again = mixture(sources)
        again.load_state_dict(state)
        assert json.loads(json.dumps(again.state_dict())) == state
        fresh.append(play([again], 1, 6))
    assert seen == whole[:7] and fresh == [whole[at : at + 6] for at in (3, 5, 7)]


def test_what_is_wrong_with_a_source_is_told_when_it_is_reached_and_can_be_tried_again(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "1"}\n' * 16)
    (tmp_path / "b.jsonl").write_text('{"text": "2"}\n{"text": \n')
    one = corpus(f"en={tmp_path}/*.jsonl")
    assert taken(one, 0, 10) == [[1]] * 10
    one.ahead(10, 20)
    wait([one._ahead[2]])
    state = one.state(10)
    for where in (f"{tmp_path}/b.jsonl: cannot", r"\*.jsonl: cannot"):  # no wrong file after going back
        with pytest.raises(DataError, match=where):
            one.take(10, 20)
    assert one.state(10) == state
    (tmp_path / "b.jsonl").write_text('{"text": "2"}\n{"text": "3"}\n')
    assert taken(one, 10, 20) == [[1]] * 6 + [[2], [3], [1], [1]]


def test_reading_ends_with_the_run_even_in_the_middle_of_a_window(sources):
    background, reading = Background(1), threading.Event()
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "cktk-background"][-1:]
    one = corpus(sources["text"], background=background)
    quickly = one._samples._encode
    one._samples._encode = lambda texts: (reading.set(), time.sleep(0.02), quickly(texts))[2]
    one.ahead(0, 10**9)
    assert reading.wait(30)
    del one, background
    gc.collect()
    assert not thread.is_alive()


def test_streams_are_opened_before_anything_is_taken_and_begin_with_their_first_text(sources, tmp_path):
    (tmp_path / "x.jsonl").write_text('{"body": "none"}\n')
    specs = [sources["text"], sources["jsonl"].replace("en=", "fr="), f"de={tmp_path}/x.jsonl"]
    streams = [TextStream(StreamSpec.parse(spec), "text") for spec in specs]
    found = open_streams(streams[:2], lambda stream, background: (stream.read(2), background))
    assert [texts for texts, _ in found] == [TEXTS[:2]] * 2 and found[0][1] is found[1][1]
    with pytest.raises(DataError, match=r"--stream de=\S*: no column 'text'; choose with --stream-column among: body"):
        open_streams(streams, lambda stream, background: (stream, background))


def test_samples_that_were_not_taken_last_are_an_internal_error(sources):
    one = corpus(sources["text"])
    one.take(0, 5)
    with pytest.raises(RuntimeError, match="sample 5 of the stream en is not among those taken last"):
        one.place(5)
    with pytest.raises(RuntimeError, match="sample 3 of the stream en is not at an end of what was taken"):
        one.take(3, 4)


@pytest.mark.parametrize("kind", ["a.txt", "a.jsonl", "a.csv", "saved", "rows.parquet", "blank.jsonl"])
def test_an_empty_stream_says_that_it_holds_no_text(tmp_path, kind):
    empty = datasets.Dataset.from_dict({"text": []})
    if kind == "saved":
        empty.save_to_disk(tmp_path / kind)
    elif kind == "rows.parquet":
        empty.to_parquet(tmp_path / kind)
    else:
        (tmp_path / kind).write_text("\n\n" if kind.startswith("blank") else "")
    with pytest.raises(DataError, match=f"{kind}: it holds no text; give another"):
        taken(corpus(f"en={tmp_path / kind}"), 0, 1)


@pytest.mark.parametrize("further", [":foo", "::validation", ":foo:validation"])
@pytest.mark.parametrize("kind", ["jsonl", "text", "saved"])
def test_a_configuration_or_split_where_there_is_none_is_refused(sources, kind, further):
    with pytest.raises(ConfigError, match="files have no config|folder has no (config|several splits)"):
        corpus(sources[kind] + further)


def test_a_folder_of_splits_takes_no_configuration(sources):
    with pytest.raises(ConfigError, match="a folder has no configuration; give CORPUS=FOLDER::SPLIT"):
        corpus(sources["saved splits"].replace("::", ":foo:"))


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    asked: list[str] = []

    def load(name: str, *_: object, **__: object) -> datasets.IterableDataset:
        asked.append(name)
        return datasets.Dataset.from_dict({"text": ["1"]}).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load)
    return asked


@pytest.mark.parametrize(
    "name",
    [
        "x.jsonl",
        "x.txt",
        "x.en",
        "x.en_XX",
        "x.parquet",
        "x.csv",
        "x.gz",
        "x/*",
        "x?",
        "[ab]",
        "./x",
        "/x",
        "~/x",
        "a/b/c",
    ],
)
def test_missing_paths_are_told_without_the_hub(tmp_path, monkeypatch, no_hub, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="no such file"):
        corpus(f"en={name}")
    assert not no_hub


@pytest.mark.parametrize("name", ["allenai/c4", "ag_news", "teknium/OpenHermes-2.5", "some.one/wiki-v1.0"])
def test_names_without_a_local_path_go_to_the_hub(tmp_path, monkeypatch, no_hub, name):
    monkeypatch.chdir(tmp_path)
    assert taken(corpus(f"en={name}:foo:more"), 0, 1) == [[1]]
    assert no_hub == [name]


def test_local_paths_that_are_no_stream_are_refused(tmp_path, monkeypatch, no_hub):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "data.jsonl").write_text('{"text": "1"}\n')
    (tmp_path / "m" / "data.txt").write_text("1\n")
    (tmp_path / "lines").write_text("1\n")
    for name, message in (
        ("m", "m is a folder that datasets' save_to_disk did not write"),
        ("lines", "lines is of no known kind; files that are read end with .jsonl"),
        ("m/*", "m/data.jsonl and m/data.txt are of different kinds"),
    ):
        with pytest.raises(DataError, match=message):
            corpus(f"en={name}")
    assert not no_hub


def test_changed_files_are_noticed_when_a_run_is_continued(tmp_path):
    def source() -> PlannedBatches:
        batching = BatchingConfig(batch_size=4, samples_per_epoch=50)
        corpora = [corpus(f"en={tmp_path}/*.txt")]
        return mixed_batches(corpora, load_ids, MixtureConfig(mixture="equal"), batching, seed=3)

    (tmp_path / "a.txt").write_text("1\n2\n")
    state = json.loads(json.dumps(source().state_dict()))
    source().load_state_dict(state)
    (tmp_path / "b.txt").write_text("3\n")
    with pytest.raises(CheckpointError, match=r"corpora: en: files: \S*/b.txt is new;"):
        source().load_state_dict(state)
    (tmp_path / "b.txt").unlink()
    (tmp_path / "a.txt").write_text("1\n2\n3\n")
    with pytest.raises(CheckpointError, match=r"corpora: en: files: \S*/a.txt was 4 and is 6 now;"):
        source().load_state_dict(state)
    (tmp_path / "a.txt").rename(tmp_path / "c.txt")
    with pytest.raises(CheckpointError, match=r"corpora: en: files: \S*/c.txt is new;"):
        source().load_state_dict(state)


def test_a_saved_folder_tells_its_files(sources):
    files = corpus(sources["saved"]).settings["files"]
    assert len(files) == 2 and all(name.endswith(".arrow") and size for name, size in files.items())
