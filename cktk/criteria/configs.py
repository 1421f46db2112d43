"""Options of the criteria. Torch-free, so that ``--help`` stays fast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cktk.config.options import option
from cktk.errors import ConfigError

Divergence = Literal["forward_kl", "reverse_kl", "js", "tv", "skew_kl", "reverse_skew_kl"]
AttentionMatch = Literal["scores", "probabilities", "queries", "keys", "values"]


@dataclass(frozen=True)
class CrossEntropyConfig:
    """cross_entropy: gold labels only"""

    label_smoothing: float = option(
        0.0,
        minimum=0.0,
        maximum=0.999,
        help="share of the target's probability that is spread evenly over the vocabulary",
    )
    head_loss: Literal["fused", "dense"] = option(
        "fused",
        help="fused = logits in chunks that are never held in full; dense = the plain reference, for comparison",
    )
    logits_memory: int = option(
        256, minimum=1, metavar="MIB", help="MiB for the rows of logits that exist at one time, student's and teacher's"
    )


@dataclass(frozen=True)
class KlKdConfig(CrossEntropyConfig):
    """kl_kd: gold labels and the teacher's distribution, no hidden states"""

    ce_weight: float = option(1.0, minimum=0.0, help="weight of the cross entropy on gold labels")
    kl_weight: float = option(1.0, minimum=0.0, help="weight of the divergence from the teacher's distribution")
    divergence: Divergence = option(
        "forward_kl",
        help="forward_kl = KL(teacher || student); reverse_kl; js = Jensen-Shannon; tv = total variation; "
        "skew_kl = KL(p || a p + (1 - a) q); reverse_skew_kl = KL(q || (1 - a) q + a p), teacher p and student q",
    )
    skew: float = option(0.1, above=0.0, maximum=0.999, help="a of the skewed divergences")
    temperature: float = option(
        1.0, above=0.0, help="divides both models' logits in the divergence, which is multiplied by its square"
    )
    teacher_top_k: int = option(
        0,
        minimum=0,
        metavar="K",
        help="compare the teacher's K most probable tokens and all others as one; 0: the whole vocabulary",
    )


@dataclass(frozen=True)
class LayerMapConfig(KlKdConfig):
    """Layers paired beside gold labels and the teacher's distribution"""

    layer_map: str = option(
        "uniform",
        metavar="MAP",
        help="student layers and their teacher layers: uniform; skip:K = j with jK; last:K and first:K = the last or "
        'first K of both; or pairs "1:4,2:8" (student:teacher), also by side: "encoder=1:4,2:8;decoder=1:6"',
    )


@dataclass(frozen=True)
class MatchingConfig(LayerMapConfig):
    """Matching of layers beside gold labels and the teacher's distribution"""

    attention_match: tuple[AttentionMatch, ...] = option(
        (),
        help="what to match of attention blocks, any of: scores (MSE before the softmax, as TinyBERT), probabilities "
        "(KL), queries, keys, values (KL of their relations to one another, as MiniLM)",
    )
    attention_weight: float = option(1.0, minimum=0.0, help="weight of the attention losses")
    relation_heads: int | None = option(
        None, minimum=1, metavar="H", help="heads that relations are taken in (default: the teacher's)"
    )


@dataclass(frozen=True)
class AttentionKdConfig(MatchingConfig):
    """attention_kd: attention blocks matched, no hidden states"""

    attention_match: tuple[AttentionMatch, ...] = option(
        ("values",),
        help="what to match of attention blocks, any of: scores (MSE before the softmax, as TinyBERT), probabilities "
        "(KL), queries, keys, values (KL of their relations to one another, as MiniLM)",
    )

    def __post_init__(self) -> None:
        if not self.attention_match:
            raise ConfigError("--criterion attention_kd has nothing to match; give --attention-match, e.g. values")


@dataclass(frozen=True)
class InternalKdConfig(LayerMapConfig):
    """internal_kd: attention and first positions ([CLS]) matched layer by layer, in stages, then the output head"""

    procedure: Literal["all", "progressive", "stacked"] = option(
        "all",
        help="all = all layers and the head at once; progressive = one layer after the other from the bottom, then the "
        "head; stacked = likewise, but layers that were left stay matched until the head's turn",
    )
    attention_weight: float = option(
        1.0,
        minimum=0.0,
        help="weight of KL(teacher || student) of attention; extensions of cktk: encoder-decoders (self-attention of "
        "both and cross-attention), and the mean over heads where their numbers differ",
    )
    cls_weight: float = option(
        1.0,
        minimum=0.0,
        help="weight of 1 - cosine of each sentence's first position ([CLS]); extensions of cktk: the first scored "
        "position of decoders, and 1 - CKA over these positions where widths differ",
    )
    stage_epochs: tuple[int, ...] = option(
        (),
        minimum=1,
        help="epochs after which a layer is left: one number for all layers, or a list; none: no limit",
    )
    cosine_threshold: float = option(
        0.0,
        minimum=0.0,
        maximum=1.0,
        help="a layer is also left after an epoch whose mean training loss of its first positions is below this; "
        "0: never",
    )
    keep_internal_at_end: bool = option(False, help="keep all layers matched when it is the head's turn")
    freeze_body_at_end: bool = option(False, help="train nothing but the head when it is its turn")

    def __post_init__(self) -> None:
        ends = bool(self.stage_epochs or self.cosine_threshold)
        refused = {
            "--ce-weight 0 --kl-weight 0: nothing would train the head; give one of them": (
                not (self.ce_weight or self.kl_weight)
            ),
            "--attention-weight 0 --cls-weight 0: there is nothing to match; use --criterion kl_kd": (
                not (self.attention_weight or self.cls_weight)
            ),
            f"--procedure {self.procedure} never leaves its first layer: give --stage-epochs or --cosine-threshold": (
                self.procedure != "all" and not ends
            ),
            "--cosine-threshold looks at the loss of --cls-weight, which is 0: give --stage-epochs instead": (
                bool(self.cosine_threshold) and not self.cls_weight
            ),
            "--keep-internal-at-end trains the body, --freeze-body-at-end does not: choose one": (
                self.keep_internal_at_end and self.freeze_body_at_end
            ),
            "--keep-internal-at-end: --procedure all then has nothing to leave, so --stage-epochs and "
            "--cosine-threshold say nothing; leave them out": (
                self.procedure == "all" and self.keep_internal_at_end and ends
            ),
            "--freeze-body-at-end: --procedure all does not end; give --stage-epochs or --cosine-threshold": (
                self.freeze_body_at_end and not ends
            ),
        }
        for words in (words for words, wrong in refused.items() if wrong):
            raise ConfigError(words)


@dataclass(frozen=True)
class HiddenKdConfig(MatchingConfig):
    """Matching of hidden states beside gold labels and the teacher's distribution"""

    hidden_weight: float = option(
        1.0, minimum=0.0, help="weight of the hidden-state loss, which is summed over layer pairs"
    )
    match_embeddings: bool = option(True, help="the embedding outputs of both models are a further pair on each side")


@dataclass(frozen=True)
class CkaKdConfig(HiddenKdConfig):
    """cka_kd: hidden states matched by centred kernel alignment"""

    cka_scope: Literal["update", "summed", "micro", "running"] = option(
        "update",
        help="rows that one CKA value pools: update = all micro-batches and ranks (exact, two passes); summed = "
        "covariances of micro-batches about their own means, added up (two passes); micro = each micro-batch by "
        "itself; running = moving averages over updates (one pass, biased)",
    )
    cka_form: Literal["sqrt", "squared", "debiased"] = option(
        "sqrt", help="loss 1 - k with k the square root of linear CKA (sqrt), 1 - k^2, or 1 - debiased CKA"
    )
    cka_momentum: float = option(
        0.9, minimum=0.0, maximum=0.9999, help="share of the past in the averages of scope running"
    )
    cka_eps: float = option(0.0, minimum=0.0, help="added to the norms of both models' covariances")
    cka_dtype: Literal["auto", "float64"] = option("auto", help="of statistics: auto = float32 or better, or float64")


@dataclass(frozen=True)
class ProcrustesKdConfig(HiddenKdConfig):
    """procrustes_kd: hidden states matched by their distance after the best rotation"""

    procrustes_scope: Literal["update", "micro"] = option(
        "update",
        help="rows that one distance pools: update = all micro-batches and ranks (exact, two passes); micro = each "
        "micro-batch by itself",
    )


@dataclass(frozen=True)
class GramKdConfig(HiddenKdConfig):
    """gram_kd: hidden states matched by their row-normalised similarity matrices"""


@dataclass(frozen=True)
class LinearKdConfig(HiddenKdConfig):
    """linear_kd: hidden states matched by a trained projection"""

    projector: Literal["per_layer", "shared"] = option(
        "per_layer", help="one projection for each layer pair, or one shared by all"
    )


@dataclass(frozen=True)
class CosineKdConfig(HiddenKdConfig):
    """cosine_kd: hidden states of equal width matched by their angle"""
