"""Presets of ``cktk-train``: the losses of the paper on hidden-state matching, and those of its released scripts."""

from __future__ import annotations

from collections.abc import Mapping

from cktk.config.presets import Case, Preset

PRESETS: Mapping[str, Preset] = {
    "paper": Preset(
        "CKA of summed covariances, forward KL, all weights 1",
        {
            "criterion": "cka_kd",
            "cka_scope": "summed",
            "cka_form": "sqrt",
            "ce_weight": "1",
            "kl_weight": "1",
            "hidden_weight": "1",
            "divergence": "forward_kl",
            "temperature": "1",
            "layer_map": "uniform",
            "match_embeddings": "false",
        },
    ),
    "released-scripts": Preset(
        "CKA within micro-batches in float64, embeddings matched, reverse KL into Romanian",
        {
            "criterion": "cka_kd",
            "cka_scope": "micro",
            "cka_form": "sqrt",
            "cka_eps": "1e-8",
            "cka_dtype": "float64",
            "ce_weight": "1",
            "kl_weight": "1",
            "hidden_weight": "1",
            "divergence": "forward_kl",
            "temperature": "1",
            "layer_map": "uniform",
            "match_embeddings": "true",
            "projector": "shared",
        },
        (Case({"task": ("translation",), "target_lang": ("ro", "ro_RO")}, {"divergence": "reverse_kl"}),),
    ),
}
