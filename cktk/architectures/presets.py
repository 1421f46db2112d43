"""Students by name, for ``--arch``: those of "Improving Language Model Distillation through Hidden State Matching"
(ICLR 2025) and of the models that it compares with. Neither torch nor transformers is imported here.

A name is the family and "layers x width". Layers are those of encoder and decoder together; each gets half of them,
which also holds for the rows of the shape of distilBART (an uneven or odd split is written with --encoder-layers and
--decoder-layers). A row sets sizes and nothing else: run files and flags override it, and what it does not set is the
teacher's.
"""

from __future__ import annotations

from collections.abc import Mapping

from cktk.config.presets import Preset

#: Family, layers of both sides together, width, feed-forward width.
_ENCODER_DECODERS = (
    ("bart", 6, 640, 4096),
    ("bart", 6, 768, 4096),
    ("bart", 12, 768, 3072),
    ("bart", 24, 768, 3072),
    ("bart", 2, 1024, 4096),  # these four have the shape of distilBART
    ("bart", 4, 1024, 4096),
    ("bart", 6, 1024, 4096),
    ("bart", 12, 1024, 4096),
    ("mbart", 12, 384, 1536),
    ("mbart", 12, 512, 2048),
    ("mbart", 24, 512, 2048),
    ("mbart", 24, 640, 2560),
    ("mbart", 2, 1024, 4096),
    ("mbart", 4, 1024, 4096),
    ("t5", 12, 768, 2048),
    ("t5", 24, 768, 2048),  # Flan-T5-base
    ("t5", 24, 1024, 2816),
    ("t5", 48, 1024, 2816),  # Flan-T5-large
)

#: Family, layers, width, feed-forward width.
_ENCODERS = (
    ("bert", 6, 384, 1536),
    ("bert", 12, 384, 1536),
    ("bert", 8, 512, 3072),
    ("bert", 12, 512, 3072),
    ("bert", 4, 768, 3072),
    ("bert", 6, 768, 3072),  # as DistilBERT and MiniLM
)


def _sizes(arch: str, layers: dict[str, int], width: int, ffn_width: int) -> Preset:
    sizes = {**layers, "width": width, "ffn_width": ffn_width}
    return Preset("", {"arch": arch, **{name: str(size) for name, size in sizes.items()}})


STUDENTS: Mapping[str, Preset] = {
    **{
        f"{arch}_{layers}x{width}": _sizes(
            arch, {"encoder_layers": layers // 2, "decoder_layers": layers // 2}, width, ffn_width
        )
        for arch, layers, width, ffn_width in _ENCODER_DECODERS
    },
    **{
        f"{arch}_{layers}x{width}": _sizes(arch, {"encoder_layers": layers}, width, ffn_width)
        for arch, layers, width, ffn_width in _ENCODERS
    },
}
