"""The engines that benchmarks of generation compare, each a function from sources to the best hypotheses."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BartConfig, BartForConditionalGeneration, PreTrainedTokenizerFast

from cktk.architectures.families.family import family_of
from cktk.export.ctranslate2_format import open_model, token_table, write_ctranslate2
from cktk.generation.beam import BeamSearch
from cktk.generation.configs import SearchConfig

Generate = Callable[[list[list[int]]], list[tuple[int, ...]]]
Input = TypeVar("Input")

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]


class Shape(NamedTuple):
    """A student with random weights, and how many tokens it reads and writes."""

    layers: int
    width: int
    vocabulary: int
    tokens: int

    def __str__(self) -> str:
        return f"{self.layers}x{self.width} V {self.vocabulary}"

    def build(self) -> Any:
        """A BART of this shape, with heads of 64."""
        torch.manual_seed(0)
        config = BartConfig(
            vocab_size=self.vocabulary, d_model=self.width, encoder_layers=self.layers, decoder_layers=self.layers,
            encoder_ffn_dim=4 * self.width, decoder_ffn_dim=4 * self.width,
            encoder_attention_heads=self.width // 64, decoder_attention_heads=self.width // 64,
            max_position_embeddings=1200, init_std=0.06, decoder_start_token_id=2,
        )  # fmt: skip
        model: Any = BartForConditionalGeneration(config)
        model.eval()
        model.generation_config.forced_eos_token_id = None
        return model

    def sources(self, count: int) -> list[list[int]]:
        """Random sentences of ``tokens`` tokens."""
        draw = torch.Generator().manual_seed(1)
        rows = torch.randint(len(SPECIAL), self.vocabulary, (count, self.tokens - 1), generator=draw)
        return [[*row, 2] for row in rows.tolist()]


def word_tokenizer(size: int) -> Any:
    """A tokenizer of made-up words, for engines that ask for one."""
    words = [*SPECIAL, *(f"w{index}" for index in range(len(SPECIAL), size))]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = dict(zip(("bos_token", "pad_token", "eos_token", "unk_token"), SPECIAL, strict=True))
    make: Any = PreTrainedTokenizerFast
    return make(tokenizer_object=tokenizer, **names)


def ours(model: Any, beam: int, tokens: int, quantization: str = "none") -> Generate:
    """cktk, with outputs of exactly ``tokens`` tokens."""
    config = SearchConfig(beam=beam, max_len_b=tokens - 1, min_len=tokens - 1, quantization=quantization)
    search = BeamSearch(model, config, family_of(model.config.model_type, "student").decoder_layout(model.config))
    return lambda sources: [found[0].tokens for found in search.generate(sources, batch_size=len(sources))]


def of_transformers(model: Any, beam: int, tokens: int) -> Generate:
    """transformers' ``generate``, likewise."""

    @torch.inference_mode()
    def generate(sources: list[list[int]]) -> list[tuple[int, ...]]:
        ids = torch.tensor(sources)
        found = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), num_beams=beam, do_sample=False, length_penalty=1.0,
            min_length=tokens, max_length=tokens + 1,
        )  # fmt: skip
        return [tuple(row[1:].tolist()) for row in found]

    return generate


@contextmanager
def of_ctranslate2(
    model: Any, tokenizer: Any, beam: int, tokens: int, quantization: str, threads: int
) -> Iterator[Generate]:
    """CTranslate2, likewise."""
    names = token_table(tokenizer, model.config.vocab_size)
    numbers = {name: index for index, name in enumerate(names)}
    with tempfile.TemporaryDirectory() as folder:
        write_ctranslate2(model, tokenizer, Path(folder), quantization)
        engine = open_model(folder, threads=threads)

        def generate(sources: list[list[int]]) -> list[tuple[int, ...]]:
            found = engine.translate_batch(
                [[names[token] for token in source] for source in sources], beam_size=beam, length_penalty=1.0,
                min_decoding_length=tokens, max_decoding_length=tokens,
            )  # fmt: skip
            return [tuple(numbers[name] for name in best.hypotheses[0]) for best in found]

        yield generate


def median_seconds(
    engines: Mapping[str, Callable[[Input], object]], sources: Input, rounds: int, clock: Callable[[], float]
) -> dict[str, float]:
    """The median time of each engine; they take turns, after a round that does not count."""
    times: dict[str, list[float]] = {name: [] for name in engines}
    for turn in range(rounds + 1):
        for name, generate in engines.items():
            started = clock()
            generate(sources)
            if turn:
                times[name].append(clock() - started)
    return {name: _median(found) for name, found in times.items()}


def _median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]
