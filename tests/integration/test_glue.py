"""GLUE from its published files to the leaderboard's: distilled, fine-tuned, continued, scored and predicted."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    BertTokenizer,
    pipeline,
)

from cktk_cli.evaluate import main as evaluate
from cktk_cli.generate import main as generate
from cktk_cli.preprocess import main as preprocess
from tests.integration import toy
from tests.unit.tasks.sentences import make_folder

WORDS = ["good", "bad", *(f"w{number}" for number in range(30))]
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SHAPE = ["--arch", "bert", "--width", "16", "--encoder-layers", "1", "--heads", "2", "--ffn-width", "32"]
COMMON = ["--task", "glue", "--batch-size", "16", "--max-tokens", "400", "--no-tensorboard", "--log-interval", "2"]


def sentences(split: str) -> list[tuple[str, str, bool]]:
    """Two sentences, and whether there is more good than bad in them."""
    draw = random.Random(split)
    rows = []
    for _ in range({"train": 96, "valid": 40}.get(split, 20)):
        good = draw.random() < 0.5
        first = [draw.choice(WORDS[2:]) for _ in range(draw.randint(1, 6))]
        rows.append((" ".join([*first, "good" if good else "bad"]), draw.choice(WORDS[2:]), good))
    return rows


def write_task(folder: Path, regression: bool) -> None:
    """A task's files as GLUE publishes them: RTE, and STS-B with the columns that count."""
    folder.mkdir()
    label = "score" if regression else "label"
    for split, file in (("train", "train"), ("valid", "dev"), ("test", "test")):
        lines = ["\t".join(["index", "sentence1", "sentence2", *([] if split == "test" else [label])])]
        for index, (first, second, good) in enumerate(sentences(split)):
            answer = [str(1.0 + 3 * good)] if regression else ["entailment" if good else "not_entailment"]
            lines.append("\t".join([str(index), first, second, *([] if split == "test" else answer)]))
        (folder / f"{file}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def make_data(folder: Path, name: str, tokenizer: Path) -> Path:
    write_task(folder / name, name == "stsb")
    arguments = ["--task", "glue", "--source", "glue", "--glue-task", name, "--glue-dir", str(folder / name)]
    assert preprocess([*arguments, "--tokenizer", str(tokenizer), "--dest-dir", str(folder / f"{name}-bin")]) == 0
    return folder / f"{name}-bin"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer, two tasks, and teachers with several heads."""
    folder = tmp_path_factory.mktemp("glue")
    tokenizer = BertTokenizer(vocab={word: number for number, word in enumerate([*SPECIALS, *WORDS])})
    tokenizer.save_pretrained(folder / "tokenizer")
    for name in ("rte", "stsb"):
        make_data(folder, name, folder / "tokenizer")
    sizes: dict[str, Any] = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 64, "max_position_embeddings": 32, "initializer_range": 0.2,
    }  # fmt: skip
    makers = {
        "rte": lambda: BertForSequenceClassification(BertConfig(**sizes, num_labels=2)),
        "stsb": lambda: BertForSequenceClassification(BertConfig(**sizes, num_labels=1)),
        "mnli": lambda: BertForSequenceClassification(BertConfig(**sizes, num_labels=3)),
        "masked_lm": lambda: BertForMaskedLM(BertConfig(**sizes)),
        "bare": lambda: BertModel(BertConfig(**sizes)),
    }
    for number, (name, make) in enumerate(makers.items()):
        torch.manual_seed(number)
        make().save_pretrained(folder / "teachers" / name)
        tokenizer.save_pretrained(folder / "teachers" / name)
    return folder


def train(place: Path, run: Path, *more: str, data: str = "rte") -> Path:
    arguments = [str(place / f"{data}-bin"), "--save-dir", str(run), *COMMON, "--lr", "3e-3", *more]
    assert toy.train(arguments) == 0
    return run


def student(run: Path) -> Any:
    """The classifier in a run directory, or a model folder."""
    inner = run / "checkpoint_last/student"
    return AutoModelForSequenceClassification.from_pretrained(inner if inner.is_dir() else run)


@pytest.mark.parametrize(
    ("data", "criterion"), [("rte", "kl_kd"), ("rte", "cka_kd"), ("stsb", "cka_kd")], ids=lambda value: value
)
def test_distilled_and_continued(data: str, criterion: str, place: Path, tmp_path: Path) -> None:
    """Resumed is uninterrupted, bit for bit; what plain transformers opens is what was trained."""
    flags = ["--criterion", criterion, "--teacher", str(place / "teachers" / data), *SHAPE, "--dropout", "0.1"]
    whole = train(place, tmp_path / "whole", *flags, "--max-epoch", "2", data=data)
    train(place, tmp_path / "parts", *flags, "--max-epoch", "1", data=data)
    parts = train(place, tmp_path / "parts", *flags, "--max-epoch", "2", data=data)
    assert (whole / "log.jsonl").read_bytes() == (parts / "log.jsonl").read_bytes()
    found, expected = (toy.tensors(run / "checkpoint_last") for run in (parts, whole))
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)

    names = {"pearson", "spearman", "mse", "teacher_mse"} if data == "stsb" else {"accuracy", "matthews", "ce", "kl"}
    valid = toy.log(whole, "valid")[-1]
    assert names <= valid.keys() and ("cka" in valid) == (criterion == "cka_kd")
    model = student(whole)
    assert model.config.problem_type == ("regression" if data == "stsb" else "single_label_classification")
    if data == "rte":
        assert model.config.label2id == {"entailment": 0, "not_entailment": 1}
        tokenizer = AutoTokenizer.from_pretrained(whole / "checkpoint_last/student")
        (answer,) = pipeline("text-classification", model=model, tokenizer=tokenizer)(
            [{"text": "good", "text_pair": "bad"}]
        )
        assert answer["label"] in model.config.label2id


@pytest.fixture(scope="module")
def tuned(place: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Plain fine-tuning of both tasks, well enough to know good from bad."""
    flags = ["--criterion", "cross_entropy", *SHAPE, "--max-positions", "32", "--max-epoch", "12", "--dropout", "0"]
    flags += ["--lr", "1e-2", "--lr-scheduler", "constant", "--warmup-updates", "0"]
    flags += ["--validate-interval", "4", "--save-interval", "4"]
    runs = tmp_path_factory.mktemp("tuned")
    best = {"rte": "accuracy", "stsb": "spearman"}
    return {
        data: train(place, runs / data, *flags, "--best-checkpoint-metric", metric, data=data)
        for data, metric in best.items()
    }


def test_scored_and_predicted(
    tuned: dict[str, Path], place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The row of both tasks, and submissions whose lines are the model's answers in order."""
    folders = [str(place / f"{name}-bin") for name in tuned]
    paths = [str(run) for run in tuned.values()]
    capsys.readouterr()
    arguments = [",".join(folders), "--task", "glue", "--path", ",".join(paths), "--gen-subset", "valid"]
    assert evaluate([*arguments, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    rte, stsb = (task["splits"]["valid"] for task in row["tasks"])
    assert rte["accuracy"] > 90 and stsb["spearman"] > 70
    assert rte["accuracy"] == max(record["accuracy"] for record in toy.log(tuned["rte"], "valid"))
    assert [task["score"] for task in row["tasks"]] == [rte["accuracy"], (stsb["pearson"] + stsb["spearman"]) / 2]
    assert row["average"] == pytest.approx((rte["accuracy"] + row["tasks"][1]["score"]) / 2)
    assert row["paper_average"] == pytest.approx((rte["accuracy"] + stsb["spearman"]) / 2)
    assert evaluate(arguments) == 0
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("RTE", "STS-B", "average of 2 of GLUE's 8 tasks", f"{row['average']:.1f}"))

    for data, run in tuned.items():
        assert generate([str(place / f"{data}-bin"), "--path", str(run), "--output", str(tmp_path)]) == 0
    lines = (tmp_path / "RTE.tsv").read_text().splitlines()
    assert lines[0] == "index\tprediction"
    rows = sentences("test")
    right = [f"{index}\t{'entailment' if good else 'not_entailment'}" for index, (_, _, good) in enumerate(rows)]
    assert sum(line == answer for line, answer in zip(lines[1:], right, strict=True)) >= 18
    model = AutoModelForSequenceClassification.from_pretrained(tuned["stsb"] / "checkpoint_best/student")
    tokenizer = AutoTokenizer.from_pretrained(place / "tokenizer")
    with torch.no_grad():
        inputs = tokenizer([row[0] for row in rows], [row[1] for row in rows], padding=True, return_tensors="pt")
        scores = model(**inputs).logits[:, 0].clamp(0, 5).tolist()
    found = [line.split("\t") for line in (tmp_path / "STS-B.tsv").read_text().splitlines()[1:]]
    assert [int(index) for index, _ in found] == list(range(20))
    assert [float(value) for _, value in found] == pytest.approx(scores, abs=2e-3)


def test_mismatched_sets_and_labels_in_another_order(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """MNLI's two sets; a model that has the data's labels in its own order says the same as one that has theirs."""
    tokenizer = AutoTokenizer.from_pretrained(place / "tokenizer")
    rows = [(first, second, number % 3) for number, (first, second, _) in enumerate(sentences("train"))]
    splits = {"valid": rows[:30], "valid_mm": rows[30:50], "test": rows[50:70], "test_mm": rows[70:80]}
    labels = ("entailment", "neutral", "contradiction")
    make_folder(tmp_path / "bin", tokenizer, splits, labels, benchmark="mnli")
    model: Any = AutoModelForSequenceClassification.from_pretrained(place / "teachers/mnli")
    order = [2, 0, 1]
    with torch.no_grad():
        for parameter in model.classifier.parameters():
            parameter.copy_(parameter[order])
    model.config.id2label = {at: labels[number].upper() for at, number in enumerate(order)}
    model.save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    figures = []
    for path in (place / "teachers/mnli", tmp_path / "other"):
        capsys.readouterr()
        assert evaluate([str(tmp_path / "bin"), "--path", str(path), "--gen-subset", "valid", "--json"]) == 0
        figures.append(json.loads(capsys.readouterr().out)[0]["tasks"][0])
        assert generate([str(tmp_path / "bin"), "--path", str(path), "--output", str(tmp_path / path.name)]) == 0
    assert figures[0]["splits"] == figures[1]["splits"] and set(figures[0]["splits"]) == {"valid", "valid_mm"}
    assert figures[0]["score"] == sum(found["accuracy"] for found in figures[0]["splits"].values()) / 2
    # The leaderboard's average has MNLI once, by both sets; the paper's by the matched one. One set alone has no score.
    make_folder(
        tmp_path / "sst2",
        tokenizer,
        {"valid": [(*row[:1], row[2] % 2) for row in rows[:30]]},
        ("n", "p"),
        benchmark="sst2",
    )
    models = f"{place / 'teachers/mnli'},{place / 'teachers/rte'}"
    flags = ["--task", "glue", "--path", models, "--json", "--gen-subset"]
    assert evaluate([f"{tmp_path / 'bin'},{tmp_path / 'sst2'}", *flags, "valid"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    m, mm, sst2 = (found["accuracy"] for task in row["tasks"] for found in task["splits"].values())
    assert row["average"] == pytest.approx(((m + mm) / 2 + sst2) / 2) and m != mm
    assert row["paper_average"] == pytest.approx((m + sst2) / 2) and row["tasks_of_glue"] == 2
    assert (
        evaluate([str(tmp_path / "bin"), *flags[:3], models.split(",")[0], "--json", "--gen-subset", "valid_mm"]) == 0
    )
    (row,) = json.loads(capsys.readouterr().out)
    assert row["tasks"][0]["splits"] == {"valid_mm": {**row["tasks"][0]["splits"]["valid_mm"], "accuracy": mm}}
    assert row["tasks_of_glue"] == 0 and "average" not in row
    for name, size in (("MNLI-m.tsv", 20), ("MNLI-mm.tsv", 10)):
        lines = (tmp_path / "mnli" / name).read_text().splitlines()
        assert lines == (tmp_path / "other" / name).read_text().splitlines() and len(lines) == size + 1
        assert {line.split("\t")[1] for line in lines[1:]} <= set(labels)


def test_labels_are_looked_for_before_models_are_opened(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second folder's missing labels are found with models that are not there; a labelled test is the default."""
    tokenizer = AutoTokenizer.from_pretrained(place / "tokenizer")
    rows = [(first, second, good) for first, second, good in sentences("test")]
    labelled, unlabelled = {"valid": rows[:8], "test": rows[:12]}, {"valid": [(*row[:2], -1) for row in rows[:3]]}
    for name, splits in (("own", labelled), ("none", unlabelled)):
        make_folder(tmp_path / name, tokenizer, splits, ("no", "yes"))
    both = f"{place / 'rte-bin'},{tmp_path / 'none'}"
    assert evaluate([both, "--task", "glue", "--path", "not,there", "--gen-subset", "valid"]) == 1
    assert capsys.readouterr().err == (
        f"cktk-evaluate: error: {tmp_path / 'none'}: split valid has no labels to score against; choose a split that "
        "has, e.g. valid\n"
    )
    teacher = str(place / "teachers/rte")
    assert evaluate([str(tmp_path / "own"), "--path", teacher, "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)[0]["tasks"][0]["splits"]) == ["test"]
    # With a task whose test has no labels, all of a row is of valid. What is cut is said once for two rows.
    pair = f"{place / 'rte-bin'},{tmp_path / 'own'}"
    flags = ["--path", ",".join([teacher] * 4), "--max-source-positions", "6", "--json"]
    assert evaluate([pair, "--task", "glue", *flags]) == 0
    captured = capsys.readouterr()
    assert [list(task["splits"]) for row in json.loads(captured.out) for task in row["tasks"]] == [["valid"]] * 4
    told = captured.err.splitlines()
    assert told[0] == "--gen-subset valid: a test split without labels cannot be scored"
    assert [line.split(" rows of ")[1] for line in told if "over-long" in line] == [
        "RTE valid were over-long and cut",
        "own valid were over-long and cut",
    ]


def test_encoders_of_other_heads(place: Path, tmp_path: Path) -> None:
    """A masked language model keeps its encoder and gets a new head, in shape and weights, without a teacher."""
    earlier = place / "teachers/masked_lm"
    plain = ["--criterion", "cross_entropy", "--max-update", "1", "--lr", "1e-12", "--disable-validation"]
    given = BertForMaskedLM.from_pretrained(earlier).bert.state_dict()
    for flags in (["--init", "checkpoint", "--init-checkpoint", str(earlier)], ["--finetune-from-model", str(earlier)]):
        run = train(place, tmp_path / flags[0], "--arch", "bert", *plain, *flags)
        made = student(run)
        assert made.config.num_labels == 2 and made.config.id2label[1] == "not_entailment"
        inner = made.bert.state_dict()
        assert all(torch.allclose(inner[name], tensor, atol=1e-6) for name, tensor in given.items())
    # From three labels to two: an intermediate task's head is left behind, its pooler is not.
    mnli = place / "teachers/mnli"
    run = train(place, tmp_path / "mnli", "--arch", "bert", *plain, "--finetune-from-model", str(mnli))
    pooler = student(run).bert.pooler.dense.weight
    assert torch.allclose(
        pooler, BertForSequenceClassification.from_pretrained(mnli).bert.pooler.dense.weight, atol=1e-6
    )
    assert student(run).classifier.weight.shape == (2, 32)
    # A teacher without a classifier is good for hidden states, and for a start.
    for name in ("bare", "masked_lm", "mnli"):
        flags = ["--teacher", str(place / "teachers" / name), "--criterion", "cka_kd", "--kl-weight", "0", *SHAPE]
        flags += ["--init", "truncate", "--max-update", "2"]
        run = train(place, tmp_path / f"from-{name}", *flags)
        assert {"cka", "ce", "accuracy"} <= toy.log(run, "valid")[-1].keys()


def test_a_teacher_cache_serves_classes(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Recorded distributions over two classes, and states, are as good as the teacher itself."""
    from cktk_cli.cache_teacher import main as cache_teacher

    teacher, cache = str(place / "teachers/rte"), str(tmp_path / "cache")
    arguments = ["--teacher", teacher, "--task", "glue", "--hidden-states", "--encoder-layers", "1"]
    arguments += ["--states-dtype", "float32"]
    assert cache_teacher([str(place / "rte-bin"), *arguments, "--cache-dir", cache]) == 0
    flags = ["--criterion", "cka_kd", *SHAPE, "--max-update", "3"]
    live = train(place, tmp_path / "live", *flags, "--teacher", teacher)
    recorded = train(place, tmp_path / "recorded", *flags, "--teacher-cache", cache)
    ours, theirs = (toy.log(run, "valid")[-1] for run in (recorded, live))
    assert all(ours[name] == pytest.approx(theirs[name], rel=1e-4) for name in ("loss", "kl", "cka", "accuracy"))

    capsys.readouterr()
    regression = [str(place / "stsb-bin"), *arguments, "--cache-dir", str(tmp_path / "numbers")]
    regression[2] = str(place / "teachers/stsb")
    assert cache_teacher(regression) != 0
    assert "regression" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("data", "teacher", "flags", "message"),
    [
        ("rte", "bare", [], "the teacher has no head that classifies sentences (its head is bare); give a teacher"),
        ("rte", "masked_lm", [], "the teacher has no head that classifies sentences (its head is masked_lm)"),
        ("rte", "mnli", [], "the teacher answers with 3 labels (LABEL_0, LABEL_1, LABEL_2), but the data has 2 labels"),
        ("stsb", "rte", [], "the teacher answers with 2 labels (LABEL_0, LABEL_1), but the data has a number"),
        ("stsb", "stsb", ["--temperature", "2"], "--temperature 2.0: the data asks for a number (regression)"),
        ("rte", "rte", ["--head", "masked_lm"], "--head masked_lm: the task needs a classifier of sentences"),
        ("rte", "rte", ["--max-source-positions", "3"], "--max-source-positions 3 leaves no room for text"),
        ("rte", "rte", ["--best-checkpoint-metric", "acuracy"], "did you mean accuracy?"),
        ("rte", "rte", ["--valid-subset", "test"], "split test has no labels to score against"),
    ],
)
def test_what_does_not_fit_is_one_line(
    data: str, teacher: str, flags: list[str], message: str, place: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    arguments = [str(place / f"{data}-bin"), "--save-dir", str(tmp_path / "run"), *COMMON, "--criterion", "kl_kd"]
    arguments += ["--teacher", str(place / "teachers" / teacher), *SHAPE, "--max-update", "1", *flags]
    assert message in toy.error_of(capsys, *arguments)


def test_what_does_not_fit_when_scored(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rte, stsb = str(place / "rte-bin"), str(place / "stsb-bin")
    teachers = place / "teachers"
    score = [rte, "--task", "glue", "--path", f"{teachers}/rte"]
    for command, arguments, message in (
        (evaluate, [*score, "--gen-subset", "test"], "split test has no labels to score against"),
        (evaluate, [*score, "--gen-subset", "dev"], "no such split: unknown name 'dev'"),
        (evaluate, [*score[:-1], f"{teachers}/mnli"], "answers with 3 labels"),
        (evaluate, [f"{rte},{rte}", *score[1:3], "--path", "a,b"], "are both RTE, which an average has once"),
        (evaluate, [*score, "--beam", "2"], "--beam belongs to --task summarization or translation, which was not"),
        (evaluate, [*score, "--context-size", "2"], "--context-size belongs to --task summarization or translation"),
        (evaluate, [*score, "--target-lang", "fr"], "--target-lang has no meaning with --task glue; leave it out"),
        (generate, [*score, "--dest-dir", "x"], "--dest-dir belongs to --task summarization or translation"),
        (generate, [*score, "--max-len-b", "9"], "--max-len-b belongs to --task summarization or translation"),
        (generate, [*score, "--output", "x", "--print-scores"], "--print-scores has no meaning with --task glue"),
        (evaluate, [f"{rte},{stsb}", *score[1:]], "--path names 1 models for 2 data folders"),
        (generate, score, "--task glue writes one file a test set: give --output DIR"),
        (generate, [*score, "--output", str(tmp_path), "--gen-subset", "dev"], "no such split: dev; choose"),
        (generate, [*score, "--output", str(tmp_path), "--scoring", "rouge"], "--scoring has no meaning"),
    ):
        capsys.readouterr()
        assert command(arguments) != 0
        assert message in capsys.readouterr().err.strip().splitlines()[-1]
