"""Hidden states and attention of a model, and which of them are matched."""
