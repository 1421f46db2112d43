"""Tokenizers: opened, trained, written for transformers, and trimmed."""
