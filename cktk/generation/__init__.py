"""Generation: incremental decoding and beam search over the weights of Hugging Face students."""
