"""Which token of its source each token of an output looks at most, by the decoder's attention to the encoder.

One forced pass of the model over finished outputs gives the attention of one layer, averaged over its heads. That of an
output token is the attention of the step that wrote it, as in fairseq's ``--print-alignment``.

Shapes: B sentences, S source positions, T output tokens, a width of all heads.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from cktk.errors import ConfigError
from cktk.generation.beam import Ids, length_batches, padded
from cktk.generation.decoder import evaluating
from cktk.generation.special_tokens import SpecialTokens
from cktk.protocols import DecoderLayout, Hypothesis

#: Pairs of positions, that of a source token first. Special tokens have none and are not counted.
Alignment = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class AlignedHypothesis(Hypothesis):
    """A hypothesis with the source token of each of its tokens, counted from the first one of the text."""

    links: tuple[int, ...] = ()

    def alignment(self, special: Collection[int]) -> Alignment:
        """The pairs of its ``tokens`` but the ``special`` ones, in order.

        Tokens of context, which is taken off an output's beginning, have links and no pairs.
        """
        links = self.links[len(self.links) - len(self.tokens) :]
        text = [link for token, link in zip(self.tokens, links, strict=False) if token not in special]
        return tuple((link, place) for place, link in enumerate(text))


class Aligner:
    """Gives hypotheses of ``model``, whose decoder ``layout`` describes, their links.

    ``layer`` is the one whose attention counts, from 1; None is the last but one, or the only one. Raises `ConfigError`
    where there is no such layer.
    """

    def __init__(self, model: Any, layout: DecoderLayout, layer: int | None = None) -> None:
        self._encoder, self._decoder, self._model = model.get_encoder(), model.get_decoder(), model
        layers = attrgetter(layout.layers)(self._decoder)
        if layer is not None and not 1 <= layer <= len(layers):
            raise ConfigError(f"--alignment-layer {layer}: the decoder has the layers 1 to {len(layers)}; choose one")
        number = max(1, len(layers) - 1) if layer is None else layer
        self._attention = attrgetter(layout.cross_attention)(layers[number - 1])
        self._query, self._key = (attrgetter(name)(self._attention) for name in layout.projections[:2])
        self._heads = layout.heads

    @torch.inference_mode()
    def __call__(
        self,
        sources: Sequence[Ids],
        texts: Sequence[range],
        hypotheses: Sequence[Sequence[Hypothesis]],
        *,
        decoder_start: int | None = None,
        max_tokens: int | None = None,
        batch_size: int | None = None,
    ) -> list[list[Hypothesis]]:
        """The n-best lists ``hypotheses`` of ``sources`` with links to the positions ``texts`` of these, from 0.

        What has no text to link to stays as it is. ``decoder_start`` and the limits of a batch are as in
        `BeamSearch.generate`; a batch has one hypothesis of a sentence at a time.
        """
        special = SpecialTokens.of(self._model, decoder_start, None)
        found = [list(nbest) for nbest in hypotheses]
        with evaluating(self._model):
            for rows in length_batches([len(source) for source in sources], max_tokens, batch_size):
                ids, mask = padded([sources[row] for row in rows], special.pad, self._model.device)
                memory = self._encoder(input_ids=ids, attention_mask=mask).last_hidden_state
                for place in range(max(len(found[row]) for row in rows)):
                    own = [at for at, row in enumerate(rows) if _linked(found[row], place, texts[row])]
                    outputs = [found[rows[at]][place] for at in own]
                    states = memory[own], None if mask is None else mask[own]
                    for at, weights in zip(own, self._weights(outputs, special, *states), strict=True):
                        row = rows[at]
                        found[row][place] = _with_links(found[row][place], weights, texts[row])
        return found

    def _weights(
        self, outputs: Sequence[Hypothesis], special: SpecialTokens, memory: Tensor, mask: Tensor | None
    ) -> Iterator[Tensor]:
        """The attention (T, S) of each output to its source, of which ``memory`` (B, S, d) are the states.

        Pads of the source have 0. One output at a time, since all together may be larger than all else.
        """
        if not outputs:
            return
        inputs, _ = padded([(special.start, *output.tokens[:-1]) for output in outputs], special.pad, memory.device)
        with _kept_output(self._query) as queries, _kept_output(self._key) as keys:
            self._decoder(input_ids=inputs, encoder_hidden_states=memory, encoder_attention_mask=mask, use_cache=False)
        for at, output in enumerate(outputs):
            query = (
                queries[0][at, : len(output.tokens)].view(len(output.tokens), self._heads, -1).transpose(0, 1).float()
            )
            key = keys[0][at].view(keys[0].shape[1], self._heads, -1).transpose(0, 1).float()
            scores = self._attention.scaling * query @ key.transpose(1, 2)
            if mask is not None:
                scores.masked_fill_(mask[at] == 0, float("-inf"))
            yield scores.softmax(dim=2).mean(dim=0)


def _linked(nbest: Sequence[Hypothesis], place: int, text: range) -> bool:
    return place < len(nbest) and len(text) > 0 and len(nbest[place].tokens) > 0


def _with_links(hypothesis: Hypothesis, weights: Tensor, text: range) -> AlignedHypothesis:
    links = weights[:, text.start : text.stop].argmax(dim=1).tolist()
    return AlignedHypothesis(hypothesis.tokens, hypothesis.score, tuple(links))


@contextmanager
def _kept_output(module: torch.nn.Module) -> Iterator[list[Tensor]]:
    """What ``module`` gives while inside."""
    kept: list[Tensor] = []
    with module.register_forward_hook(lambda _module, _inputs, output: kept.append(output)):
        yield kept
