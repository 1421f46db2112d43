"""How fast a student of some size would be on this machine, found with random weights."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from cktk.architectures.families.family import Family
from cktk.generation.beam import BeamSearch
from cktk.generation.configs import SearchConfig
from cktk.utils.rng import seed_everything_from

#: Searches for one sentence, after one to warm up; the fastest counts, since others were disturbed by something.
_ROUNDS = 5


class Speed(NamedTuple):
    """Tokens per second in batches (generated ones, or those an encoder reads), and milliseconds for one sentence."""

    tokens_per_second: float
    latency_ms: float


class SpeedTest:
    """Models of random weights at work on sentences of ``length`` tokens: beam search for outputs as long as sources.

    A model without a decoder runs forward.

    Raises `CheckpointError` from its methods for a model that beam search does not know.
    """

    def __init__(self, family: Family, length: int, beam: int, batch_size: int) -> None:
        self._family = family
        self._length = length
        self._batch_size = batch_size
        self._search = SearchConfig(beam=beam, max_len_b=length, min_len=length)
        self._model: tuple[Mapping[str, Any], Any] | None = None

    def latency_ms(self, config: PreTrainedConfig) -> float:
        """Milliseconds for one sentence."""
        model = self._opened(config)
        self._seconds(model, 1)
        return 1000 * min(self._seconds(model, 1) for _ in range(_ROUNDS))

    def tokens_per_second(self, config: PreTrainedConfig) -> float:
        """Tokens per second of a whole batch."""
        return self._batch_size * self._length / self._seconds(self._opened(config), self._batch_size)

    def _opened(self, config: PreTrainedConfig) -> Any:
        """A model of ``config``; the last one is kept, since both figures are asked for in turn."""
        key = config.to_dict()
        if self._model is None or self._model[0] != key:
            self._model = None  # its memory is free before the next one is built
            seed_everything_from(1)
            model: Any = self._family.build(config)
            self._family.set_generation(model.eval())
            self._model = (key, model)
        return self._model[1]

    def _seconds(self, model: Any, sentences: int) -> float:
        generator = torch.Generator().manual_seed(1)
        sources = torch.randint(model.config.vocab_size, (sentences, self._length), generator=generator)
        work = self._search_for if "decoder" in self._family.shape(model.config).sides else self._forward
        run = work(model, sources)
        started = time.perf_counter()
        run()
        return time.perf_counter() - started

    def _search_for(self, model: Any, sources: Tensor) -> Callable[[], object]:
        start = self._family.decoder_start(model.config)
        return partial(
            BeamSearch(model, self._search, self._family.decoder_layout(model.config)).generate,
            sources.tolist(),
            batch_size=len(sources),
            decoder_start=model.config.eos_token_id if start is None else start,
        )

    def _forward(self, model: Any, sources: Tensor) -> Callable[[], object]:
        return torch.inference_mode()(partial(model, input_ids=sources, attention_mask=torch.ones_like(sources)))
