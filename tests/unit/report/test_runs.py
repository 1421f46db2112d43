"""Reading run directories and files of scores, and taking seeds together."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cktk.errors import CktkError, ConfigError, DataError
from cktk.report.results import Result, by_parameters, by_rows, choose_metric, seeds_of, value_of
from cktk.report.runs import _epoch_ends, labels, read_run
from cktk.report.scores import read_scores, scores_of
from cktk.report.sizes import Size, size_of
from tests.unit.report.made_up import make_run, student


def rewrite(path: Path, *lines: object, end: str = "\n") -> None:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + end)


def test_a_run_says_what_it_was(tmp_path: Path) -> None:
    stages = [(1, "encoder layer 1"), (3, "head")]
    folder = make_run(tmp_path / "run", [50.0, 62.5, 61.0], seed=4, subset=30, stages=stages, more={"kl/en": 2.0})
    run = read_run(folder)
    assert (run.seed, run.rows, run.metric, run.split) == (4, 30, "accuracy", "valid")
    # The head's turn came in epoch 3: those before are of a student whose head was not trained yet.
    assert run.best["update"] == 30 and run.best["accuracy"] == 61.0
    assert run.curve("accuracy") == ([1.0, 2.0, 3.0], [50.0, 62.5, 61.0])
    assert run.curve("bleu") == ([], [])
    assert run.figures == ["accuracy", "loss", "kl/en"]
    assert [(s.number, s.name, s.begins) for s in run.stages] == [(1, "encoder layer 1", 0.0), (2, "head", 2.0)]


def test_a_loss_is_best_where_it_is_lowest_and_nan_never_is(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run", [float("nan"), 3.0, 2.0, 2.5], metric="kl"))
    assert run.best["kl"] == 2.0


@given(st.lists(st.integers(5, 40), min_size=1, max_size=6), st.integers(1, 4), st.booleans())
def test_updates_are_places_in_epochs(lengths: list[int], interval: int, over: bool) -> None:
    """Training lines every ``interval`` updates, validations at the ends of epochs; the last epoch may be half done."""
    ends = np.cumsum(lengths).tolist()
    done = ends[-1] if over else ends[-1] - lengths[-1] // 2
    records: list[dict[str, object]] = []
    for epoch, end in enumerate(ends, start=1):
        first = end - lengths[epoch - 1]
        inside = range(first + 1, min(end, done) + 1)
        records += [{"group": "train", "update": u, "epoch": epoch} for u in inside if u % interval == 0]
        if end <= done:
            records.append({"group": "valid", "update": end, "epoch": epoch})
    newest = {"epoch": len(lengths), "epoch_end": over, "update": done}
    if not any(record["epoch"] == len(lengths) for record in records):
        return
    found = _epoch_ends(records, newest)
    assert found[:-1] == ends[:-1]
    assert found[-1] == ends[-1] if over else found[-1] >= done - interval


def test_a_stage_begins_where_an_epoch_ends() -> None:
    """Also where lines are few: its own line says after how many updates that was."""
    records = [
        {"group": "stage", "update": 0, "epoch": 1},
        {"group": "train", "update": 9, "epoch": 1},
        {"group": "stage", "update": 15, "epoch": 2},
        {"group": "valid", "update": 30, "epoch": 2},
        {"group": "train", "update": 36, "epoch": 3},
    ]
    assert _epoch_ends(records, {"epoch": 3, "epoch_end": True, "update": 45}) == [15, 30, 45]


def test_epochs_without_a_line_lie_between(tmp_path: Path) -> None:
    records = [{"group": "valid", "update": 50, "epoch": 5}, {"group": "valid", "update": 110, "epoch": 10}]
    assert _epoch_ends(records, {}) == pytest.approx([10, 20, 30, 40, 50, 62, 74, 86, 98, 110])


def test_the_newest_checkpoint_tells_where_the_last_epoch_ends() -> None:
    records = [{"group": "train", "update": 8, "epoch": 1}, {"group": "train", "update": 12, "epoch": 2}]
    assert _epoch_ends(records, {"epoch": 2, "epoch_end": True, "update": 20}) == [8, 20]
    assert _epoch_ends(records, {"epoch": 2, "epoch_end": False, "update": 20}) == [8, 16]


def test_mixtures_have_the_rows_of_all_corpora(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", [1.0])
    state = folder / "checkpoint_last/trainer.json"
    for corpora, rows in (({"en": {"rows": 5}, "fr": {"rows": 7}}, 12), ({"en": {"rows": 5}, "web": {}}, None)):
        state.write_text(json.dumps({"data": {"plan": {"corpora": corpora}}}))
        assert read_run(folder).rows == rows


def test_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder; give run directories"):
        read_run(tmp_path / "none")
    with pytest.raises(ConfigError, match=r"no run directory \(config.yaml is missing\)"):
        read_run(tmp_path)
    run = make_run(tmp_path / "run", [1.0])
    (run / "config.yaml").write_text("[")
    with pytest.raises(DataError, match=r"config\.yaml: damaged"):
        read_run(run)


@pytest.mark.parametrize("line", ["{", "[]", '{"group": "valid"}', '{"update": 3}'])
def test_a_damaged_line_is_named(tmp_path: Path, line: str) -> None:
    run = make_run(tmp_path / "run", [1.0])
    rewrite(run / "log.jsonl", {"group": "valid", "update": 1, "epoch": 1}, line)
    with pytest.raises(DataError, match=r"log\.jsonl: line 2 is damaged"):
        read_run(run)
    rewrite(run / "log.jsonl", {"group": "valid", "update": 1, "epoch": 1}, line, end="")
    assert len(read_run(run).records) == 1  # somebody is just writing it


def test_logs_that_say_nothing(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [1.0])
    rewrite(run / "log.jsonl", {"group": "train", "update": 1, "epoch": 1, "loss": 2.0})
    with pytest.raises(DataError, match="has no validations; train without --disable-validation"):
        _ = read_run(run).best
    (run / "log.jsonl").unlink()
    with pytest.raises(DataError, match="the run has not begun"):
        read_run(run)


def test_names_leave_out_what_all_share_and_seeds_and_rows(tmp_path: Path) -> None:
    wanted = {
        "cka/subset-30/seed-2": "cka",
        "cka/seed-1": "cka",
        "kl_s3": "kl",
        "kl-3x192-seed4": "kl-3x192",
        "top_5": "top_5",
    }
    paths = [tmp_path / "runs" / name for name in wanted]
    seeds, subsets = (2, 1, 3, 4, 5), (30, None, None, None, None)
    for path, seed, subset in zip(paths, seeds, subsets, strict=True):
        make_run(path, [1.0], seed=seed, subset=subset)
    assert labels(paths, [read_run(path) for path in paths]) == list(wanted.values())
    assert labels(paths[:1], [read_run(paths[0])]) == ["cka"]


def result(
    folder: Path, name: str, value: float, seed: int = 1, rows: int = 800, size: tuple[int, str] = (10, "1x2")
) -> Result:
    place = folder / f"{name}-{size[0]}-{rows}-{seed}"
    run = read_run(place if place.exists() else make_run(place, [value], seed=seed, rows=rows))
    return Result(name, run, Size(*size), value, "valid")


def test_seeds_have_a_mean_and_a_spread(tmp_path: Path) -> None:
    values = {("cka", 1): 70.0, ("cka", 2): 74.0, ("cka", 5): 75.0, ("kl", 1): 60.0}
    results = [result(tmp_path, name, value, seed) for (name, seed), value in values.items()]
    found = by_rows(results)
    assert list(found) == ["cka", "kl"]
    point = found["cka"][0]
    assert (point.x, point.mean) == (800, 73.0)
    assert point.spread == pytest.approx(statistics.stdev([70.0, 74.0, 75.0]))
    assert found["kl"][0].spread == 0.0
    assert {name: len(group) for name, group in seeds_of(results).items()} == {"cka": 3, "kl": 1}
    with pytest.raises(ConfigError, match="are both called kl and have seed 1; give names as NAME=DIR"):
        seeds_of([*results, results[-1]])


def test_sizes_and_rows_are_never_averaged(tmp_path: Path) -> None:
    small, large = (10_000_000, "3x192"), (20_000_000, "6x192")
    results = [result(tmp_path, "kl", 1.0, rows=rows, size=size) for rows in (500, 1000) for size in (large, small)]
    assert list(seeds_of(results)) == [f"kl, {s}, {r} rows" for s in ("3x192", "6x192") for r in ("500", "1,000")]
    along = by_parameters(results)
    assert {name: [point.x for point in points] for name, points in along.items()} == {
        "kl, 500 rows": [10.0, 20.0],
        "kl, 1,000 rows": [10.0, 20.0],
    }
    assert {name: [point.x for point in points] for name, points in by_rows(results).items()} == {
        "kl, 6x192": [500, 1000],
        "kl, 3x192": [500, 1000],
    }


def test_metrics_that_are_not_there(tmp_path: Path) -> None:
    runs = [read_run(make_run(tmp_path / metric, [1.0], metric=metric)) for metric in ("bleu", "accuracy")]
    assert choose_metric(None, runs[:1]) == "bleu" and choose_metric("f1", runs) == "f1"
    with pytest.raises(ConfigError, match=r"bleu of bleu, accuracy of accuracy\); choose one with --metric"):
        choose_metric(None, runs)
    with pytest.raises(ConfigError, match="--metric blue: x has no such figure; did you mean bleu. known: bleu, loss"):
        value_of(runs[0], "x", "blue", None)
    with pytest.raises(DataError, match="kl is nan"):
        value_of(read_run(make_run(tmp_path / "nan", [1.0], more={"kl": float("nan")})), "x", "kl", None)


GLUE = {"name": "a", "tasks": [{"task": "rte", "model": "runs/a", "rows": 9, "splits": {"test": {"f1": 81.5}}}]}


def test_scores_find_their_runs(tmp_path: Path) -> None:
    a = make_run(tmp_path / "a", [1.0], config={"save_dir": "runs/a"})
    b = make_run(tmp_path / "b", [1.0])
    rewrite(tmp_path / "glue.json", [GLUE])
    translated = {"name": str(b / "checkpoint_best/student"), "bleu": 30.5, "sentences": 7, "bleu_signature": "x"}
    rewrite(tmp_path / "text.json", [translated])
    scores = [score for name in ("glue.json", "text.json") for score in read_scores(tmp_path / name)]
    runs = [read_run(a), read_run(b)]
    first, second = scores_of(runs, [str(a), str(b)], scores)
    assert (first.split, first.figures, second.split, second.figures) == ("test", {"f1": 81.5}, None, {"bleu": 30.5})
    assert value_of(runs[0], "a", "f1", first) == 81.5
    with pytest.raises(ConfigError, match=r"glue.json: runs/a has no such figure; known: f1"):
        value_of(runs[0], "a", "accuracy", first)
    with pytest.raises(DataError, match="text.json has no score of this run"):
        scores_of(runs, ["a", "b"], scores[1:])
    other = {**translated, "bleu": 31.0}
    rewrite(tmp_path / "other.json", [other])
    with pytest.raises(DataError, match="has several scores"):
        scores_of(runs[1:], ["b"], [*scores, *read_scores(tmp_path / "other.json")])


@pytest.mark.parametrize("content", ["{", "[]", "{}", "[1]", '[{"bleu": 1}]', '[{"tasks": [{"splits": {}}]}]'])
def test_files_without_scores(tmp_path: Path, content: str) -> None:
    (tmp_path / "scores.json").write_text(content)
    with pytest.raises(CktkError, match=r"scores\.json: (holds no scores|cannot be read as JSON)"):
        read_scores(tmp_path / "scores.json")


def test_sizes_are_read_from_files(tmp_path: Path) -> None:
    from transformers import BertForSequenceClassification, T5Config, T5ForConditionalGeneration

    folder = student(3, 32)
    whole = BertForSequenceClassification.from_pretrained(folder).num_parameters()
    assert size_of(make_run(tmp_path / "run", [1.0], size=(3, 32))) == Size(whole, "3x32")
    # An untied head is in the file, whatever the configuration makes transformers build.
    config = T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_decoder_layers=1, num_heads=2)
    t5 = T5ForConditionalGeneration(config)
    t5.lm_head.weight = type(t5.lm_head.weight)(t5.lm_head.weight.detach().clone() + 1)
    t5.config.tie_word_embeddings = False
    t5.save_pretrained(tmp_path / "t5")
    assert size_of(tmp_path / "t5") == Size(
        sum(p.numel() for p in {id(p): p for p in t5.parameters()}.values()), "3x16"
    )


def test_buffers_are_no_parameters(tmp_path: Path) -> None:
    from transformers import BartConfig, BartForConditionalGeneration

    sides = {
        f"{side}_{what}": 1 for side in ("encoder", "decoder") for what in ("layers", "attention_heads", "ffn_dim")
    }
    bart = BartForConditionalGeneration(BartConfig(vocab_size=40, d_model=8, max_position_embeddings=9, **sides))
    bart.save_pretrained(tmp_path / "bart")  # with its final_logits_bias
    assert size_of(tmp_path / "bart") == Size(bart.num_parameters(), "2x8")
