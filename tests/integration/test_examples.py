"""Every recipe under examples/ trains for three updates, on small stand-ins for its data and the models it names."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoTokenizer,
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    MBartConfig,
    MBartForConditionalGeneration,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from cktk.config.yaml_file import read_run_file
from cktk_cli.preprocess import main as preprocess
from cktk_cli.train import command, main
from tests.integration import toy

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
RECIPES = sorted(
    path.relative_to(EXAMPLES)
    for path in EXAMPLES.rglob("*.yaml")
    if "work" not in path.relative_to(EXAMPLES).parts and "save_dir" in read_run_file(path)
)
POSITIONS = 1026
ENCODER = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64}
SIDES = {
    "d_model": 32, "encoder_layers": 4, "decoder_layers": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "max_position_embeddings": POSITIONS,
}  # fmt: skip
#: Labels of a task of GLUE, two texts or one; ratings where there are none.
GLUE = {
    "cola": (2, 1), "sst2": (2, 1), "mrpc": (2, 2), "qqp": (2, 2), "stsb": (0, 2), "mnli": (3, 2), "qnli": (2, 2),
    "rte": (2, 2), "label": (2, 1), "rating": (0, 1),
}  # fmt: skip


def build(kind: str, vocabulary: int, labels: int = 2) -> PreTrainedModel:
    """A model of random weights: four layers a side, 32 wide."""
    torch.manual_seed(3)
    if kind == "t5":
        sizes = {"d_model": 32, "num_layers": 4, "num_decoder_layers": 4, "num_heads": 4, "d_kv": 8, "d_ff": 64}
        config = T5Config(vocab_size=vocabulary, feed_forward_proj="gated-gelu", decoder_start_token_id=1, **sizes)
        return T5ForConditionalGeneration(config)
    if kind == "mbart":
        return MBartForConditionalGeneration(MBartConfig(vocab_size=vocabulary, scale_embedding=True, **SIDES))
    if kind == "bart":
        return BartForConditionalGeneration(BartConfig(vocab_size=vocabulary, **SIDES))
    config = BertConfig(vocab_size=vocabulary, max_position_embeddings=POSITIONS, pad_token_id=1, **ENCODER)
    if kind == "bert":
        return BertForMaskedLM(config)
    config.num_labels = labels or 1
    config.problem_type = None if labels else "regression"
    return BertForSequenceClassification(config)


class StandIns:
    """Data folders, streams and models where recipes look for them, below a copy of the run files."""

    def __init__(self, root: Path) -> None:
        self.root = root
        shutil.copytree(EXAMPLES, root, ignore=shutil.ignore_patterns("work", "models", "*.sh", "*.md", "*.txt"))
        self._made = root / "made"
        self._made.mkdir()
        toy.write_corpus(self._made)
        for split in ("train", "valid"):
            rows = (self._made / f"{split}.en").read_text().splitlines()
            (self._made / f"{split}.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
        self.tokenizer = self._data("translation", "--source-lang=en", "--target-lang=fr", train=True) / "tokenizer"

    def data(self, kind: str) -> Path:
        """A data folder of one kind; a task of GLUE stands for itself."""
        if kind == "translation":
            return self._made / "translation"
        if (self._made / kind).exists():
            return self._made / kind
        if kind == "summarization":
            return self._data(kind, "--source-column=en", "--target-column=fr")
        if kind == "pretraining":
            return self._data(kind, "--text-column=text", files=True)
        labels, texts = GLUE[kind]
        self._write_rows(kind, labels, texts)
        target = ["--regression"] if not labels else [f"--label-names={','.join(map(str, range(labels)))}"]
        columns = f"--text-columns={','.join('ab'[:texts])}"
        return self._data(kind, columns, "--label-column=label", *target, task="glue", files=True)

    def model(self, kind: str, labels: int = 2) -> Path:
        """A model with the stand-ins' tokenizer."""
        folder = self._made / f"{kind}-{labels}"
        if not folder.exists():
            tokenizer = AutoTokenizer.from_pretrained(self.tokenizer)
            build(kind, len(tokenizer), labels).save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        return folder

    def _data(self, kind: str, *flags: str, task: str = "", files: bool = False, train: bool = False) -> Path:
        if files:
            name = "" if kind == "pretraining" else f"{kind}-"
            given = [f"--{split}-file={self._made / f'{name}{split}.jsonl'}" for split in ("train", "valid")]
        else:
            given = [f"--{split}-prefix={self._made / split}" for split in ("train", "valid")]
        tokenizer = ["--train-tokenizer=unigram", "--vocab-size=340"] if train else [f"--tokenizer={self.tokenizer}"]
        folder = self._made / kind
        assert preprocess(["--task", task or kind, *given, *flags, *tokenizer, "--dest-dir", str(folder)]) == 0
        return folder

    def _write_rows(self, kind: str, labels: int, texts: int) -> None:
        draw = random.Random(2)
        for split, size in (("train", 60), ("valid", 12)):
            with open(self._made / f"{kind}-{split}.jsonl", "w", encoding="utf-8") as file:
                for number in range(size):
                    row: dict[str, Any] = {"label": str(number % labels) if labels else draw.random()}
                    row |= {column: " ".join(draw.choices(list(toy.WORDS), k=6)) for column in "ab"[:texts]}
                    file.write(json.dumps(row) + "\n")


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> StandIns:
    return StandIns(tmp_path_factory.mktemp("recipes") / "examples")


def stand_in_flags(settings: Any, arch: str, sides: Iterable[str]) -> list[str]:
    """A narrow student of few layers, small batches; what takes whole layers or a whole model keeps its sizes."""
    arch_config = settings.component("arch")[1]
    whole = arch_config.init in ("copy", "checkpoint") or settings.component("criterion")[0] == "cosine_kd"
    layers = 4 if settings.values["finetune_from_model"] else 2
    width, ffn, heads = (32, 64, 4) if whole or layers == 4 else (16, 32, 2)
    flags = ["--arch", arch, "--width", str(width), "--ffn-width", str(ffn), "--heads", str(heads)]
    flags += [part for side in sides for part in (f"--{side}-layers", str(layers))]
    if settings.values.get("max_tokens"):
        flags += ["--max-tokens", "300"]
    if settings.values.get("batch_size"):
        flags += ["--batch-size", "4"]
    return [*flags, "--update-freq", "2", "--nproc-per-node", "1", "--max-update", "3", "--warmup-updates", "1"]


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_three_updates(recipe: Path, stand_ins: StandIns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = stand_ins.root / recipe.parent
    monkeypatch.chdir(folder)
    settings = command([]).parse(["--config", recipe.name, "--max-update", "3"])
    arch, config = settings.component("arch")
    task, task_config = settings.component("task")
    kind, labels = arch, 2
    data = settings.values["data"]
    names = [data] if isinstance(data, str) else data
    for name in names:
        found = Path(name).name.removesuffix("-bin") if task == "glue" else task
        shutil.copytree(stand_ins.data(found), folder / name, dirs_exist_ok=True)
        if task == "glue":
            kind, labels = "classifier", GLUE[found][0]
    flags = ["--save-dir", str(tmp_path / "run"), *stand_in_flags(settings, arch, sides_of(arch))]
    if settings.values["teacher"]:
        flags += ["--teacher", str(stand_ins.model(kind, labels))]
    if settings.values["finetune_from_model"]:
        flags += ["--finetune-from-model", str(stand_ins.model(arch))]
    if config.init == "checkpoint":
        flags += ["--init-checkpoint", str(stand_ins.model(arch))]
    if streams := getattr(task_config, "stream", ()):
        texts = folder / "texts.jsonl"
        shutil.copyfile(stand_ins.root / "made" / "train.jsonl", texts)
        flags += ["--stream", ",".join(f"{stream.partition('=')[0]}={texts}" for stream in streams)]
        flags += ["--samples-per-epoch", "64"]  # a window of a longer epoch would be tokenised first
    if len(names) > 10:  # a pass over each of fifty corpora takes ten seconds, and smaller mixtures are validated too
        flags += ["--disable-validation"]
    assert main(["--config", recipe.name, *flags, "--no-tensorboard", "--log-interval", "1"]) == 0
    records = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [record["update"] for record in records if record["group"] == "train"] == [1, 2, 3]
    assert all(torch.isfinite(torch.tensor(record["loss"])) for record in records if record["group"] != "stage")


def sides_of(arch: str) -> list[str]:
    return ["encoder"] if arch == "bert" else ["encoder", "decoder"]
