"""Scores of what models give: translations, summaries, answers about sentences."""
