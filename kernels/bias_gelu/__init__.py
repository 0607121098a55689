"""Bias and GELU in one pass, `gelu(x + bias)`, and the linear layer that ends in it."""
