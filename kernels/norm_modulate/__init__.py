"""Kernels of the operator `norm_modulate`, one file per language."""
