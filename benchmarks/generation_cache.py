"""Memory of keys and values at the end of a search, beside transformers' cache."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.generation_engines import Shape
from benchmarks.report import Figure
from cktk.architectures.families.family import family_of
from cktk.generation.beam import BeamSearch
from cktk.generation.configs import SearchConfig
from cktk.generation.decoder import DecoderState
from cktk.generation.logits import Logits

#: Tokens read and written, and the largest share of transformers' cache.
LENGTHS = ((1024, 128, 0.35), (40, 40, 0.65))


def cache_figures(quick: bool) -> list[Figure]:
    """Bytes of our caches over those of transformers at beam 4, for each of `LENGTHS`."""
    figures = []
    for read, written, target in LENGTHS:
        shape = Shape(2, 128, 500, read)
        model, sources = shape.build(), shape.sources(2 if quick else 8)
        share = _ours(model, sources, written) / _of_transformers(model, sources, written)
        figures.append(Figure(f"cache / transformers, {read} tokens read, {written} written, beam 4", share, target))
    return figures


def _ours(model: Any, sources: list[list[int]], tokens: int) -> int:
    """The most that the caches take after any step."""
    config = SearchConfig(beam=4, max_len_b=tokens - 1, min_len=tokens - 1)
    search = BeamSearch(model, config, family_of("bart", "student").decoder_layout(model.config))
    scorer, sizes = search._scorer, [0]
    step = scorer.step

    def watched(state: DecoderState, fed: Tensor) -> Logits:
        found = step(state, fed)
        sizes.append(state.cache_bytes)
        return found

    scorer.step = watched  # type: ignore[assignment, method-assign]
    search.generate(sources, batch_size=len(sources))
    return max(sizes)


@torch.inference_mode()
def _of_transformers(model: Any, sources: list[list[int]], tokens: int) -> int:
    ids = torch.tensor(sources)
    found = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), num_beams=4, do_sample=False, min_length=tokens,
        max_length=tokens + 1, return_dict_in_generate=True,
    )  # fmt: skip
    caches = (found.past_key_values.self_attention_cache, found.past_key_values.cross_attention_cache)
    return sum(layer.keys.nbytes + layer.values.nbytes for cache in caches for layer in cache.layers)
