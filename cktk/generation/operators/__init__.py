"""What a step of decoding is made of: products, norms, attention and logits, by PyTorch or by kernels of our own."""
