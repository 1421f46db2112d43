"""Entry points of ``torch.hub.load(repo, ..., source="local")``."""

from typing import Any

from cktk.hub import build_student
from cktk.hub import student as _student

dependencies = ["torch", "transformers", "tokenizers", "numpy", "yaml", "safetensors"]


def student(path: str, **options: Any) -> Any:
    """A trained student with ``.translate([...])``; options such as ``task`` are those of `cktk.hub.student`."""
    return _student(path, **options)


def bart(width: int, encoder_layers: int, decoder_layers: int, **options: Any) -> Any:
    """A new BART of this width and depth; see `cktk.hub.build_student` for the options, such as ``teacher``."""
    return build_student("bart", width=width, encoder_layers=encoder_layers, decoder_layers=decoder_layers, **options)


def mbart(width: int, encoder_layers: int, decoder_layers: int, **options: Any) -> Any:
    """A new mBART of this width and depth; see `cktk.hub.build_student` for the options, such as ``teacher``."""
    return build_student("mbart", width=width, encoder_layers=encoder_layers, decoder_layers=decoder_layers, **options)


def t5(width: int, encoder_layers: int, decoder_layers: int, **options: Any) -> Any:
    """A new T5 of this width and depth; see `cktk.hub.build_student` for the options, such as ``teacher``."""
    return build_student("t5", width=width, encoder_layers=encoder_layers, decoder_layers=decoder_layers, **options)


def bert(width: int, encoder_layers: int, **options: Any) -> Any:
    """A new BERT of this width and depth; see `cktk.hub.build_student` for the options, such as ``head``."""
    return build_student("bert", width=width, encoder_layers=encoder_layers, **options)
