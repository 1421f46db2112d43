"""Figures and tables of made-up runs, as the command makes them; figures are read as SVG."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

from cktk.report.convergence import curves
from cktk.report.results import Result
from cktk.report.runs import read_run
from cktk.report.style import looks, metric_title
from cktk_cli.report import main
from tests.unit.report.made_up import make_run

_SVG = "{http://www.w3.org/2000/svg}"
_STAGES = [(1, "encoder layer 1"), (3, "head")]


class Picture:
    """An SVG figure: its words, and the numbers of points of its series."""

    def __init__(self, path: Path) -> None:
        self._root = ElementTree.parse(path).getroot()
        self.words = ["".join(text.itertext()).strip() for text in self._root.iter(f"{_SVG}text")]

    def groups(self, kind: str) -> dict[str, int]:
        """How many markers each group has whose id begins with ``kind``."""
        groups = {group.get("id", ""): group for group in self._root.iter(f"{_SVG}g")}
        return {
            name.removeprefix(f"{kind} "): len(list(group.iter(f"{_SVG}use")))
            for name, group in groups.items()
            if name.startswith(kind)
        }


def report(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    assert main(list(map(str, arguments))) == 0
    return capsys.readouterr().out


def error_of(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    assert main(list(map(str, arguments))) != 0
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    return lines[0].removeprefix("cktk-report: error: ")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """kl and sid with two seeds each, trained on two numbers of rows; a larger kl of one seed."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in (1, 2):
        for rows in (100, 1000):
            high = 70.0 + seed + rows / 100
            kept = {"seed": seed, "subset": rows, "size": (1, 16)}
            make_run(folder / f"kl/subset-{rows}/seed-{seed}", [60.0, 65.0, high], **kept)
            make_run(folder / f"sid/subset-{rows}/seed-{seed}", [50.0, 51.0, high + 3], stages=_STAGES, **kept)
    make_run(folder / "large", [60.0, 70.0, 80.0], rows=1000, size=(2, 32))
    return folder


def test_quality_against_training_rows(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = sorted(runs.glob("kl/*/*")) + sorted(runs.glob("sid/*/*"))
    out = report(capsys, *found, "--figures", "data", "--output", tmp_path / "new" / "figures")
    assert [path.name for path in (tmp_path / "new/figures").iterdir()] == ["training-rows.svg"]
    picture = Picture(tmp_path / "new/figures/training-rows.svg")
    assert {"Quality against training-set size", "training rows", "accuracy (%), valid split"} <= set(picture.words)
    assert {"100", "1,000", "kl (2 seeds)", "sid (2 seeds)", "mean ± standard deviation of seeds"} <= set(picture.words)
    assert picture.groups("series") == {"kl": 2, "sid": 2}
    assert re.search(r"kl, 100 rows .* 2 .* 1x16 .* 100 .* 72\.50 ± 0\.71", out)
    assert "accuracy of the best checkpoint, valid split; mean ± standard deviation of seeds" in out


def test_quality_against_parameters(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    named = [f"kl={path}" for path in (runs / "large", *sorted(runs.glob("kl/subset-1000/*")))]
    out = report(capsys, *named, *runs.glob("sid/subset-1000/*"), "--output", tmp_path)
    assert [line.split("/")[-1] for line in out.splitlines() if line.startswith("wrote")] == [
        "parameters.svg",
        "convergence.svg",
    ]
    picture = Picture(tmp_path / "parameters.svg")
    assert {"Quality against parameters", "parameters of the model (layers x width)"} <= set(picture.words)
    assert {"1x16", "2x32"} <= set(picture.words)
    assert picture.groups("series") == {"kl": 2, "sid": 1}


def test_convergence_with_stages(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = [*runs.glob("kl/subset-1000/*"), *runs.glob("sid/subset-1000/*")]
    report(capsys, *found, "--figures", "convergence", "--output", tmp_path, "--format", "png,svg")
    assert (tmp_path / "convergence.png").read_bytes().startswith(b"\x89PNG")
    picture = Picture(tmp_path / "convergence.svg")
    assert {"Quality per epoch", "epochs", "accuracy (%), valid split", "layer 1", "head"} <= set(picture.words)
    assert {"kl (2 seeds)", "sid (2 seeds)"} <= set(picture.words)
    assert picture.groups("series") == {"kl": 3, "sid": 3}
    assert list(picture.groups("switch")) == ["sid 2"]


def test_the_same_runs_give_the_same_bytes(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("one", "two"):
        report(capsys, *runs.glob("kl/*/*"), "--output", tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == ["convergence.svg", "training-rows.svg"]
    assert all((tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes() for name in files)


def test_json_and_scores(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [runs / "large", runs / "sid/subset-1000/seed-2"]
    rows = [
        {"tasks": [{"model": str(p), "splits": {"test": {"accuracy": v}}}]}
        for p, v in zip(paths, (66.5, 64.0), strict=True)
    ]
    (tmp_path / "test.json").write_text(json.dumps(rows))
    found = json.loads(report(capsys, *paths, tmp_path / "test.json", "--json", "--output", tmp_path / "out"))
    assert (found["metric"], found["split"]) == ("accuracy", "test")
    assert [(run["name"], run["value"]) for run in found["runs"]] == [("large", 66.5), ("sid", 64.0)]
    large, sid = found["runs"]
    assert (large["shape"], large["training_rows"], sid["seed"]) == ("2x32", 1000, 2)
    assert [stage["begins"] for stage in sid["stages"]] == [0.0, 2.0]
    assert found["figures"] == [str(tmp_path / "out" / name) for name in ("parameters.svg", "convergence.svg")]
    assert "accuracy (%), test split" in Picture(tmp_path / "out/parameters.svg").words
    assert "accuracy (%), valid split" in Picture(tmp_path / "out/convergence.svg").words


def test_seeds_that_differ_are_read_between_their_validations(tmp_path: Path) -> None:
    one, two = (
        Result("a", read_run(make_run(tmp_path / f"{n}", values, seed=n)), None, 1.0, "valid")
        for n, values in ((1, [10.0, 20.0, 30.0, 40.0]), (2, [20.0, 40.0, 60.0]))
    )
    curve = curves({"a": [one, two]}, "accuracy")["a"]
    np.testing.assert_allclose(curve.epochs, [1, 2, 3])
    np.testing.assert_allclose(curve.mean, [15, 30, 45])
    np.testing.assert_allclose(curve.spread, np.array([10, 20, 30]) / np.sqrt(2))
    assert curve.seeds == 2


def test_stages_at_different_epochs_are_told_by_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (1, 2):
        make_run(
            tmp_path / f"pid-seed{seed}",
            [1.0, 2.0, 3.0],
            seed=seed,
            stages=[(1, "encoder layer 1"), (1 + seed, "head")],
        )
    report(capsys, tmp_path / "pid-seed1", tmp_path / "pid-seed2", "--output", tmp_path / "out")
    picture = Picture(tmp_path / "out/convergence.svg")
    assert {"pid seed 1", "pid seed 2"} <= set(picture.words)


def test_looks_and_titles_differ() -> None:
    assert len(set(looks(20))) == 20 and len({look.color for look in looks(7)}) == 7
    assert metric_title("bleu/en-fr", "valid") == "BLEU en-fr, valid split"
    assert metric_title("cka", None) == "cka"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "RUNS: no run directory is given"),
        (["scores.json"], "RUNS: no run directory is given"),
        (["none"], "none: no such folder; give run directories of cktk-train"),
        (["large", "large"], "large is given twice"),
        (["large", "--figures", "data"], "--figures needs a folder to draw into: give --output DIR"),
        (["large", "--figures", "attention", "--output", "x"], "--figures attention needs a text"),
        (["large", "--head", "2"], "--head goes with --attention-text TEXT"),
        (["large", "--attention-text", "a", "--attention-kind", "cross"], "needs a target: give --attention-pair"),
        (["large", "--attention-text", "a"], "the runs have no teacher in memory; give one with --teacher"),
        (["large", "--metric", "f1"], "--metric f1: large has no such figure; known: accuracy, loss"),
        (["a=large", "a=kl/subset-1000/seed-1", "a=sid/subset-1000/seed-1"], "are both called a and have seed 1"),
        (["large", "absent.json"], "absent.json: no such file"),
        (["large", "--figures", "sizes"], "--figures: unknown name 'sizes'"),
    ],
)
def test_bad_input(
    runs: Path,
    tmp_path: Path,
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(runs)
    assert message in error_of(capsys, *arguments)
    assert not (runs / "x").exists()


def test_runs_without_what_a_figure_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run", [1.0])
    message = "--figures parameters: the runs have no weights"
    assert message in error_of(capsys, run, "--figures", "convergence,parameters", "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").write_text("")
    assert str(tmp_path / "file") in error_of(capsys, run, "--output", tmp_path / "file")
