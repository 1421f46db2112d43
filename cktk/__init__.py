"""cktk: distil large transformers into students of any width and depth by matching hidden states."""

__version__ = "0.1.0"
