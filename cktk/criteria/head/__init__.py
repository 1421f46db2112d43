"""The loss of the vocabulary head: cross entropy and divergences without logits in full."""
