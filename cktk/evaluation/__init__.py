"""Scores of translations, and comparisons of models."""
