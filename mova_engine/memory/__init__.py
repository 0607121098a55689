"""Where tensors live: activation checkpointing, activations on the host, quantised weights."""
