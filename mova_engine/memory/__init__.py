"""Where tensors live: residency by stages, activation checkpointing, activations on the host, quantised weights."""
