"""Tasks: from rows of a data folder to batches for a model."""
